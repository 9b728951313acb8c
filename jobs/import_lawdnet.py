"""Makes a dataset of the data of LawDNet 2024 or DINet."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs import console
from jobs.inspect_dataset import describe, summary

if TYPE_CHECKING:
    from lawdnet.data.schema import VideoRow


def import_lawdnet(
    training_json: Annotated[
        Path, typer.Argument(help="The published training_json.json. Never changed, like the files it names.")
    ],
    out: Annotated[str, typer.Option(metavar="DATASET", help="Folder of the dataset.", show_default=False)],
    feature: Annotated[
        str, typer.Option(help="What the JSON's deep_speech_list holds: the name it gets.")
    ] = "deepspeech",
    crop_width: Annotated[int, typer.Option(min=20, help="Width of a stored crop in px; others are resized.")] = 320,
    val_fraction: Annotated[float, typer.Option(min=0, max=1, help="Share of the videos kept for validation.")] = 0.05,
    root: Annotated[
        list[str],
        typer.Option(metavar="OLD=NEW", help="The JSON's paths that begin with OLD lie under NEW; may be repeated."),
    ] = [],  # noqa: B006 typer copies it
    model: Annotated[
        Path | None,
        typer.Option(help="The network that made the rows, such as output_graph.pb; lets `merge` know it again."),
    ] = None,
    as_json: console.Json = False,
) -> None:
    """Import a dataset of LawDNet 2024 or DINet: training_json.json, JPG crops, DeepSpeech rows.

    The crops are looked for in split_video_25fps_crop_face beside the JSON. A video that lacks a file or a feature is
    left out, with the reason in videos.parquet. Landmarks are not in the published data and stay unknown.

    Example: `lawdnet import-lawdnet asserts/training_data/training_json.json --out dataset`
    """
    for path in (training_json, model or training_json):
        console.existing(path)
    with console.options():
        from lawdnet.data.config import BuildConfig

        roots = [_pair(text) for text in root]
        config = BuildConfig(features=(feature,), crop_width=crop_width, val_fraction=val_fraction, where=())
    from lawdnet.data.importer import import_lawdnet as import_videos
    from lawdnet.data.transfer import local_folder

    folder = local_folder(out)
    with console.Meter("import", "videos") as meter:
        dataset = import_videos(
            training_json,
            folder,
            config,
            roots=roots,
            model=model,
            on_row=lambda row, done, total: _show(meter, row, done, total),
        )
        seconds = meter.seconds
    content = describe(dataset) | {"seconds": round(seconds, 3)}
    lines = [f"imported {out} in {console.duration(seconds)}", *summary(content)]
    if content["videos"]["accepted"]:
        sets = f"--set audio_feature={feature} --set sync_feature={feature}"
        lines.append(f"next: lawdnet train {shlex.quote(out)} --out RUN {sets}")
    console.result(content, lines, as_json)


def _pair(text: str) -> tuple[str, str]:
    old, sign, new = text.partition("=")
    if not (old and sign and new):
        raise ValueError(f"--root {text!r}: write OLD=NEW, both beginnings of paths")
    return old, new


def _show(meter: console.Meter, row: VideoRow, done: int, total: int) -> None:
    rejected = "" if row.is_accepted else f"{row.path}: {row.reason}, {row.detail}"
    meter.update(done, total, note=console.count(row.segments, "segment"), event=rejected)


if __name__ == "__main__":
    console.run(import_lawdnet)
