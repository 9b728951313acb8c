"""What each worker of a stage does: build the networks, resume, train, validate and save."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
from torch import Tensor, nn

from lawdnet.data.manifest import open_unchanged
from lawdnet.data.sampling import batches_per_epoch
from lawdnet.models.legacy import start_from_legacy
from lawdnet.models.saved import RUN, load_syncnet
from lawdnet.storage import local_copy, locate
from lawdnet.tasks.background import ahead
from lawdnet.training import checkpoint
from lawdnet.training.alarms import WarningAlarms
from lawdnet.training.checkpoint import Lineage
from lawdnet.training.checkpoint_store import CheckpointStore, local_folder
from lawdnet.training.collectives import find_collectives
from lawdnet.training.config import TrainConfig
from lawdnet.training.loader import Batch, rank_batches, warm_up
from lawdnet.training.loop import Arrays, Loop, pinned
from lawdnet.training.options import RunOptions
from lawdnet.training.position import START, Position
from lawdnet.training.speed import OwnTime, StepTime
from lawdnet.training.stages import scaled_lr
from lawdnet.training.steps import GanStep, NonFiniteLoss, Step, SyncStep
from lawdnet.training.stragglers import RankClock, RankTime, Stragglers
from lawdnet.training.virtual_ranks import Merge, VirtualRanks, micro_batches_per_rank, shares, steps_per_epoch
from pipelines.cluster import metrics
from pipelines.train.elastic import Parallel, gather
from pipelines.train.health import check_ranks
from pipelines.train.recorder import StageRecorder
from pipelines.train.saver import Saver
from pipelines.train.validate import Validation, landmarks_of, scorer_of

STOPPED = "stopped.txt"
"""File with the reason why the workers stopped together, if another attempt could not help."""

MIN_MIX = 8
"""Fewest segments that are drawn from at a time for a batch of a stage."""
STEPS_AHEAD = 2
"""Steps whose batches are put together, and copied to page-locked memory for a GPU, before they are needed."""
COMPARE_SECONDS = 60.0
"""Time between two rows of metrics.jsonl with the steps of each worker."""
COLUMNS = ("masked", "reference", "generated", "truth")
"""Columns of a sheet of samples."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the workers of a stage are told; everything else they find in the dataset and the run."""

    run: str
    stage: str
    config: TrainConfig
    options: RunOptions
    lineage: Lineage
    dataset: str
    """The dataset, whose list of segments every worker reads: it may be too large to be sent."""
    virtual_ranks: VirtualRanks
    start: str | None
    """Checkpoint to start from: of an earlier stage, of another run, or an old file."""
    syncnet: str | None
    loaders: int
    """Processes of each worker that draw samples."""
    threads: int | None
    """Threads of each worker; None leaves torch's number."""


def work(job_config: dict[str, Any]) -> None:
    """Run on every rank. A loss that stays bad stops all of them and is written down, as Ray would only retry it."""
    job: Job = job_config["job"]
    with ExitStack() as stack:
        worker = Worker(job, stack)
        try:
            worker.train()
        except NonFiniteLoss as error:
            worker.stop(f"{error}")


@dataclass
class Worker:
    """One rank of a stage."""

    job: Job
    stack: ExitStack
    alarms: list[str] = field(default_factory=list)
    """Alarms since they were last collected."""
    compared: float = 0.0
    """When the workers' steps were last logged."""

    def __post_init__(self) -> None:
        context, job = ray.train.get_context(), self.job
        if job.options.workers.most:
            self._keep_warnings()
        if job.loaders:
            warm_up()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.config, self.stage = job.config, job.config.stage(job.stage)
        self.device = ray.train.torch.get_device()
        if job.threads and self.device.type == "cpu":
            torch.set_num_threads(job.threads)
        self.root = locate(job.run)
        if not (self.root / RUN).exists():
            raise ValueError(
                f"{self.root}: not visible from {socket.gethostname()}; give a folder that all machines share, or s3://…"
            )
        self.store = CheckpointStore(self.root / self.stage.name)
        self.saver = Saver(self.store, job.options, job.lineage, self.stack) if self.rank == 0 else None
        self.accumulate = micro_batches_per_rank(self.stage)
        by_rank = shares(self.world, job.virtual_ranks.count)
        self.merge = Merge(shares=by_rank, split=job.virtual_ranks.split, accumulate=self.accumulate)
        self.collectives = find_collectives(self.device, by_rank, is_alike=self.merge.is_alike)
        self.own = OwnTime(self.device)
        self.clock = RankClock(self.rank, socket.gethostname(), by_rank[self.rank])
        self.stragglers = Stragglers()
        spec = self.config.sample_spec(self.stage)
        # a step draws from the groups of all virtual ranks, whose number stays whatever the number of workers
        mix = max(-(-MIN_MIX // job.virtual_ranks.split), spec.mix_segments // job.virtual_ranks.count)
        self.spec = replace(spec, batch_size=spec.batch_size // job.virtual_ranks.split, mix_segments=mix)
        dataset = open_unchanged(locate(job.dataset), job.lineage.dataset_hash)
        self.segments, self.held_out = (dataset.segments(split) for split in ("train", "val"))
        self.steps = steps_per_epoch(
            batches_per_epoch(len(self.segments), job.virtual_ranks.count, self.spec), self.accumulate
        )
        self.recorder = StageRecorder(self.store.folder) if self.rank == 0 else None
        if self.recorder:
            self.stack.callback(self.recorder.close)
            run_name = f"{self.root.name}/{self.stage.name}"
            self.recorder.open(
                job.options.loggers, config=self.config.to_dict(), lineage=asdict(job.lineage), run_name=run_name
            )

    def _keep_warnings(self) -> None:
        handler = WarningAlarms(self.alarms.append)
        for package in ("lawdnet", "pipelines"):
            logging.getLogger(package).addHandler(handler)
            self.stack.callback(logging.getLogger(package).removeHandler, handler)

    def train(self) -> None:
        """Train from wherever the stage stopped to its end."""
        check_ranks(self.device)
        torch.manual_seed(self.config.seed)
        np.random.seed(self.config.seed)  # noqa: NPY002
        syncnet = self._local(self.job.syncnet)
        self.step = self._make_step(syncnet)
        start = self._restore()
        self.validation = Validation(
            segments=self.held_out,
            most=self.job.options.validate_most,
            rank=self.rank,
            world=self.world,
            config=self.config,
            stage=self.stage,
            stored_width=self.job.lineage.crop_width,
            device=self.device,
            scorer=scorer_of(syncnet, self.device),
            landmarks=landmarks_of(self.job.options) if self._validates_generator else None,
        )
        self._loop().run(start)

    @property
    def _validates_generator(self) -> bool:
        return self.stage.kind == "gan" and bool(self.held_out) and self.job.options.validate_every > 0

    def _local(self, location: str | None) -> Path | None:
        """A checkpoint, or an old file, on this machine."""
        if location is None:
            return None
        found = locate(location)
        return self.stack.enter_context(local_copy(found) if found.suffix == ".pth" else local_folder(found))

    def _loop(self) -> Loop:
        labels = {"run": self.root.name, "stage": self.stage.name, "rank": str(self.rank)}
        return Loop(
            stage=self.stage,
            step=self.step,
            device=self.device,
            batches=self.batches,
            steps_per_epoch=self.steps,
            lr=scaled_lr(self.stage, 1, self.job.virtual_ranks.count // self.job.virtual_ranks.split),
            report=self.report,
            save=self.save,
            save_every_steps=self.job.options.save_every_steps,
            save_wanted=self.saver.is_wanted if self.saver else lambda: False,
            max_skipped=self.config.max_skipped,
            alarm=self.alarms.append,
            log=self._log_step,
            preview=self.preview if self.recorder else None,
            preview_every=self.config.sample_every,
            on_step=partial(self._stepped, labels=labels),
            own=self.own,
        )

    def _make_step(self, syncnet: Path | None) -> Step:
        config, features = self.config, self.job.lineage.features
        wrap = Parallel(self.collectives.weight, self.own.mark)
        if self.stage.kind == "syncnet":
            return SyncStep(
                config,
                self.stage,
                self.device,
                wrap,
                audio_dim=features[config.sync_feature]["dim"],
                collectives=self.collectives,
                alarm=self.alarms.append,
            )
        return GanStep(
            config,
            self.stage,
            self.device,
            wrap,
            audio_dim=features[config.audio_feature]["dim"],
            collectives=self.collectives,
            syncnet=load_syncnet(syncnet) if syncnet else None,
            alarm=self.alarms.append,
        )

    def _restore(self) -> Position:
        """Restore the stage's own newest checkpoint, else its parent, else nothing; log which steps are repeated."""
        newest = self.store.newest_good() if self.rank == 0 else None
        name = gather(newest.name if newest else None)[0]  # all take the same, whatever each of them can see
        position = START
        if name:
            with local_folder(self.store.folder / name) as folder:
                position = checkpoint.resume(folder, self.step)
        elif start := self._local(self.job.start):
            checkpoint.start_from(start, self.step) if start.is_dir() else self._start_from_old(start)
        if not name or self.rank:
            torch.manual_seed(self.config.seed + 1000 * position.epoch + self.rank)
        if self.recorder:
            self._log_resume(position, self.recorder.begun())
        return position

    def _start_from_old(self, file: Path) -> None:
        start_from_legacy(file, self.step.networks)
        if isinstance(self.step, GanStep) and self.step.ema:
            self.step.ema.restart(self.step.networks["generator"])

    def _note(self, row: dict[str, Any]) -> None:
        """Log a row, on the first worker."""
        if self.recorder:
            self.recorder.log(row)
            metrics.noted(row, run=self.root.name, stage=self.stage.name)

    def _log_step(self, row: dict[str, Any]) -> None:
        """Log a step, its metrics as the mean over all virtual ranks; all workers call it together."""
        self._compare_ranks(row)
        same = {name: row[name] for name in ("epoch", "step", "lr")}
        self._note({"kind": "step", **self._means(row), **same})

    def _means(self, row: dict[str, float]) -> dict[str, float]:
        """Metrics as the mean over all virtual ranks, and samples per second as their sum; all call it together."""
        everyone = gather((self.collectives.weight, row))
        means = {name: sum(weight * one[name] for weight, one in everyone) for name in row}
        if "samples_per_second" in means:
            means["samples_per_second"] = sum(one["samples_per_second"] for weight, one in everyone if weight)
        return means

    def _stepped(self, step: StepTime, labels: Mapping[str, str]) -> None:
        metrics.stepped(step, labels=labels)
        self.clock.add(step)

    def _compare_ranks(self, row: dict[str, Any]) -> None:
        """Log what each worker's steps took, once a minute, and name slow ones; all workers call it together."""
        times: list[RankTime] = gather(self.clock.take())
        if self.world == 1 or self.rank:
            return
        slow = self.stragglers.update(times)
        self.alarms += [f"{self.stage.name}: {text}" for text in slow]
        if slow or time.monotonic() - self.compared >= COMPARE_SECONDS:
            self.compared = time.monotonic()
            columns = {name: [getattr(one, name) for one in times] for name in ("host", "waited", "own")}
            self._note({"kind": "ranks", "epoch": row["epoch"], "step": row["step"], **columns})

    def _log_resume(self, position: Position, begun: Position | None) -> None:
        if position == START and begun is None:
            return
        repeated = None
        if begun:
            repeated = max(0, (begun.epoch - position.epoch) * self.steps + begun.step + 1 - position.step)
        many = f"{repeated} steps" if repeated is not None else "an unknown number of steps"
        self._note(
            {
                "kind": "resume",
                **asdict(position),
                "world": self.world,
                "virtual_ranks": self.job.virtual_ranks.count,
                "repeated_steps": repeated,
                "text": f"resumes from {position} with {self.world} workers; repeats {many}",
            }
        )

    def batches(self, start: Position) -> Iterator[list[Arrays]]:
        """The loop's `batches`: this rank's part of every step from a position on."""
        stream = rank_batches(
            self.segments,
            self.spec,
            seed=self.config.seed,
            rank=self.rank,
            world=self.world,
            stored_width=self.job.lineage.crop_width,
            epochs=self.stage.epochs,
            start=start,
            virtual_ranks=self.job.virtual_ranks.count,
            accumulate=self.accumulate,
            loaders=self.job.loaders,
        )
        for batches in ahead(map(self._prepare, stream), STEPS_AHEAD):
            if self.recorder:
                self.recorder.begin_step(Position(int(batches[0]["epoch"]), int(batches[0]["step"])))
            yield batches

    def _prepare(self, brought: list[Batch]) -> list[Arrays]:
        return [pinned(batch, self.device) for batch in self.merge(brought)]

    def report(self, means: dict[str, float], *, epoch: int) -> None:
        """The loop's `report`, on every rank: validates, saves and logs. It is a barrier."""
        options, is_last = self.job.options, epoch == self.stage.epochs
        validated: dict[str, float] = {}
        if self.held_out and options.validate_every and (epoch % options.validate_every == 0 or is_last):
            validated = self.validation(self._evaluated())
        if epoch % options.save_every_epochs == 0 or is_last:
            self._save(Position(epoch), validated)
        if is_last and self.saver:
            self.saver.wait()
        self._collect_alarms(Position(epoch))
        means = self._means(means)
        saving = {"save_wait": self.saver.share()} if self.saver else {}
        self._note({"kind": "epoch", "epoch": epoch, "workers": self.world, **means, **saving})
        if validated:
            self._note({"kind": "validation", "epoch": epoch, **validated})
        if self.recorder:
            self.recorder.push()
        ray.train.report({"epoch": epoch, **means, **{f"validation_{name}": n for name, n in validated.items()}})

    def save(self, position: Position) -> None:
        """The loop's `save`, on every rank: a checkpoint within an epoch."""
        self._save(position, None)
        self._collect_alarms(position)
        if self.recorder:
            self.recorder.push()
        if self.saver:
            self.saver.hold()

    def _evaluated(self) -> nn.Module:
        """The network that inference would use."""
        return self.step.evaluated if isinstance(self.step, GanStep) else self.step.networks["syncnet"]

    def _save(self, position: Position, validated: dict[str, float] | None) -> None:
        if self.saver:
            self.saver.save(self.step, position, validated)

    def preview(self, rows: Tensor, epoch: int) -> None:
        """The loop's `preview`: a sheet of samples."""
        assert self.recorder
        assert self.recorder.logger
        self.recorder.logger.images(rows, epoch, COLUMNS)

    def _collect_alarms(self, position: Position) -> None:
        """Log the alarms of all ranks since the last call, the same one once; all ranks call it together."""
        texts = dict.fromkeys(text for part in gather(self.alarms) for text in part)
        self.alarms.clear()
        for text in texts:
            self._note({"kind": "alarm", **asdict(position), "text": text})

    def stop(self, reason: str) -> None:
        """Leave the reason for the driver; all ranks call it together."""
        if self.saver:
            self.saver.wait()
        self._collect_alarms(self.store.position())
        if self.recorder:
            good = self.store.newest_good()
            where = f"the last good checkpoint is {good}" if good else "nothing was saved yet"
            (self.store.folder / STOPPED).write_text(f"{reason}; {where}", encoding="utf8")
