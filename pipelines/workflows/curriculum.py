"""From anybody's videos to a dataset, all stages, and people who say what they never said."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lawdnet.data.config import BuildConfig
from lawdnet.data.manifest import MANIFEST, Dataset
from lawdnet.data.transfer import refuse_inside, source_folder
from lawdnet.report import (
    CurriculumContent,
    curriculum_report,
    inspect_report,
    run_report,
)
from lawdnet.storage import Location, locate, write_json
from lawdnet.tasks.inputs import list_inputs, named, resolve
from lawdnet.training import preflight
from lawdnet.training.checkpoint_store import CheckpointStore, metrics_of
from lawdnet.training.config import TrainConfig
from lawdnet.training.options import RunOptions
from pipelines.cluster import resources
from pipelines.render.pairs import pair, with_names
from pipelines.render.render import render
from pipelines.train.train import check_workers
from pipelines.workflows.steps import Begin, Steps, build_step, train_step

Row = dict[str, Any]

MOST_RENDERED = 8
"""Held-out videos that a curriculum renders, each with its own speech and with another's."""


def curriculum(
    source: Location,
    out: Location,
    build_config: BuildConfig,
    config: TrainConfig,
    running: RunOptions,
    *,
    weights_dir: Path | None = None,
    sync: Path | None = None,
    gpu: float = 0.0,
    begin: Begin,
) -> Row:
    """From videos, or a dataset, to a trained run and renders of people whom it has not seen; goes on where it stopped.

    Args:
        source: videos as `build` takes them, or a dataset, which is used as it is.
        out: gets dataset/ (unless there is one), run/, renders/, report.html with its parts, and summary.json.
        build_config, weights_dir, sync: as `build` takes them; landmarks and weights are those of the renders too.
        config, running: as `train` takes them.
        gpu: share of a GPU for each worker that builds or renders.

    Returns:
        The content of summary.json: `dataset`, `run`, `stage`, `figures` (the last validation of the last generator
        stage, with `truth_…` and `baseline_…`), `renders` (rows of `render`), `seconds` of each step, `report`.

    Raises:
        ValueError: what `build`, `train` or `render` refuse, or no video is held out.
    """
    source, out, steps = locate(source), locate(out), Steps(begin)
    refuse_inside(out, [source])
    _check(source, build_config, config, running)
    with resources.cluster(running.workers.most + 1):
        if (source / MANIFEST).exists():
            dataset = Dataset(source)
        else:
            options = {"weights_dir": weights_dir, "sync": sync, "gpu": gpu}
            dataset = build_step(source, out / "dataset", build_config, steps, **options)
        held_out = _held_out(dataset)
        train_step(dataset, out / "run", config, running, steps)
        with steps.step("render", "lip-syncing people who were held out, to their own words and to others'") as on_row:
            face = build_config.face if build_config.face.isdigit() else "largest"
            given: Row = {"landmarks": build_config.landmarks, "face": face, "weights_dir": weights_dir, "gpu": gpu}
            rows = render(out / "run", held_out, out / "renders", on_row=on_row, **given) if held_out else []
    stage = [stage.name for stage in config.stages if stage.kind == "gan"][-1]
    summary = {
        "dataset": str(dataset.root),
        "run": str(out / "run"),
        "stage": stage,
        "figures": metrics_of(CheckpointStore(out / "run" / stage).complete()[-1]),
        "renders": rows,
        "seconds": steps.seconds,
        "report": str(out / "report.html"),
    }
    write_json(out / "summary.json", summary)
    _report_curriculum(out, dataset, summary, held_out)
    return summary


def _check(source: Location, build_config: BuildConfig, config: TrainConfig, running: RunOptions) -> None:
    """What would stop the training is said before a build of days.

    Raises:
        ValueError: it would stop.
    """
    preflight.with_perceptual(config)
    if running.init and not locate(running.init).exists():
        raise ValueError(f"--init {running.init}: no such file or folder")
    check_workers(running.workers)
    if (source / MANIFEST).exists():
        return
    list_inputs(source)
    if missing := {config.audio_feature, config.sync_feature} - {*build_config.features}:
        names = ", ".join(sorted(missing))
        raise ValueError(f"--features: training hears {names}, which would not be stored; add it, or --set "
                         "train.audio_feature=… and train.sync_feature=…")  # fmt: skip
    if not build_config.val_fraction:
        raise ValueError("--set build.val_fraction: no video would be held out; leave it above 0")


def _held_out(dataset: Dataset) -> list[Row]:
    """Some videos that training does not see, each with its own speech and with that of the next one.

    None where the dataset does not say where its videos are, or they are gone.

    Raises:
        ValueError: no video is held out.
    """
    rows = [row for row in dataset.videos().to_pylist() if row["status"] == "accepted"]
    held_out = [row for row in rows if row["split"] == "val"]
    if not held_out:
        raise ValueError(f"{dataset.root}: no video is held out to render; give two or more that can be used, with "
                         "val_fraction above 0, or use `lawdnet train` and `lawdnet infer`")  # fmt: skip
    others = held_out[1:] + [row for row in [*held_out, *rows] if row["video_id"] != held_out[-1]["video_id"]][:1]
    shown = list(zip(held_out, others, strict=False))[:MOST_RENDERED]
    folder = source_folder(dataset)
    couples = [(_place(own["path"], folder), _place(other["path"], folder)) for own, other in shown]
    there = [place for couple in couples if all(place and place.exists() for place in couple) for place in couple]
    if not there:
        return []
    inputs = list(named([place for place in there if place], folder or locate(".")))
    both = zip(inputs[::2], inputs[1::2], strict=True)
    return with_names([pair(own, speaker) for own, other in both for speaker in (own, other)])


def _place(path: str, folder: Location | None) -> Location | None:
    """Where a video of a dataset is; a merged dataset has no folder and names them as a whole."""
    if folder:
        return resolve(path, folder)
    return locate(path) if path.startswith("/") or "://" in path else None


def _report_curriculum(out: Location, dataset: Dataset, summary: Row, held_out: list[Row]) -> None:
    """The page with the table and the videos, and one each for the dataset and the run."""
    inspect_report(dataset, out / "dataset.html")
    run_report(out / "run", out / "run.html")
    people: dict[str, dict[str, Location]] = {}
    for given, row in zip(held_out, summary["renders"], strict=True):
        truth, speech = (locate(os.fsdecode(given[name])) for name in ("video_source", "speech_source"))
        shown = people.setdefault(row["video"], {"truth": truth})
        if row["status"] == "rendered":
            shown["own words" if truth == speech else f"words of {row['speech']}"] = out / "renders" / row["out"]
    counts = dataset.info["counts"]
    curriculum_report(
        out / "report.html",
        CurriculumContent(
            stage=summary["stage"],
            metrics=summary["figures"],
            people=people,
            seconds=summary["seconds"],
            refused={row["out"]: row["detail"] for row in summary["renders"] if row["status"] != "rendered"},
            facts={
                "Dataset": f"{counts['accepted']} videos, {counts['segments']} segments, {counts['frames']} frames",
                "Run": summary["run"],
            },
            pages={"the dataset": out / "dataset.html", "the training": out / "run.html"},
        ),
    )
