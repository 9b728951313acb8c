"""Converts the training data of LawDNet 2024 or DINet into a dataset."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs import console, options
from jobs.inspect_dataset import describe, summary

if TYPE_CHECKING:
    from lawdnet.data.schema import VideoRow


def import_lawdnet(
    training_json: Annotated[
        Path, typer.Argument(help="The published training_json.json. It and the files it names are never changed.")
    ],
    out: options.LocalDataset,
    feature: Annotated[
        str, typer.Option(help="Feature that the JSON's deep_speech_list holds: deepspeech or deepspeech2.")
    ] = "deepspeech",
    crop_width: Annotated[
        int, typer.Option(min=20, help="Width of a stored crop in px; crops of other sizes are resized.")
    ] = 320,
    val_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the videos held out for validation.")
    ] = 0.05,
    root: Annotated[
        list[str],
        typer.Option(metavar="OLD=NEW", help="Replace OLD by NEW at the start of the JSON's paths; may be repeated."),
    ] = [],  # noqa: B006 typer copies it
    model: Annotated[
        Path | None,
        typer.Option(
            help="Weights that computed the features, such as output_graph.pb, so that `merge` can compare them."
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Import the training data of LawDNet 2024 or DINet: training_json.json, JPG crops, DeepSpeech features.

    Crops are read from split_video_25fps_crop_face beside the JSON. A video that lacks a file or a feature is left out,
    with the reason in videos.parquet. The published data has no landmarks, so they stay unknown.

    Example: `lawdnet import-lawdnet asserts/training_data/training_json.json --out dataset`
    """
    for path in (training_json, model or training_json):
        console.existing(path)
    with console.parsing_options():
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
        raise ValueError(f"--root {text!r}: write OLD=NEW, the start of paths in the JSON and its replacement")
    return old, new


def _show(meter: console.Meter, row: VideoRow, done: int, total: int) -> None:
    rejected = "" if row.is_accepted else f"{row.path}: {row.reason}, {row.detail}"
    meter.update(done, total, note=console.count(row.segments, "segment"), event=rejected)


if __name__ == "__main__":
    console.run(import_lawdnet)
