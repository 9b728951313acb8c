"""The options and arguments that several commands share, each defined once with its help text.

A command takes them as `landmarks: options.Landmarks = "auto"`; the default stands in its signature.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# Every command

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for programs.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and the library's log messages.")]
Settings = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one setting; may be repeated. An unknown key lists the valid ones.",
        show_default=False,
    ),
]

# Inputs and outputs

Dataset = Annotated[
    str, typer.Argument(help="A dataset: a folder made by `lawdnet build`, or an s3://… or gs://… URI. Never changed.")
]
LocalDataset = Annotated[
    str, typer.Option(metavar="DATASET", help="Local folder of the new dataset.", show_default=False)
]
Checkpoint = Annotated[
    str,
    typer.Argument(
        help="A run, a stage or checkpoint folder in it, or a published .pth file; also as an s3://… or gs://… URI."
    ),
]

# Faces, features and the networks that compute them

Landmarks = Annotated[
    str,
    typer.Option(
        help="Where face landmarks come from: openface (the .csv beside each video), mediapipe, face-alignment, or "
        "auto (the .csv where there is one, otherwise mediapipe)."
    ),
]
Face = Annotated[str, typer.Option(help="Which face to use if there are several: largest, or a number from 0.")]
Features = Annotated[
    str,
    typer.Option(help="Audio features to store, separated by commas: mel, deepspeech, deepspeech2, hubert, whisper."),
]
WeightsDir = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder with the weights of landmark and feature networks, searched first, or an s3://… or gs://… URI, "
        "from which published files are fetched.",
    ),
]
ScoringSync = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN|FILE",
        help="Sync network that scores the offset and confidence of every segment: a run with a syncnet stage, or "
        "syncnet_v2.model.",
    ),
]
MeasuringSync = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN|FILE",
        help="Sync network that measures lip sync: a run, or syncnet_v2.model. Best is one that the generator was not "
        "trained against.",
    ),
]
Device = Annotated[str, typer.Option(help="Device for the networks: auto, cpu, cuda or cuda:N.")]
GpuShare = Annotated[
    float, typer.Option(min=0, help="Share of a GPU for each worker, such as 0.25 for four workers per GPU; 0: CPU.")
]

NetworkGpuShare = Annotated[
    float,
    typer.Option(
        min=0,
        help="Share of a GPU for each process that computes networks (face-alignment, hubert, whisper, deepspeech, "
        "--sync), such as 0.25 for four per GPU. Workers on CPUs decode, crop and encode meanwhile. 0: everything on "
        "CPUs, in one process per video.",
    ),
]

# Rules and groups

Where = Annotated[
    list[str],
    typer.Option(
        metavar="RULE",
        help="Use only segments whose scores meet this rule, such as 'face_px>=120'; may be repeated. `lawdnet select "
        "--help` describes rules.",
        show_default=False,
    ),
]
GroupBy = Annotated[
    str,
    typer.Option(
        metavar="folder|regex:PATTERN|column:NAME|face",
        help="Keep all videos of a group, such as those of one person, on one side of the split: those in one folder; "
        "those in whose paths the pattern (its first group, or all of it) matches the same text; those with the same "
        "text in this column of SOURCE, a .csv or .parquet list; or those that show the same face (needs the extra "
        "evaluation; face<=0.38 states the distance).",
        show_default=False,
    ),
]

# Training

Preset = Annotated[
    str,
    typer.Option(
        help="full: the published sizes, for GPUs; small: trains on a laptop; published: LawDNet 2024's own numbers."
    ),
]
Workers = Annotated[
    str,
    typer.Option(
        metavar="N|MIN:MAX",
        help="Training processes, with one GPU each if --gpu. MIN:MAX takes what the cluster has and adapts as nodes "
        "come and go; the result is the same. 0 trains in this process, without Ray.",
    ),
]
Init = Annotated[
    str,
    typer.Option(
        metavar="OLD.pth|RUN",
        help="Start the first generator stage from the generator in this published file or earlier run.",
    ),
]
Gates = Annotated[
    list[str],
    typer.Option(
        "--gate",
        metavar="RULE",
        help="Start the next stage only if the last one reached this on held-out videos, such as "
        "'opening_correlation>=0.5'; may be repeated.",
        show_default=False,
    ),
]
Loggers = Annotated[
    str,
    typer.Option("--logger", help="Where to log metrics, separated by commas: jsonl (always on), wandb, tensorboard."),
]
