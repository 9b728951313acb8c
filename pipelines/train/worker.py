"""What each worker of a stage does: puts the stage together, goes on where it was left, trains, saves and judges."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
from torch import Tensor, nn

from lawdnet.data.manifest import SegmentRef
from lawdnet.data.sampling import steps_per_epoch
from lawdnet.models.legacy import start_from_legacy
from lawdnet.models.saved import RUN, checkpoint_name, load_syncnet
from lawdnet.storage import local_copy, locate
from lawdnet.training import checkpoint
from lawdnet.training.checkpoint import Lineage
from lawdnet.training.checkpoint_store import CheckpointStore, local_folder
from lawdnet.training.config import TrainConfig
from lawdnet.training.loop import Loop
from lawdnet.training.options import RunOptions
from lawdnet.training.stages import scaled_lr
from lawdnet.training.steps import GanStep, NonFiniteLoss, Step, SyncStep
from lawdnet.training.virtual_ranks import in_a_row, take_seat
from pipelines.cluster.metrics import StepClock, noted
from pipelines.train.dataloader import Batch, is_starved, rank_batches
from pipelines.train.elastic import Parallel, find_shared_collectives, gather
from pipelines.train.recorder import StageRecorder
from pipelines.train.validate import Validation, scorer_of

STOPPED = "stopped.txt"
"""Why the workers gave up together, where trying again could not help."""


COLUMNS = ("masked", "reference", "generated", "truth")
"""Of a sheet of pictures."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a stage's workers are told; everything else they find in the dataset and the run."""

    run: str
    stage: str
    config: TrainConfig
    running: RunOptions
    lineage: Lineage
    segments: list[SegmentRef]
    held_out: list[SegmentRef]
    lanes: int
    start: str | None
    """Checkpoint of the stage that this one starts from, or of another run."""
    syncnet: str | None
    threads: int | None
    """Of each worker; None leaves them as they are."""


def work(job_config: dict[str, Any]) -> None:
    """Runs on every rank. A loss that stays bad stops them all; it is written down, as Ray would try it again."""
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
    """Since they were last collected."""

    def __post_init__(self) -> None:
        context, job = ray.train.get_context(), self.job
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.config, self.stage = job.config, job.config.stage(job.stage)
        self.device = ray.train.torch.get_device()
        if job.threads and self.device.type == "cpu":
            torch.set_num_threads(job.threads)
        self.root = locate(job.run)
        if not (self.root / RUN).exists():
            where = f"not to be seen from {socket.gethostname()}"
            raise ValueError(f"{self.root}: {where}; give a folder that all machines share, or s3://…")
        self.shelf = CheckpointStore(self.root / self.stage.name)
        self.seat = take_seat(self.rank, self.world, job.lanes)
        self.lanes = len(self.seat.lanes)
        self.spec = self.config.sample_spec(self.stage)
        self.steps = steps_per_epoch(len(job.segments), job.lanes, self.spec)
        self.clock = StepClock({"run": self.root.name, "stage": self.stage.name, "rank": str(self.rank)})
        self.notes = StageRecorder(self.shelf.folder) if self.rank == 0 else None
        if self.notes:
            self.stack.callback(self.notes.close)
            run_name = f"{self.root.name}/{self.stage.name}"
            self.notes.open(
                job.running.loggers, config=self.config.to_dict(), lineage=asdict(job.lineage), run_name=run_name
            )

    def train(self) -> None:
        """From wherever the stage was left to its end."""
        torch.manual_seed(self.config.seed)
        np.random.seed(self.config.seed)  # noqa: NPY002
        syncnet = self._local(self.job.syncnet)
        self.step = self._make_step(syncnet)
        epoch, first_step = self._restore()
        self.validation = Validation(
            segments=self.job.held_out, most=self.job.running.validate_most, rank=self.rank, world=self.world,
            config=self.config, stage=self.stage, stored_width=self.job.lineage.crop_width, device=self.device,
            scorer=scorer_of(syncnet, self.device),
        )  # fmt: skip
        self._loop().run(epoch, first_step * self.lanes)

    def _local(self, place: str | None) -> Path | None:
        """A checkpoint, or an old file, on this machine."""
        if place is None:
            return None
        there = locate(place)
        return self.stack.enter_context(local_copy(there) if there.suffix == ".pth" else local_folder(there))

    def _loop(self) -> Loop:
        """A step of a lane is `lanes` batches to the loop, which knows of no lanes."""
        return Loop(
            stage=self.stage, step=self.step, device=self.device, batches=self.batches,
            steps_per_epoch=self.steps * self.lanes, accumulate=self.lanes * in_a_row(self.stage),
            lr=scaled_lr(self.stage, 1, self.job.lanes), report=self.report,
            save=lambda epoch, step: self.save(epoch, step // self.lanes),
            save_every_steps=self.job.running.save_every_steps, max_skipped=self.config.max_skipped,
            alarm=self.alarms.append, log=self.log, preview=self.preview if self.notes else None,
            preview_every=self.config.sample_every,
        )  # fmt: skip

    def _make_step(self, syncnet: Path | None) -> Step:
        config, features = self.config, self.job.lineage.features
        wrap, peers = Parallel(self.seat), find_shared_collectives(self.device, self.seat)
        if self.stage.kind == "syncnet":
            return SyncStep(
                config, self.stage, self.device, wrap, audio_dim=features[config.sync_feature]["dim"], peers=peers,
                alarm=self.alarms.append,
            )  # fmt: skip
        return GanStep(
            config, self.stage, self.device, wrap, audio_dim=features[config.audio_feature]["dim"], peers=peers,
            syncnet=load_syncnet(syncnet) if syncnet else None,
        )  # fmt: skip

    def _restore(self) -> tuple[int, int]:
        """From the stage's own newest checkpoint, else from its parent, else from nothing; says what is repeated."""
        newest = self.shelf.newest_good() if self.rank == 0 else None
        name = gather(newest.name if newest else None)[0]  # all take the same, whatever each of them can see
        place = 0, 0
        if name:
            with local_folder(self.shelf.folder / name) as folder:
                place = checkpoint.resume(folder, self.step)
        elif start := self._local(self.job.start):
            checkpoint.start_from(start, self.step) if start.is_dir() else self._start_from_old(start)
        if not name or self.rank:
            torch.manual_seed(self.config.seed + 1000 * place[0] + self.rank)
        if self.notes:
            self._say_resumed(place, self.notes.begun())
        return place

    def _start_from_old(self, file: Path) -> None:
        start_from_legacy(file, self.step.networks)
        if isinstance(self.step, GanStep) and self.step.ema:
            self.step.ema.restart(self.step.networks["generator"])

    def _note(self, row: dict[str, Any]) -> None:
        """A row of what the first worker writes down."""
        if self.notes:
            self.notes.log(row)
            noted(row, run=self.root.name, stage=self.stage.name)

    def _say_resumed(self, place: tuple[int, int], begun: tuple[int, int] | None) -> None:
        if place == (0, 0) and begun is None:
            return
        repeated = None
        if begun:
            repeated = max(0, (begun[0] - place[0]) * self.steps + begun[1] + 1 - place[1])
        many = f"{repeated} steps" if repeated is not None else "the steps since"
        self._note(
            {"kind": "resume", "epoch": place[0], "step": place[1], "world": self.world, "lanes": self.job.lanes,
             "repeated_steps": repeated,
             "text": f"goes on from epoch {place[0]}, step {place[1]} with {self.world} workers; repeats {many}"}
        )  # fmt: skip

    def batches(self, epoch: int, step: int) -> Iterator[Batch]:
        """The loop's `batches`: this rank's part of every step from a position on."""
        stream = rank_batches(
            self.job.segments, self.spec, seed=self.config.seed, rank=self.rank, world=self.world,
            stored_width=self.job.lineage.crop_width, epochs=self.stage.epochs, epoch=epoch, step=step // self.lanes,
            lanes=self.job.lanes, here=is_starved(self.world),
        )  # fmt: skip
        total, group = self.steps * self.lanes, self.lanes * in_a_row(self.stage)
        for number, batch in enumerate(self.clock.batches(stream)):
            if self.notes:
                self.notes.begin_step(int(batch["epoch"]), int(batch["step"]))
            index = int(batch["step"]) * self.lanes + number % self.lanes
            self.clock.count(len(batch["source"]), ends_step=(index + 1) % group == 0 or index + 1 == total)
            yield batch | {"step": np.asarray(index)}

    def log(self, metrics: dict[str, float]) -> None:
        """The loop's `log`: the figures of a step, counted in steps of a lane."""
        self._note({"kind": "step", **metrics, "step": (int(metrics["step"]) + 1) // self.lanes - 1})

    def report(self, metrics: dict[str, float], *, epoch: int) -> None:
        """After every epoch, on every rank: judges, saves and writes down. It is a barrier."""
        self.clock.pause()
        running, is_last = self.job.running, epoch == self.stage.epochs
        figures: dict[str, float] = {}
        if self.job.held_out and running.validate_every and (epoch % running.validate_every == 0 or is_last):
            figures = self.validation(self._judged())
        if epoch % running.save_every_epochs == 0 or is_last:
            self._save(epoch, 0, figures)
        self._collect_alarms(epoch, 0)
        self._note({"kind": "epoch", "epoch": epoch, "workers": self.world, **metrics})
        if figures:
            self._note({"kind": "validation", "epoch": epoch, **figures})
        if self.notes:
            self.notes.push()
        ray.train.report({"epoch": epoch, **metrics, **{f"validation_{name}": n for name, n in figures.items()}})

    def save(self, epoch: int, step: int) -> None:
        """After every so many steps of an epoch, on every rank."""
        self.clock.pause()
        self._save(epoch, step, None)
        self._collect_alarms(epoch, step)
        if self.notes:
            self.notes.push()

    def _judged(self) -> nn.Module:
        """The network that inference would use."""
        return self.step.judged if isinstance(self.step, GanStep) else self.step.networks["syncnet"]

    def _save(self, epoch: int, step: int, figures: dict[str, float] | None) -> None:
        if self.rank:
            return
        write = partial(
            checkpoint.save, step=self.step, stage=self.stage, config=self.config, lineage=self.job.lineage,
            epoch=epoch, next_step=step,
        )  # fmt: skip
        self.shelf.save(checkpoint_name(epoch, step), write, figures)
        self.shelf.tidy(self.job.running.keep_last, self.job.running.best_by(self.stage.kind))

    def preview(self, rows: Tensor, epoch: int) -> None:
        """A sheet of pictures."""
        assert self.notes
        assert self.notes.logger
        self.notes.logger.pictures(rows, epoch, COLUMNS)

    def _collect_alarms(self, epoch: int, step: int) -> None:
        """All ranks' alarms since the last time, as rows; all ranks call it together."""
        texts = [text for part in gather(self.alarms) for text in part]
        self.alarms.clear()
        for text in texts:
            self._note({"kind": "alarm", "epoch": epoch, "step": step, "text": text})

    def stop(self, reason: str) -> None:
        """Leaves word for the driver; all ranks call it together."""
        self._collect_alarms(*self.shelf.place())
        if self.notes:
            good = self.shelf.newest_good()
            where = f"the last good checkpoint is {good}" if good else "nothing was saved yet"
            (self.shelf.folder / STOPPED).write_text(f"{reason}; {where}", encoding="utf8")
