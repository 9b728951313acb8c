"""From anybody's videos to a dataset, a run with all stages, and renders of people whom training has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lawdnet.data.config import BuildConfig
from lawdnet.data.manifest import MANIFEST, Dataset
from lawdnet.data.transfer import refuse_inside, source_folder
from lawdnet.report import CurriculumContent, curriculum_report, inspect_report, run_report
from lawdnet.storage import Location, locate, write_json
from lawdnet.tasks.inputs import input_files, list_inputs, resolve
from lawdnet.training import preflight
from lawdnet.training.checkpoint_store import CheckpointStore, metrics_of
from lawdnet.training.config import TrainConfig
from lawdnet.training.options import RunOptions
from pipelines.cluster import resources
from pipelines.render.pairs import PairRecord, RenderPair, with_names
from pipelines.render.render import render
from pipelines.train.train import check_workers
from pipelines.workflows.steps import Begin, Steps, build_step, train_step

MOST_RENDERED = 8
"""Held-out videos that are rendered, each with its own audio and with another's."""


def curriculum(
    source: Location,
    out: Location,
    build_config: BuildConfig,
    config: TrainConfig,
    options: RunOptions,
    *,
    weights_dir: Location | None = None,
    sync: Path | None = None,
    gpu: float = 0.0,
    begin: Begin,
) -> dict[str, Any]:
    """Build a dataset, train a run and render held-out people; resumes where it stopped.

    Args:
        source: videos as `build` takes them, or a dataset, which is used as it is.
        out: gets dataset/ (unless the source is one), run/, renders/, report.html with its parts, and summary.json.
        build_config, weights_dir, sync: as `build` takes them; landmarks and weights are used for the renders too.
        config, options: as `train` takes them.
        gpu: share of a GPU for each worker that builds or renders.
        begin: announces a step.

    Returns:
        The content of summary.json: `dataset`, `run`, `stage`, `figures` (the last validation of the last generator
        stage, with `truth_…` and `baseline_…`), `renders` (as in renders.json), `seconds` of each step, `report`.

    Raises:
        ValueError: what `build`, `train` or `render` refuse, or no video is held out.
    """
    source = locate(source)
    out = locate(out)
    steps = Steps(begin)
    refuse_inside(out, [source])
    _check(source, build_config, config, options)
    with resources.cluster(options.cpus):
        if (source / MANIFEST).exists():
            dataset = Dataset(source)
        else:
            dataset = build_step(
                source, out / "dataset", build_config, steps, weights_dir=weights_dir, sync=sync, gpu=gpu
            )
        pairs = _held_out(dataset)
        train_step(dataset, out / "run", config, options, steps)
        records = _render_step(out, pairs, build_config, steps, weights_dir=weights_dir, gpu=gpu)
    stage = [stage.name for stage in config.stages if stage.kind == "gan"][-1]
    summary = {
        "dataset": str(dataset.root),
        "run": str(out / "run"),
        "stage": stage,
        "figures": metrics_of(CheckpointStore(out / "run" / stage).complete()[-1]),
        "renders": [record.columns() for record in records],
        "seconds": steps.seconds,
        "report": str(out / "report.html"),
    }
    write_json(out / "summary.json", summary)
    _report(out, dataset, summary, pairs, records)
    return summary


def _render_step(
    out: Location,
    pairs: Sequence[RenderPair],
    build_config: BuildConfig,
    steps: Steps,
    *,
    weights_dir: Location | None,
    gpu: float,
) -> list[PairRecord]:
    """Render the pairs with the run's network and the landmarks of the build."""
    with steps.step("render", "rendering held-out people with their own audio and with others'") as on_progress:
        if not pairs:
            return []
        return render(
            out / "run",
            pairs,
            out / "renders",
            landmarks=build_config.landmarks,
            face=build_config.face if build_config.face.isdigit() else "largest",
            weights_dir=weights_dir,
            gpu=gpu,
            on_progress=on_progress,
        )


def _check(source: Location, build_config: BuildConfig, config: TrainConfig, options: RunOptions) -> None:
    """Refuse what would stop the training before a build that takes days.

    Raises:
        ValueError: the training could not begin.
    """
    preflight.with_perceptual(config)
    if options.init and not locate(options.init).exists():
        raise ValueError(f"--init {options.init}: no such file or folder")
    check_workers(options.workers)
    if (source / MANIFEST).exists():
        preflight.check_recipe(config, config.stages, Dataset(source).crop_width, in_curriculum=True)
        return
    preflight.check_recipe(config, config.stages, build_config.crop_width, in_curriculum=True)
    list_inputs(source)
    if missing := {config.audio_feature, config.sync_feature} - {*build_config.features}:
        names = ", ".join(sorted(missing))
        remedy = "add it, or --set train.audio_feature=… and train.sync_feature=…"
        raise ValueError(f"--features: training hears {names}, which would not be stored; {remedy}")
    if not build_config.val_fraction:
        raise ValueError("--set build.val_fraction: no video would be held out; leave it above 0")


def _held_out(dataset: Dataset) -> list[RenderPair]:
    """Some videos that training does not see, each with its own audio and with that of the next one.

    The list is empty where the dataset does not say where its videos are, or they are gone.

    Raises:
        ValueError: no video is held out.
    """
    rows = [row for row in dataset.videos().to_pylist() if row["status"] == "accepted"]
    held_out = [row for row in rows if row["split"] == "val"]
    if not held_out:
        raise ValueError(
            f"{dataset.root}: no video is held out to render; give at least two that can be used, with val_fraction "
            "above 0, or use `lawdnet train` and `lawdnet infer`"
        )
    others = held_out[1:] + [row for row in [*held_out, *rows] if row["video_id"] != held_out[-1]["video_id"]][:1]
    folder = source_folder(dataset)
    files: list[Location] = []
    for own, other in list(zip(held_out, others, strict=False))[:MOST_RENDERED]:
        both = [_location(row["path"], folder) for row in (own, other)]
        there = [location for location in both if location and location.exists()]
        files += there if len(there) == 2 else []
    inputs = list(input_files(files, folder or locate(".")))
    couples = zip(inputs[::2], inputs[1::2], strict=True)
    return with_names([RenderPair.of(own, speaker) for own, other in couples for speaker in (own, other)])


def _location(path: str, folder: Location | None) -> Location | None:
    """Where a video of a dataset is; a merged dataset has no folder and gives whole paths."""
    if folder:
        return resolve(path, folder)
    return locate(path) if path.startswith("/") or "://" in path else None


def _report(
    out: Location,
    dataset: Dataset,
    summary: dict[str, Any],
    pairs: Sequence[RenderPair],
    records: Sequence[PairRecord],
) -> None:
    """Write the page with the table and the videos, and one page each for the dataset and the run."""
    inspect_report(dataset, out / "dataset.html")
    run_report(out / "run", out / "run.html")
    people: dict[str, dict[str, Location]] = {}
    for pair, record in zip(pairs, records, strict=True):
        shown = people.setdefault(pair.video, {"truth": pair.video_location})
        if record.is_rendered:
            is_own = pair.video_source == pair.speech_source
            shown["own words" if is_own else f"words of {pair.speech}"] = out / "renders" / record.out
    counts = dataset.info["counts"]
    curriculum_report(
        out / "report.html",
        CurriculumContent(
            stage=summary["stage"],
            metrics=summary["figures"],
            people=people,
            seconds=summary["seconds"],
            refused={record.out: record.detail for record in records if not record.is_rendered},
            facts={
                "Dataset": f"{counts['accepted']} videos, {counts['segments']} segments, {counts['frames']} frames",
                "Run": summary["run"],
            },
            pages={"the dataset": out / "dataset.html", "the training": out / "run.html"},
        ),
    )
