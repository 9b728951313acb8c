"""Stages on Ray Train: one trainer per stage, each of which resumes under its own name.

RUN/run.json holds what was asked for; RUN/STAGE/ belongs to Ray Train (checkpoints, its snapshot) and to the loggers
(metrics.jsonl, samples/).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model
from torch import nn

from lawdnet import __version__
from lawdnet.data.manifest import Dataset, SegmentRef
from lawdnet.data.sampling import steps_per_epoch
from lawdnet.models.perceptual import VGG19Features
from lawdnet.models.saved import META, RUN, STATE, load_syncnet, read_meta, stage_checkpoints
from lawdnet.storage import write_json
from lawdnet.training import checkpoint
from lawdnet.training.checkpoint import Lineage
from lawdnet.training.config import TrainConfig
from lawdnet.training.loggers import JsonlLogger, JsonlTail, write_pictures
from lawdnet.training.loop import Loop
from lawdnet.training.stages import NAMES, Stage
from lawdnet.training.steps import GanStep, NonFiniteLoss, Step, SyncStep
from pipelines import resources
from pipelines.background import repeated
from pipelines.sampling import rank_batches

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
SAMPLES = "samples"
STOPPED = "stopped.txt"
"""Why the workers gave up together, where trying again could not help."""
OnEpoch = Callable[[Stage, dict[str, Any]], None]
"""Called in the driver with every epoch's mean metrics as they appear."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    """What a stage's workers are told; everything else they find in the dataset and the run."""

    run: str
    stage: str
    config: TrainConfig
    lineage: Lineage
    segments: list[SegmentRef]
    start: str | None
    syncnet: str | None
    threads: int


def train(
    dataset: Dataset, run: Path, config: TrainConfig, *, workers: int = 1, gpu: bool = False,
    on_epoch: OnEpoch | None = None,
) -> Path:  # fmt: skip
    """Trains every stage that is not finished yet, each from the one it names; returns the run.

    Raises:
        ValueError: a parent stage is missing or does not fit, the dataset lacks a feature or a training split, or the
            run belongs to other settings.
    """
    if run.resolve().is_relative_to(dataset.root.resolve()):
        raise ValueError(f"{run}: lies inside the dataset; choose another --out")
    if not resources.can_grow() and workers > (os.cpu_count() or 1):
        raise ValueError(f"--workers {workers}: this machine has {os.cpu_count()} CPUs; name a cluster in RAY_ADDRESS")
    segments = dataset.segments("train")
    if not segments:
        raise ValueError(f"{dataset.root}: no training segments; `lawdnet inspect` shows what was rejected and why")
    for name in (config.audio_feature, config.sync_feature):
        dataset.feature_dim(name)
    config = _with_perceptual(config)
    todo = [stage for stage in config.stages if _epochs_done(run / stage.name) < stage.epochs]
    _check_chain(run, config, todo)
    _claim(run, dataset, config)
    if todo:
        with resources.cluster(workers + 1):
            for stage in todo:
                _train_stage(stage, dataset, segments, run, config, workers=workers, gpu=gpu, on_epoch=on_epoch)
    return run


def _with_perceptual(config: TrainConfig) -> TrainConfig:
    """Checks the VGG19 file here, where the user is, and names it so that workers in other folders find it."""
    if config.perceptual_weights:
        path = Path(config.perceptual_weights).absolute()
        VGG19Features.from_file(path)
        return dataclasses.replace(config, perceptual_weights=str(path))
    wanting = [stage.name for stage in config.stages if stage.kind == "gan" and stage.weights.perceptual]
    if wanting:
        log.warning(
            "%s: trained WITHOUT the perceptual loss (weight %g), as there are no VGG19 weights; "
            "give torchvision's vgg19-dcbb9e9d.pth with --set perceptual_weights=PATH",
            ", ".join(wanting), config.stage(wanting[0]).weights.perceptual,
        )  # fmt: skip
    return config


def _check_chain(run: Path, config: TrainConfig, todo: list[Stage]) -> None:
    """Every stage to do finds what it starts from: finished in the run, or before it in the list."""
    coming = set()
    for stage in todo:
        needs = [stage.init_from] if stage.init_from else []
        needs += ["syncnet"] if stage.kind == "gan" and stage.weights.sync else []
        for name in needs:
            if name not in coming:
                _finished(run, name, stage.name)
        coming.add(stage.name)


def _finished(run: Path, name: str, child: str) -> Path:
    """The last checkpoint of a stage that is complete."""
    found = stage_checkpoints(run / name)
    if not found:
        hint = f", or --set {child}.weights.sync=0" if name == "syncnet" else ""
        raise ValueError(f"{child} needs {name}, which {run} has not trained; add it to --stages{hint}")
    meta = read_meta(found[-1])
    if meta["epoch"] < meta["epochs"]:
        done = f"{meta['epoch']} of {meta['epochs']} epochs"
        raise ValueError(f"{child} needs {name}, of which {run} has only {done}; add it to --stages to finish it")
    return found[-1]


FREE = ("precision", "sample_every", "perceptual_weights", "preset", "stages")
"""Settings that may change while a run goes on; of a stage, the number of its epochs."""


def _claim(run: Path, dataset: Dataset, config: TrainConfig) -> None:
    """A run belongs to one dataset, one set of networks, and the rows of the stages it has begun."""
    path = run / RUN
    content = {
        "dataset": str(dataset.root),
        "dataset_hash": dataset.hash,
        "code_version": __version__,
        "config": config.to_dict(),
    }
    if path.exists():
        found = _read_run(path)
        if found["dataset_hash"] != dataset.hash:
            raise ValueError(f"{run}: was trained on another dataset ({found['dataset']}); choose another --out")
        old, new = found["config"], content["config"]
        changed = [key for key in new if key not in FREE and old.get(key) != new[key]]
        begun = {row["name"]: row for row in old["stages"] if stage_checkpoints(run / row["name"])}
        rows = {row["name"]: row for row in new["stages"]}
        changed += [name for name in begun.keys() & rows.keys() if _bound(begun[name]) != _bound(rows[name])]
        if changed:
            raise ValueError(f"{run}: was started with other settings ({', '.join(changed)}); choose another --out")
        content["config"]["stages"] = sorted((begun | rows).values(), key=lambda row: NAMES.index(row["name"]))
    write_json(path, content)


def _read_run(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); delete it to go on from the checkpoints") from None
    return content


def _bound(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("epochs_")}


def _epochs_done(folder: Path) -> int:
    found = stage_checkpoints(folder) if folder.exists() else []
    return int(read_meta(found[-1])["epoch"]) if found else 0


def lineage(dataset: Dataset) -> Lineage:
    """What a checkpoint says of the dataset it comes from."""
    return Lineage(
        dataset_hash=dataset.hash,
        crop_width=dataset.crop_width,
        landmarks=dataset.info["config"]["landmarks"],
        features=dataset.info["extractors"],
    )


def _train_stage(
    stage: Stage, dataset: Dataset, segments: list[SegmentRef], run: Path, config: TrainConfig, *, workers: int,
    gpu: bool, on_epoch: OnEpoch | None,
) -> None:  # fmt: skip
    parent = _finished(run, stage.init_from, stage.name) if stage.init_from else None
    origin = dataclasses.replace(
        lineage(dataset),
        parent=parent.relative_to(run).as_posix() if parent else None,
        parent_hash=hashlib.sha256((parent / STATE).read_bytes()).hexdigest() if parent else None,
    )
    has_sync = stage.weights.sync > 0 and stage.kind == "gan"
    job = _Job(
        run=str(run.resolve()), stage=stage.name, config=config, lineage=origin, segments=segments,
        start=str(parent.resolve()) if parent else None,
        syncnet=str(_finished(run, "syncnet", stage.name).resolve()) if has_sync else None,
        threads=max(1, (os.cpu_count() or 1) // workers),
    )  # fmt: skip
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu, resources_per_worker=_worker_resources(gpu)),
        run_config=RunConfig(
            name=stage.name,
            storage_path=str(run.resolve()),
            failure_config=FailureConfig(max_failures=3),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    stopped = run / stage.name / STOPPED
    stopped.unlink(missing_ok=True)
    with _followed(run / stage.name / METRICS, lambda row: on_epoch(stage, row) if on_epoch else None):
        trainer.fit()
    if stopped.exists():
        raise RuntimeError(f"{stage.name} stopped: {stopped.read_text(encoding='utf8')}")


def _worker_resources(gpu: bool) -> dict[str, float]:
    return {"CPU": 1, "GPU": 1} if gpu else {"CPU": 1}


def _worker(job_config: dict[str, Any]) -> None:
    """Runs on every rank. A loss that is not finite stops them all; it is written down, as Ray would try it again."""
    job: _Job = job_config["job"]
    try:
        _run_stage(job)
    except NonFiniteLoss as error:
        (Path(job.run) / job.stage / STOPPED).write_text(f"{error}", encoding="utf8")


def _run_stage(job: _Job) -> None:
    """Puts the stage together from its job and trains."""
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    config, stage = job.config, job.config.stage(job.stage)
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(job.threads)
    torch.manual_seed(config.seed)
    np.random.seed(config.seed)  # noqa: NPY002
    step = _make_step(job, stage, device)
    epoch, first_step = _restore(job, step)
    torch.manual_seed(config.seed + 1000 * epoch + rank)

    folder = Path(job.run) / stage.name
    logger = JsonlLogger(folder / METRICS)
    spec = config.sample_spec(stage)
    batches = _Batches(job, rank=rank, world=world)
    loop = Loop(
        stage=stage, step=step, device=device, batches=batches,
        steps_per_epoch=steps_per_epoch(len(job.segments), world, spec),
        report=_Reporter(job, step, stage, logger if rank == 0 else None),
        preview_every=config.sample_every,
        log=(lambda metrics: logger.log({"kind": "step", **metrics})) if rank == 0 else (lambda metrics: None),
        preview=(lambda rows, n: write_pictures(folder / SAMPLES / f"epoch_{n:04d}.png", rows)) if rank == 0 else None,
    )  # fmt: skip
    loop.run(epoch, first_step)


def _make_step(job: _Job, stage: Stage, device: torch.device) -> Step:
    config = job.config

    def wrap(network: nn.Module) -> nn.Module:
        wrapped: nn.Module = prepare_model(network, move_to_device=False)
        return wrapped

    if stage.kind == "syncnet":
        return SyncStep(config, stage, device, wrap, audio_dim=job.lineage.features[config.sync_feature]["dim"])
    syncnet = load_syncnet(Path(job.syncnet)) if job.syncnet else None
    return GanStep(
        config,
        stage,
        device,
        wrap,
        audio_dim=job.lineage.features[config.audio_feature]["dim"],
        syncnet=syncnet,
    )


def _restore(job: _Job, step: Step) -> tuple[int, int]:
    """From the stage's own newest checkpoint, else from its parent, else from nothing."""
    latest = ray.train.get_checkpoint()
    if latest:
        with latest.as_directory() as folder:
            return checkpoint.resume(Path(folder), step)
    if job.start:
        checkpoint.start_from(Path(job.start), step)
    return 0, 0


class _Batches:
    """The loop's `batches`: this rank's stream from a position on."""

    def __init__(self, job: _Job, *, rank: int, world: int) -> None:
        self.job, self.rank, self.world = job, rank, world

    def __call__(self, epoch: int, step: int) -> Iterator[dict[str, np.ndarray]]:
        stage = self.job.config.stage(self.job.stage)
        return rank_batches(
            self.job.segments, self.job.config.sample_spec(stage), seed=self.job.config.seed, rank=self.rank,
            world=self.world, stored_width=self.job.lineage.crop_width, epochs=stage.epochs, epoch=epoch, step=step,
        )  # fmt: skip


class _Reporter:
    """The loop's `report`: a checkpoint and a line of metrics per epoch. Every rank calls it: it is a barrier."""

    def __init__(self, job: _Job, step: Step, stage: Stage, logger: JsonlLogger | None) -> None:
        self.job, self.step, self.stage, self.logger = job, step, stage, logger

    def __call__(self, metrics: dict[str, float], *, epoch: int) -> None:
        if self.logger is None:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save(Path(folder), self.step, self.stage, self.job.config, self.job.lineage, epoch=epoch)
            assert (Path(folder) / META).exists()
            saved = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=saved, checkpoint_dir_name=f"epoch_{epoch:04d}")
        self.logger.log({"kind": "epoch", "epoch": epoch, **metrics})


def _followed(path: Path, on_row: Callable[[dict[str, Any]], None]) -> AbstractContextManager[None]:
    """Hands the file's new epoch lines to `on_row` while the block runs."""
    tail = JsonlTail(path)

    def drain() -> None:
        for row in tail.rows():
            if row.get("kind") == "epoch":
                on_row(row)

    return repeated(drain)
