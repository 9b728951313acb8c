"""Stages on Ray Train: one trainer per stage, which resumes where the stage stopped.

RUN/run.json holds the settings; RUN/STAGE/ holds checkpoints, metrics.jsonl and samples/. RUN is a folder that all
machines share, or lies in an object store.
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
from lawdnet.face.geometry import stage_size
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
from lawdnet.training.virtual_ranks import VirtualRanks, Workers, virtual_ranks_of
from pipelines.cluster import resources
from pipelines.train.elastic import scaling
from pipelines.train.health import ENVIRONMENT, LeaveOutFailing, torch_config
from pipelines.train.notice import REQUEST, SaveBeforeResize, saved_when_stopped
from pipelines.train.validate import check_landmarks
from pipelines.train.worker import STOPPED, Job, work

__all__ = ["METRICS", "SAMPLES", "RunOptions", "Workers", "lineage", "train"]

log = logging.getLogger(__name__)

MAX_FAILURES = 3
"""Restarts without a new checkpoint in between, after which a stage fails."""
FORMAT = 2
"""Version of run.json; since 2, checkpoints and logs count optimiser steps."""
DRIVER = ".driver"
"""Lock of the driver that is training; see `lawdnet.tasks.lock`."""
START_SECONDS = "20"
"""How long elastic training waits for the largest number of workers before it starts with fewer."""
PX_PER_THREAD = 32_000
"""Pixels of a batch that keep a thread of a CPU busy. With fewer, threads wait for each other longer than they compute:
8,000 in two threads that sleep while they wait are half as fast as in one, 130,000 a quarter faster."""
OnEpoch = Callable[[Stage, dict[str, Any]], None]
"""Called in the driver with the mean metrics of every epoch as they appear."""


def train(
    dataset: Dataset,
    run: str | Location,
    config: TrainConfig,
    options: RunOptions | None = None,
    *,
    on_epoch: OnEpoch | None = None,
) -> Location:
    """Train every stage that is not finished yet, each from its parent; returns the run.

    Raises:
        ValueError: a parent stage is missing or does not fit, the dataset lacks a feature or a training split or has
            crops that are too narrow, a loss lacks its weights, the run belongs to other settings or to older code, or
            another driver is training it.
        GateError: a stage has not passed the gates that the next one waits for.
    """
    run = locate(run)
    options = options or RunOptions()
    if _is_inside(run, dataset.root):
        raise ValueError(f"{run}: lies inside the dataset; choose another --out")
    workers = options.workers
    check_workers(workers)
    if not dataset.segments("train"):
        raise ValueError(f"{dataset.root}: no training segments; `lawdnet inspect` shows what was rejected and why")
    for name in (config.audio_feature, config.sync_feature):
        dataset.check_feature(name)
    config = preflight.with_perceptual(config)
    with lock.held(run / DRIVER):  # first, so that nobody changes what is read of the run
        _read_run(run)
        todo = [stage for stage in config.stages if preflight.epochs_done(run / stage.name) < stage.epochs]
        preflight.check_recipe(config, todo, dataset.crop_width)
        preflight.check_chain(run, config, todo, lineage(dataset), options.init)
        if options.validate_every and dataset.segments("val") and any(stage.kind == "gan" for stage in todo):
            check_landmarks(options)
        virtual_ranks = _claim(run, dataset, config, options)
        preflight.check_gates(run, config, options, before=todo[:1])
        if todo:
            with resources.cluster(options.cpus) if workers.most else nullcontext():
                for stage in todo:
                    preflight.check_gates(run, config, options, before=[stage])
                    _train_stage(stage, dataset, run, config, options, virtual_ranks[stage.name], on_epoch)
    return run


def _is_inside(run: Location, folder: Location) -> bool:
    return isinstance(run, Path) and isinstance(folder, Path) and run.resolve().is_relative_to(folder.resolve())


def check_workers(workers: Workers) -> None:
    """Check that there is room for the workers.

    Raises:
        ValueError: there is no cluster, and this machine has too few CPUs.
    """
    if not resources.can_grow() and workers.least > (os.cpu_count() or 1):
        raise ValueError(
            f"--workers {workers.least}: this machine has {os.cpu_count()} CPUs; name a cluster: "
            "lawdnet --address http://HEAD:8265 …"
        )


FREE = (
    "precision",
    "channels_last",
    "compile",
    "share_every",
    "max_skipped",
    "plateau_steps",
    "sample_every",
    "perceptual_weights",
    "stages",
)
"""Settings that may change when a run is resumed; the number of epochs of a stage may change too."""


def _claim(run: Location, dataset: Dataset, config: TrainConfig, options: RunOptions) -> dict[str, VirtualRanks]:
    """Write run.json, unless the run belongs to another dataset or to other settings.

    Returns:
        The virtual ranks of each stage, which a stage keeps once it has begun.

    Raises:
        ValueError: the dataset, the networks, or the rows of stages that have begun are not those of the run.
    """
    segments = len(dataset.segments("train"))
    virtual_ranks = {
        stage.name: virtual_ranks_of(stage, options.workers, config.sample_spec(stage).windows, segments)
        for stage in config.stages
    }
    content: dict[str, Any] = {
        "format": FORMAT,
        "dataset": str(dataset.root),
        "dataset_hash": dataset.hash,
        "code_version": __version__,
        "config": config.to_dict(),
        "virtual_ranks": {name: one.count for name, one in virtual_ranks.items()},
        "splits": {name: one.split for name, one in virtual_ranks.items()},
        "gates": list(options.gates),
    }
    if found := _read_run(run):
        if found["dataset_hash"] != dataset.hash:
            raise ValueError(f"{run}: was trained on another dataset ({found['dataset']}); choose another --out")
        old, new = found["config"], content["config"]
        changed = [key for key in new if key not in FREE and key in old and old[key] != new[key]]
        begun = {row["name"]: row for row in old["stages"] if CheckpointStore(run / row["name"]).complete()}
        rows = {row["name"]: row for row in new["stages"]}
        changed += [name for name in begun.keys() & rows.keys() if _fixed(begun[name]) != _fixed(rows[name])]
        if changed:
            raise ValueError(f"{run}: was started with other settings ({', '.join(changed)}); choose another --out")
        content["config"]["stages"] = sorted((begun | rows).values(), key=lambda row: config.index(row["name"]))
        for name, count in found["virtual_ranks"].items():
            if name in begun:
                split = found.get("splits", {}).get(name, 1)
                virtual_ranks[name] = VirtualRanks(count=count, split=split)
                content["virtual_ranks"][name], content["splits"][name] = count, split
    write_json(run / RUN, content)
    return virtual_ranks


def _read_run(run: Location) -> dict[str, Any] | None:
    """Read run.json; None if there is none.

    Raises:
        ValueError: it is damaged, or was written by older code.
    """
    path = run / RUN
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); delete it to resume from the checkpoints") from None
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{run}: was started by another version of lawdnet and cannot be resumed; choose another --out, and add "
            f"--init {run} to start from its generator"
        )
    return content


def _fixed(row: dict[str, Any]) -> dict[str, Any]:
    """The settings of a stage that may not change once it has begun."""
    return {key: value for key, value in row.items() if not key.startswith("epochs_")}


def lineage(dataset: Dataset) -> Lineage:
    """What a checkpoint records about its dataset."""
    return Lineage(
        dataset_hash=dataset.hash,
        crop_width=dataset.crop_width,
        landmarks=dataset.info["config"]["landmarks"],
        features=dataset.info["extractors"],
    )


def _train_stage(
    stage: Stage,
    dataset: Dataset,
    run: Location,
    config: TrainConfig,
    options: RunOptions,
    virtual_ranks: VirtualRanks,
    on_epoch: OnEpoch | None,
) -> None:
    workers = options.workers.at_most(virtual_ranks.count)
    if workers != options.workers:
        log.warning(
            "%s: a step takes %d batches, so at most %d workers can train; see global_batch",
            stage.name,
            virtual_ranks.count,
            virtual_ranks.count,
        )
    job = _make_job(stage, dataset, run, config, dataclasses.replace(options, workers=workers), virtual_ranks)
    stopped = run / stage.name / STOPPED
    for left in (stopped, run / stage.name / REQUEST):
        left.unlink(missing_ok=True)
    here = saved_when_stopped(run / stage.name, trains_here=not workers.most)
    with here, _followed(run / stage.name / METRICS, lambda row: on_epoch(stage, row) if on_epoch else None):
        _fit(job, CheckpointStore(run / stage.name))
    if stopped.exists():
        raise RuntimeError(f"{stage.name} stopped: {stopped.read_text(encoding='utf8')}")


def _make_job(
    stage: Stage, dataset: Dataset, run: Location, config: TrainConfig, options: RunOptions, virtual_ranks: VirtualRanks
) -> Job:
    parent = preflight.parent_of(stage, run, config, options.init)
    has_sync = stage.weights.sync > 0 and stage.kind == "gan"
    syncnet = preflight.finished(run, "syncnet", stage.name) if has_sync else None
    origin = dataclasses.replace(
        lineage(dataset),
        parent=preflight.name_in(run, parent) if parent else None,
        parent_hash=preflight.weights_hash(parent) if parent else None,
        syncnet_hash=preflight.weights_hash(syncnet) if syncnet else None,
    )
    most = options.workers.most
    loaders = options.loaders
    if loaders is None:
        loaders = resources.loaders(most, gpu=options.gpu) if most else 0
    return Job(
        run=str(run),
        stage=stage.name,
        config=config,
        options=options,
        lineage=origin,
        dataset=str(dataset.root),
        virtual_ranks=virtual_ranks,
        start=str(parent) if parent else None,
        syncnet=str(syncnet) if syncnet else None,
        loaders=loaders,
        threads=_threads(stage, most) if most else None,
    )


def _threads(stage: Stage, workers: int) -> int:
    """Threads of each worker on a CPU: its share of this machine's cores, as far as its batches keep them busy."""
    height, width = stage_size(stage.mouth_px)
    busy = stage.batch_size * stage.num_frames * height * width // PX_PER_THREAD
    return max(1, min((os.cpu_count() or 1) // workers, busy))


def _fit(job: Job, store: CheckpointStore) -> None:
    """Train to the end of the stage. Lost workers are replaced for as long as the stage makes progress."""
    workers = job.options.workers
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    if workers.is_elastic:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", START_SECONDS)
    while True:
        before = store.position()
        # our checkpoints lie in the run; nobody needs what Ray keeps in a folder of its own
        with tempfile.TemporaryDirectory(prefix="lawdnet-", ignore_cleanup_errors=True) as scratch:
            trainer = TorchTrainer(
                work,
                train_loop_config={"job": job},
                scaling_config=scaling(workers, gpu=job.options.gpu, loaders=job.loaders),
                torch_config=torch_config() if workers.most else None,
                run_config=RunConfig(
                    name=f"{locate(job.run).name}.{job.stage}",
                    storage_path=scratch,
                    failure_config=FailureConfig(max_failures=MAX_FAILURES),
                    callbacks=_callbacks(store, workers),
                    worker_runtime_env={"env_vars": ENVIRONMENT} if job.options.gpu else None,
                ),
            )
            try:
                trainer.fit()
            except WorkerGroupError as error:
                if store.position() <= before:
                    raise
                reason = next(iter(error.worker_failures.values()), error)
                log.warning("%s: workers were lost %d times (%s); continuing", job.stage, MAX_FAILURES + 1, reason)
                continue
        return


def _callbacks(store: CheckpointStore, workers: Workers) -> list[Any]:
    """What Ray Train's controller does for us."""
    if not workers.is_elastic:  # a fixed number may need the node that failed
        return []
    return [SaveBeforeResize(str(store.folder)), LeaveOutFailing(resources.away_from(resources.PREPROCESS))]


def _followed(path: Location, on_row: Callable[[dict[str, Any]], None]) -> AbstractContextManager[None]:
    """Hand the file's new epoch rows to `on_row` while the block runs, and log the alarms of workers."""
    tail = Tail(path)

    def drain() -> None:
        for row in tail.rows():
            if row.get("kind") == "epoch":
                on_row(row)
            elif row.get("kind") == "alarm":
                log.warning("%s", row["text"])

    return repeated(drain, tail.period)
