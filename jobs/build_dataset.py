"""Builds a dataset from a folder of videos."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs import console, options
from jobs.inspect_dataset import describe, summary

if TYPE_CHECKING:
    from lawdnet.data.config import BuildConfig
    from lawdnet.data.records import VideoRecord
    from lawdnet.tasks.task import Progress


def build(
    source: Annotated[
        str,
        typer.Argument(
            help="Videos: a folder (searched recursively), one video, a list file (.txt, or a .csv or .parquet table "
            "with a column `path`), or an s3://… or gs://… URI. Never changed."
        ),
    ],
    out: Annotated[
        str,
        typer.Option(metavar="DATASET", help="Folder of the dataset, or an s3://… or gs://… URI.", show_default=False),
    ],
    landmarks: options.Landmarks = "auto",
    face: Annotated[
        str,
        typer.Option(
            help="Which face to use if there are several: largest, all, sync (the one who speaks; needs --sync), or a "
            "number from 0."
        ),
    ] = "largest",
    features: options.Features = "mel",
    crop_width: Annotated[
        int,
        typer.Option(
            min=20,
            help="Width of a stored face crop in px; its height is 1.3 times that. 320 holds a mouth of 256 px; a "
            "mouth of 288 px, as in the full preset's last stage, needs 360. It cannot be changed later.",
        ),
    ] = 320,
    where: options.Where = [],  # noqa: B006 typer copies it
    group_by: options.GroupBy = "",
    sync: options.ScoringSync = None,
    weights_dir: options.WeightsDir = None,
    gpu: options.NetworkGpuShare = 0.0,
    settings: options.Settings = [],  # noqa: B006 typer copies it
    as_json: options.Json = False,
) -> None:
    """Turn talking-head videos into a dataset.

    A video that cannot be used is rejected with a reason, and the build continues with the others. Run the same command
    again to resume a build that was stopped. With more features, a sync network, other rules or groups, it completes
    the same folder without decoding a frame again. Without --where, the only rule is scale_change<=1.5.

    Re-encodings of a video are on its side of the split; --set near_duplicates=reject leaves them out, and =keep does
    not look for them.

    Example: `lawdnet build corpus --out dataset --where 'face_px>=120' --group-by folder --set val_fraction=0.1`
    """
    from lawdnet.storage import locate
    from pipelines.build.build import build as build_dataset

    with console.parsing_options():
        given = {
            "landmarks": landmarks,
            "face": face,
            "features": split(features),
            "crop_width": crop_width,
            "group_by": group_by,
        }
        rules = {"where": tuple(where)} if where else {}
        config = build_config(settings, **given, **rules)
        videos = locate(source)
        root = locate(out)
        weights = console.located(weights_dir)
    with console.Meter("build", "videos") as meter:
        dataset = build_dataset(videos, root, config, weights_dir=weights, sync=sync, gpu=gpu, on_progress=Watch(meter))
        seconds = meter.seconds
    content = describe(dataset) | {"seconds": round(seconds, 3)}
    if not content["segments"]:
        console.result(content, summary(content), as_json)
        raise ValueError(f"{source}: no video gave a segment; see the reasons above and in {out}/videos.parquet")
    lines = [f"built {out} in {console.duration(seconds)}", *summary(content)]
    lines.append(f"next: lawdnet train {shlex.quote(out)} --out RUN")
    console.result(content, lines, as_json)


class Watch:
    """Shows the result of each video."""

    def __init__(self, meter: console.Meter) -> None:
        self.meter = meter
        self.frames = 0
        self.rejects = 0

    def __call__(self, progress: Progress[VideoRecord]) -> None:
        record = progress.record
        is_divided = record.status == "divided"
        self.rejects += not record.is_accepted and not is_divided
        if progress.is_stored:
            self.meter.skip(progress.done)
        else:
            self.frames += 0 if is_divided else record.frames
        segments = console.count(record.segments, "segment")
        segments += f", not completed: {record.not_completed}" if record.not_completed else ""
        result = segments if record.is_accepted else f"{record.status}, {record.reason}: {record.detail}"
        if is_divided:
            result = f"divided into {console.count(len(record.borders) - 1, 'span')}"
        rate = f"{self.frames / max(self.meter.seconds, 1e-3):.0f} frames/s, " if self.frames else ""
        note = f"{rate}{self.rejects} rejected"
        self.meter.update(progress.done, progress.total, note=note, event=f"{record.path}: {result}")


def split(text: str) -> tuple[str, ...]:
    """Split a list of names such as `a, b` at its commas."""
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
        raise ValueError(f"--set {name}.{option}: no feature or landmark source {name!r}; choose from "
                         f"{', '.join([*EXTRACTORS, *SOURCES])}")  # fmt: skip
    known = extractor_options(name) if name in EXTRACTORS else source_options(name)
    valid = [key for key in known if key not in ("weights_dir", "device")]
    if option not in valid:
        raise ValueError(f"--set {name}.{option}: valid are {', '.join(valid) or 'none'}")
    return value


if __name__ == "__main__":
    console.run(build)
