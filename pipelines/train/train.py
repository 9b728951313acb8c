"""Stages on Ray Train: one trainer per stage, each of which goes on where the stage was left.

RUN/run.json holds what was asked for; RUN/STAGE/ holds checkpoints, metrics.jsonl and samples/. RUN is a folder that
all machines share, or lies in an object store.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, RunConfig, WorkerGroupError
from ray.train.torch import TorchTrainer

from lawdnet import __version__
from lawdnet.data.manifest import Dataset
from lawdnet.models.saved import RUN
from lawdnet.storage import Location, locate, write_json
from lawdnet.tasks import lock
from lawdnet.tasks.background import repeated
from lawdnet.training import preflight
from lawdnet.training.checkpoint import Lineage
from lawdnet.training.checkpoint_store import CheckpointStore
from lawdnet.training.config import TrainConfig
from lawdnet.training.loggers import METRICS, SAMPLES
from lawdnet.training.options import RunOptions
from lawdnet.training.stages import Stage
from lawdnet.training.tail import Tail
from lawdnet.training.virtual_ranks import Workers, count_lanes
from pipelines.cluster import resources
from pipelines.train.elastic import scaling
from pipelines.train.worker import STOPPED, Job, work

__all__ = ["METRICS", "SAMPLES", "RunOptions", "Workers", "lineage", "train"]

log = logging.getLogger(__name__)

MAX_FAILURES = 3
"""Restarts without a new checkpoint in between, before a stage is given up."""
DRIVER = ".driver"
"""Mark of the training that is at work; see `lawdnet.tasks.lock`."""
START_SECONDS = "20"
"""How long elastic training waits for as many workers as it was promised, before it starts with fewer."""
OnEpoch = Callable[[Stage, dict[str, Any]], None]
"""Called in the driver with every epoch's mean metrics as they appear."""


def train(
    dataset: Dataset, run: str | Location, config: TrainConfig, running: RunOptions | None = None, *,
    on_epoch: OnEpoch | None = None,
) -> Location:  # fmt: skip
    """Trains every stage that is not finished yet, each from the one it names; returns the run.

    Raises:
        ValueError: a parent stage is missing or does not fit, the dataset lacks a feature or a training split, or the
            run belongs to other settings, or another driver is at work on it.
        GateError: a stage has not passed the gates that the next one waits behind.
    """
    run, running = locate(run), running or RunOptions()
    if isinstance(run, Path) and isinstance(dataset.root, Path) and run.resolve().is_relative_to(
            dataset.root.resolve()):  # fmt: skip
        raise ValueError(f"{run}: lies inside the dataset; choose another --out")
    workers = running.workers
    check_workers(workers)
    if not dataset.segments("train"):
        raise ValueError(f"{dataset.root}: no training segments; `lawdnet inspect` shows what was rejected and why")
    for name in (config.audio_feature, config.sync_feature):
        dataset.feature_dim(name)
    config = preflight.with_perceptual(config)
    todo = [stage for stage in config.stages if preflight.epochs_done(run / stage.name) < stage.epochs]
    preflight.check_chain(run, config, todo, lineage(dataset), running.init)
    with lock.held(run / DRIVER):
        lanes = _claim(run, dataset, config, running)
        preflight.check_gates(run, config, running, before=todo[:1])
        if todo:
            with resources.cluster(workers.most + 1) if workers.most else nullcontext():
                for stage in todo:
                    preflight.check_gates(run, config, running, before=[stage])
                    _train_stage(stage, dataset, run, config, running, lanes[stage.name], on_epoch)
    return run


def check_workers(workers: Workers) -> None:
    """There is room for them.

    Raises:
        ValueError: this machine alone is to do the work, and has too few CPUs.
    """
    if not resources.can_grow() and workers.least > (os.cpu_count() or 1):
        raise ValueError(f"--workers {workers.least}: this machine has {os.cpu_count()} CPUs; name a cluster: "
                         "lawdnet --address http://HEAD:8265 …")  # fmt: skip


FREE = ("precision", "channels_last", "compile", "share_every", "max_skipped", "plateau_steps", "sample_every",
        "perceptual_weights", "stages")  # fmt: skip
"""Settings that may change while a run goes on; of a stage, the number of its epochs."""


def _claim(run: Location, dataset: Dataset, config: TrainConfig, running: RunOptions) -> dict[str, int]:
    """A run belongs to one dataset, one set of networks, and the rows of the stages it has begun.

    Returns:
        the lanes of each stage, which it keeps once it has begun.
    """
    lanes = {stage.name: count_lanes(stage, running.workers) for stage in config.stages}
    content: dict[str, Any] = {
        "dataset": str(dataset.root),
        "dataset_hash": dataset.hash,
        "code_version": __version__,
        "config": config.to_dict(),
        "lanes": lanes,
        "gates": list(running.gates),
    }
    path = run / RUN
    if path.exists():
        found = _read_run(path)
        if found["dataset_hash"] != dataset.hash:
            raise ValueError(f"{run}: was trained on another dataset ({found['dataset']}); choose another --out")
        old, new = found["config"], content["config"]
        changed = [key for key in new if key not in FREE and key in old and old[key] != new[key]]
        begun = {row["name"]: row for row in old["stages"] if CheckpointStore(run / row["name"]).complete()}
        rows = {row["name"]: row for row in new["stages"]}
        changed += [name for name in begun.keys() & rows.keys() if _bound(begun[name]) != _bound(rows[name])]
        if changed:
            raise ValueError(f"{run}: was started with other settings ({', '.join(changed)}); choose another --out")
        content["config"]["stages"] = sorted((begun | rows).values(), key=lambda row: config.index(row["name"]))
        kept = {name: count for name, count in found.get("lanes", {}).items() if name in begun}
        content["lanes"] = lanes = lanes | kept
    write_json(path, content)
    return lanes


def _read_run(path: Location) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); delete it to go on from the checkpoints") from None
    return content


def _bound(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("epochs_")}


def lineage(dataset: Dataset) -> Lineage:
    """What a checkpoint says of the dataset it comes from."""
    return Lineage(
        dataset_hash=dataset.hash,
        crop_width=dataset.crop_width,
        landmarks=dataset.info["config"]["landmarks"],
        features=dataset.info["extractors"],
    )


def _train_stage(
    stage: Stage, dataset: Dataset, run: Location, config: TrainConfig, running: RunOptions, lanes: int,
    on_epoch: OnEpoch | None,
) -> None:  # fmt: skip
    workers = running.workers.at_most(lanes)
    if workers != running.workers:
        log.warning("%s: takes %d batches a step, so that no more than %d workers have any; see global_batch",
                    stage.name, lanes, lanes)  # fmt: skip
    job = _make_job(stage, dataset, run, config, dataclasses.replace(running, workers=workers), lanes)
    stopped = run / stage.name / STOPPED
    if stopped.exists():
        stopped.unlink()
    with _followed(run / stage.name / METRICS, lambda row: on_epoch(stage, row) if on_epoch else None):
        _fit(job, CheckpointStore(run / stage.name))
    if stopped.exists():
        raise RuntimeError(f"{stage.name} stopped: {stopped.read_text(encoding='utf8')}")


def _make_job(
    stage: Stage, dataset: Dataset, run: Location, config: TrainConfig, running: RunOptions, lanes: int
) -> Job:
    parent = preflight.of(stage, run, config, running.init)
    has_sync = stage.weights.sync > 0 and stage.kind == "gan"
    syncnet = preflight.finished(run, "syncnet", stage.name) if has_sync else None
    origin = dataclasses.replace(
        lineage(dataset),
        parent=preflight.name_in(run, parent) if parent else None,
        parent_hash=preflight.weights_hash(parent) if parent else None,
        syncnet_hash=preflight.weights_hash(syncnet) if syncnet else None,
    )
    return Job(
        run=str(run), stage=stage.name, config=config, running=running, lineage=origin,
        segments=dataset.segments("train"), held_out=dataset.segments("val"), lanes=lanes,
        start=str(parent) if parent else None,
        syncnet=str(syncnet) if syncnet else None,
        threads=max(1, (os.cpu_count() or 1) // running.workers.most) if running.workers.most else None,
    )  # fmt: skip


def _fit(job: Job, shelf: CheckpointStore) -> None:
    """Trains to the stage's end. Workers that are lost are replaced for as long as the stage gets on."""
    workers = job.running.workers
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    if workers.is_elastic:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", START_SECONDS)
    while True:
        before = shelf.place()
        # checkpoints are ours, in the run; what Ray keeps in a folder of its own is of no use to anyone
        with tempfile.TemporaryDirectory(prefix="lawdnet-", ignore_cleanup_errors=True) as scratch:
            trainer = TorchTrainer(
                work,
                train_loop_config={"job": job},
                scaling_config=scaling(workers, gpu=job.running.gpu),
                run_config=RunConfig(
                    name=f"{locate(job.run).name}.{job.stage}",
                    storage_path=scratch,
                    failure_config=FailureConfig(max_failures=MAX_FAILURES),
                ),
            )
            try:
                trainer.fit()
            except WorkerGroupError as error:
                if shelf.place() <= before:
                    raise
                log.warning("%s: workers were lost %d times (%s); going on", job.stage, MAX_FAILURES + 1,
                            next(iter(error.worker_failures.values()), error))  # fmt: skip
                continue
        return


def _followed(path: Location, on_row: Callable[[dict[str, Any]], None]) -> AbstractContextManager[None]:
    """Hands the file's new epoch lines to `on_row` while the block runs."""
    tail = Tail(path)

    def drain() -> None:
        for row in tail.rows():
            if row.get("kind") == "epoch":
                on_row(row)

    return repeated(drain, tail.period)
