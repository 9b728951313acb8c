"""The dataset graph: videos → one actor call per video → segment files, index.parquet, videos.parquet, dataset.json.

Every input leaves a small file in DATASET/.build when it is done. A build that is killed and started again lists the
inputs, skips those, and ends with the same rows: the outputs depend on the inputs and the configuration alone. With
more features, other rules or another split the same folder is completed: no picture is decoded again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.data import ActorPoolStrategy

from lawdnet.data.config import FORMAT_VERSION, BuildConfig
from lawdnet.data.manifest import BUILD, MANIFEST, SEGMENTS, Dataset
from lawdnet.storage import Location, read_json, write_json
from lawdnet.types import RejectReason
from pipelines import resources
from pipelines.actors import STALL_SECONDS, Order, VideoBuilder, extractors_of, feature_marks, lacking
from pipelines.finishing import finish
from pipelines.inputs import list_inputs
from pipelines.outcomes import EMPTY_ROW, STATE, Outcome, read_outcomes, write_outcome

log = logging.getLogger(__name__)

Row = dict[str, Any]
Progress = Callable[[Row, int, int], None]
"""Called with an input's row (with `stored` where an earlier build made it), the number of inputs done, and of all."""


def build(
    source: Location,
    root: Location,
    config: BuildConfig,
    *,
    weights_dir: Path | None = None,
    sync: Path | None = None,
    gpu: float = 0.0,
    on_row: Progress | None = None,
) -> Dataset:
    """Builds, or completes, a dataset.

    Args:
        source: folder of videos, one video, a list file, or a remote prefix; never changed.
        root: folder of the dataset, here or in an object store.
        weights_dir: looked in first for the weights of extractors and landmark sources.
        sync: run or file of a sync network that gives every segment an offset and a confidence.
        gpu: share of a GPU that each worker takes; 0 works on CPUs.

    Raises:
        ValueError: no input, weights that are missing, or `root` was built from another source or with settings that
            decide its pictures.
    """
    source, root = _absolute(source), _absolute(root)
    is_local = isinstance(root, Path) and isinstance(source, Path)
    if is_local and source.is_dir() and root.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{root}: lies inside the source {source}, which is never changed; choose another --out")
    items = list_inputs(source)
    config = _claim(source, root, config)
    extractors = extractors_of(config, str(weights_dir) if weights_dir else None)
    marks = feature_marks(config, extractors)
    sync_sha256 = _check_sync(sync, config)
    outcomes = read_outcomes(root)
    files = {path.name for path in (root / SEGMENTS).glob("*.parquet")}
    work = {item["key"]: _work(item, outcomes.get(item["key"]), files, marks, sync_sha256) for item in items}
    _check_gone(root, outcomes.keys() - work.keys(), outcomes, marks)
    todo = [item | {"to_complete": kind == "complete"} for item in items if (kind := work[item["key"]])]
    done = [outcomes[key].row for key, kind in work.items() if not kind]
    for number, row in enumerate(done, 1):
        if on_row:
            on_row(row | {"stored": True}, number, len(items))
    if todo:
        order = Order(
            config=config,
            root=str(root),
            run=uuid.uuid4().hex,
            weights_dir=str(weights_dir) if weights_dir else None,
            sync=str(sync) if sync else None,
            sync_sha256=sync_sha256,
            stall_seconds=STALL_SECONDS,
        )
        _run(todo, order, root, len(items), gpu, on_row)
    models = {
        name: {
            "dim": made.feature_dim,
            "model_sha256": made.model_sha256,
            "options": dict(config.options.get(name, {})),
        }
        for name, made in extractors.items()
    }
    return finish(root, config, models, str(source))


def _absolute(place: Location) -> Location:
    return place.absolute() if isinstance(place, Path) else place


def _claim(source: Location, root: Location, config: BuildConfig) -> BuildConfig:
    """One folder belongs to one source and one kind of pictures; returns the configuration with what is stored already.

    Features are added and never taken away.
    """
    path = root / BUILD / STATE
    try:
        found = read_json(path)
    except FileNotFoundError:
        if (root / MANIFEST).exists() or (root / SEGMENTS).exists():
            raise ValueError(f"{root}: holds a dataset that no build here made; choose another --out") from None
        found = None
    if found:
        if found["source"] != _name(source):
            raise ValueError(f"{root}: was built from {found['source']}; choose another --out")
        old, new = found["structure"], config.structure()
        if found["format_version"] != FORMAT_VERSION or old != new:
            changed = ", ".join(f"{k} {old.get(k)} → {new[k]}" for k in new if old.get(k) != new[k]) or "the format"
            raise ValueError(f"{root}: was built with other settings ({changed}); choose another --out")
        features = tuple(dict.fromkeys([*found["features"], *config.features]))
        options = {name: found["options"].get(name, {}) for name in features if name not in config.features}
        config = dataclasses.replace(config, features=features, options={**options, **config.options})
    content = {"source": _name(source), "format_version": FORMAT_VERSION, "structure": config.structure()}
    options = {name: dict(config.options[name]) for name in config.features if name in config.options}
    write_json(path, content | {"features": list(config.features), "options": options})
    return config


def _name(source: Location) -> str:
    return str(source.resolve()) if isinstance(source, Path) else str(source)


def _check_sync(sync: Path | None, config: BuildConfig) -> str | None:
    """The SHA-256 of the sync network.

    Raises:
        ValueError: it cannot be read, or hears a feature that is not stored; or one is needed and not there.
    """
    if sync is None:
        if config.face == "sync":
            raise ValueError("face: sync needs a sync network; name a run or file with --sync")
        return None
    from lawdnet.evaluation.sync import SyncScorer  # brings torch, which builds without it do not need

    scorer = SyncScorer(sync)
    if scorer.feature and scorer.feature not in config.features:
        there = ", ".join(config.features)
        raise ValueError(f"{sync}: hears {scorer.feature}, which is not among the features {there}; add it")
    return scorer.sha256


def _work(
    item: Row, outcome: Outcome | None, files: set[str], marks: Mapping[str, str], sync_sha256: str | None
) -> str | None:
    """What an input still needs: `build`, `complete` (features or sync scores), or None."""
    if outcome is None or outcome.inputs != item["inputs"] or outcome.row["status"] == "failed":
        return "build"
    if not outcome.accepted:
        return None
    if f"{outcome.row['video_id']}.parquet" not in files:
        return "build"
    return "complete" if lacking(outcome, marks) or sync_sha256 not in (None, outcome.sync) else None


def _check_gone(root: Location, gone: set[str], outcomes: Mapping[str, Outcome], marks: Mapping[str, str]) -> None:
    """Videos that are no longer in the source stay as they are, so that nothing can be added to them.

    Raises:
        ValueError: one lacks a feature that the dataset is to have.
    """
    short = [outcomes[key].row["path"] for key in gone if outcomes[key].accepted and lacking(outcomes[key], marks)]
    if short:
        text = f"{len(short)} videos, {min(short)} the first, lack a feature and are no longer in the source"
        raise ValueError(f"{root}: {text}; put them back, or choose another --out")


def _run(todo: Sequence[Row], order: Order, root: Location, total: int, gpu: float, on_row: Progress | None) -> None:
    done = total - len(todo)
    waiting = {item["key"]: item for item in todo}
    with resources.cluster(), _errors_allowed():
        workers = len(todo) if resources.can_grow() else max(1, min(resources.workers(gpu), len(todo)))
        graph = ray.data.from_items(list(todo), override_num_blocks=len(todo)).map(
            VideoBuilder,
            fn_constructor_args=(order,),
            compute=ActorPoolStrategy(min_size=1, max_size=workers, max_tasks_in_flight_per_actor=2),
            num_cpus=1,
            num_gpus=gpu or None,
            # a video that kills its worker is counted by the workers themselves, and left alone in the end
            max_restarts=-1,
            max_task_retries=-1,
        )
        for answer in graph.iter_rows():
            del waiting[answer["key"]]
            done += 1
            if on_row:
                on_row(json.loads(answer["row"]), done, total)
    for item in waiting.values():
        done += 1
        row = {**EMPTY_ROW, "path": item["path"], "status": "failed", "reason": str(RejectReason.INTERNAL_ERROR)}
        row |= {"detail": "its outcome was lost; the workers' log says why, and the same build tries it again"}
        write_outcome(root, item["key"], Outcome(list(item["inputs"]), row))
        if on_row:
            on_row(row, done, total)


@contextmanager
def _errors_allowed() -> Iterator[None]:
    """A worker that dies costs its video, not the build, and no video waits for the one before it.

    In training the first would lose samples silently.
    """
    context = ray.data.DataContext.get_current()
    before = context.max_errored_blocks, context.execution_options.preserve_order
    context.max_errored_blocks, context.execution_options.preserve_order = -1, False
    try:
        yield
    finally:
        context.max_errored_blocks, context.execution_options.preserve_order = before
