"""Builds a dataset from a folder of videos."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs import console
from jobs.inspect_dataset import describe, summary

if TYPE_CHECKING:
    from lawdnet.data.config import BuildConfig


def build(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of videos (searched to its depth), one video, a list file, or s3://… or gs://…. Never changed."
        ),
    ],
    out: Annotated[
        str, typer.Option(metavar="DATASET", help="Folder of the dataset, or s3://… or gs://….", show_default=False)
    ],
    landmarks: Annotated[
        str,
        typer.Option(help="openface, face-alignment, mediapipe, or auto: the CSV beside a video, else what is there."),
    ] = "auto",
    face: Annotated[
        str, typer.Option(help="Of several people: largest, all, sync (who speaks; needs --sync), or a number from 0.")
    ] = "largest",
    features: Annotated[
        str, typer.Option(help="Audio features to store, separated by commas: mel, deepspeech, deepspeech2, hubert.")
    ] = "mel",
    crop_width: Annotated[
        int,
        typer.Option(
            min=20,
            help="Width of a stored face in px; its height is 1.3 times that. 320 holds a mouth of 256 px, the full "
            "preset's last stage wants 360. It cannot be changed later.",
        ),
    ] = 320,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help="Only segments whose scores meet this, as `select` takes it; again for more. Without it: "
            "scale_change<=1.5.",
            show_default=False,
        ),
    ] = None,
    sync: Annotated[
        Path | None,
        typer.Option(help="Sync network that gives offset and confidence: a run with a syncnet stage, or a .model."),
    ] = None,
    weights_dir: Annotated[
        Path | None, typer.Option(help="Folder of weights for landmarks and features, looked in first.")
    ] = None,
    gpu: Annotated[float, typer.Option(min=0, help="Share of a GPU for each worker; 0 works on CPUs.")] = 0.0,
    settings: console.Settings = [],  # noqa: B006 typer copies it
    as_json: console.Json = False,
) -> None:
    """Turn talking-head videos into a dataset.

    Inputs that cannot be used are rejected with a reason and the others go on. A build that was stopped goes on where
    it was when the same command runs again; with more features, a sync network or other rules the same folder is
    completed, and no picture is decoded a second time.

    Example: `lawdnet build corpus --out dataset --where 'face_px>=120' --set val_fraction=0.1`
    """
    from lawdnet.storage import locate
    from pipelines.build.build import build as build_dataset

    with console.options():
        options = {"landmarks": landmarks, "face": face, "features": split(features), "crop_width": crop_width}
        config = build_config(settings, **options, **({"where": tuple(where)} if where else {}))
        place, root = locate(source), locate(out)

    with console.Meter("build", "videos") as meter:
        opened = build_dataset(place, root, config, weights_dir=weights_dir, sync=sync, gpu=gpu, on_row=Watch(meter))
        seconds = meter.seconds
    content = describe(opened) | {"seconds": round(seconds, 3)}
    if not content["segments"]:
        console.result(content, summary(content), as_json)
        raise ValueError(f"{source}: no input gave a segment; the reasons are above and in {out}/videos.parquet")
    lines = [f"built {out} in {console.duration(seconds)}", *summary(content)]
    lines.append(f"next: lawdnet train {shlex.quote(out)} --out RUN")
    console.result(content, lines, as_json)


class Watch:
    """Shows each input's outcome."""

    def __init__(self, meter: console.Meter) -> None:
        self.meter, self.frames, self.rejects = meter, 0, 0

    def __call__(self, row: dict[str, Any], done: int, total: int) -> None:
        is_good = row["status"] == "accepted"
        self.rejects += not is_good
        if row.get("stored"):
            self.meter.skip(done)
        else:
            self.frames += row["frames"]
        outcome = (
            console.count(row["segments"], "segment")
            if is_good
            else f"{row['status']}, {row['reason']}: {row['detail']}"
        )
        rate = f"{self.frames / max(self.meter.seconds, 1e-3):.0f} frames/s, " if self.frames else ""
        self.meter.update(done, total, note=f"{rate}{self.rejects} rejected", event=f"{row['path']}: {outcome}")


def split(text: str) -> tuple[str, ...]:
    """`a, b` as names."""
    return tuple(name for part in text.split(",") if (name := part.strip()))


def build_config(settings: Iterable[str], **options: Any) -> BuildConfig:
    """The configuration of a build from the command's options and `key=value` settings, which win.

    Raises:
        ValueError: an unknown key (the message lists the valid ones), or a value that does not fit.
    """
    import dataclasses

    from lawdnet.data.config import BuildConfig
    from lawdnet.settings import convert, parse_setting, unknown_key

    defaults = {field.name: field.default for field in dataclasses.fields(BuildConfig) if field.name != "options"}
    nested: dict[str, dict[str, Any]] = {}
    for setting in settings:
        key, value = parse_setting(setting)
        name, dot, option = key.partition(".")
        if dot:
            nested.setdefault(name, {})[option] = _option(name, option, value)
            continue
        if key not in defaults:
            raise unknown_key(key, defaults, f"{', '.join(defaults)}, and FEATURE.OPTION")
        wanted = type(defaults[key])
        options[key] = convert(key, split(value) if wanted is tuple and isinstance(value, str) else value, wanted)
    return BuildConfig(**options, options=nested)


def _option(name: str, option: str, value: Any) -> Any:
    """The value of an extractor's or landmark source's own option."""
    from lawdnet.audio.base import EXTRACTORS, extractor_options
    from lawdnet.landmarks.base import SOURCES, source_options

    if name not in (*EXTRACTORS, *SOURCES):
        raise ValueError(f"--set {name}.{option}: no feature or landmark source {name!r}; there are "
                         f"{', '.join([*EXTRACTORS, *SOURCES])}")  # fmt: skip
    known = extractor_options(name) if name in EXTRACTORS else source_options(name)
    valid = [key for key in known if key not in ("weights_dir", "device")]
    if option not in valid:
        raise ValueError(f"--set {name}.{option}: valid are {', '.join(valid) or 'none'}")
    return value


if __name__ == "__main__":
    console.run(build)
