"""Builds a dataset from a folder of videos."""

from __future__ import annotations

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
        Path, typer.Argument(help="Folder of videos, searched to its depth, or one video. Never changed.")
    ],
    out: Annotated[Path, typer.Option(metavar="DATASET", help="Folder of the dataset.", show_default=False)],
    landmarks: Annotated[
        str, typer.Option(help="Where facial landmarks come from; auto takes the CSV beside each video.")
    ] = "auto",
    features: Annotated[str, typer.Option(help="Audio features to store, separated by commas.")] = "mel",
    crop_width: Annotated[
        int, typer.Option(min=20, help="Width of a stored face in px; its height is 1.3 times that.")
    ] = 320,
    settings: console.Settings = [],  # noqa: B006 typer copies it
    as_json: console.Json = False,
) -> None:
    """Turn a folder of talking-head videos into a dataset.

    Inputs that cannot be used are rejected with a reason and the others go on. A build that was stopped goes on where
    it was when the same command runs again.

    Example: `lawdnet build corpus --out dataset --set val_fraction=0.1`
    """
    with console.options():
        config = build_config(settings, landmarks=landmarks, features=split(features), crop_width=crop_width)
    from pipelines import dataset

    with console.Meter("build", "videos") as meter:
        opened = dataset.build(source, out, config, on_row=_Watch(meter))
        seconds = meter.seconds
    content = describe(opened) | {"seconds": round(seconds, 3)}
    lines = [f"built {out} in {console.duration(seconds)}", *summary(content)]
    if content["segments"]:
        lines.append(f"next: lawdnet train {out} --out RUN")
    console.result(content, lines, as_json)
    if not content["segments"]:
        raise ValueError(f"{source}: no input gave a segment; the reasons are above and in {out}/videos.parquet")


class _Watch:
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
        note = f"{self.frames / max(self.meter.seconds, 1e-3):.0f} frames/s, {self.rejects} rejected"
        self.meter.update(done, total, note=note, event=f"{row['path']}: {outcome}")


def split(text: str) -> tuple[str, ...]:
    """`a, b` as names."""
    return tuple(name for part in text.split(",") if (name := part.strip()))


def build_config(settings: Iterable[str], **options: Any) -> BuildConfig:
    """The configuration of a build from the command's options and `key=value` settings, which win.

    Raises:
        ValueError: an unknown key (the message lists the valid ones), or a value that does not fit.
    """
    import dataclasses

    import yaml

    from lawdnet.data.config import BuildConfig

    defaults = {field.name: field.default for field in dataclasses.fields(BuildConfig)}
    for setting in settings:
        key, sign, text = setting.partition("=")
        key = key.strip()
        if not sign:
            raise ValueError(f"--set {setting!r}: write key=value")
        if key not in defaults:
            raise ValueError(f"--set: unknown key {key!r}; valid are {', '.join(defaults)}")
        options[key] = _typed(key, yaml.safe_load(text), type(defaults[key]))
    return BuildConfig(**options)


def _typed(key: str, value: Any, wanted: type) -> Any:
    if wanted is tuple and isinstance(value, str):
        return split(value)
    if wanted is tuple and isinstance(value, list):
        return tuple(map(str, value))
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise ValueError(f"--set {key}: {value!r} is no {wanted.__name__}")
    return value


if __name__ == "__main__":
    console.run(build)
