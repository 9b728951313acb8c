"""The loop of a stage. It gets what differs between a laptop and a cluster as callables, and knows neither.

Shape letters: B batch, N frames of a sample, K references, H W crop, C feature dimension.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import psutil
import torch
from torch import Tensor

from lawdnet.training.alarms import Alarm, NonFiniteLoss
from lawdnet.training.networks import Metrics
from lawdnet.training.stages import Stage
from lawdnet.training.steps import Step
from lawdnet.types import TrainBatch

logger = logging.getLogger(__name__)
Arrays = Mapping[str, np.ndarray]


class Report(Protocol):
    """Called by every rank after every epoch: where checkpoints are written and metrics go."""

    def __call__(self, metrics: dict[str, float], *, epoch: int) -> None:
        """`epoch` counts complete epochs."""
        ...


@dataclass(frozen=True, kw_only=True)
class Loop:
    """One stage on one rank."""

    stage: Stage
    step: Step
    device: torch.device
    batches: Callable[[int, int], Iterator[Arrays]]
    """(epoch, step) → batches from there to the end of the stage."""
    steps_per_epoch: int
    report: Report
    log: Callable[[dict[str, float]], None]
    """Called with the metrics of every tenth optimiser step, those that measure more, and an epoch's last."""
    preview: Callable[[Tensor, int], None] | None = None
    """Called with pictures (rows × 3 × H × W) and the number of complete epochs."""
    preview_every: int = 1
    """Epochs between two of those calls; the last epoch always has one."""
    accumulate: int | None = None
    """Batches per optimiser step; the stage's where not given."""
    lr: float | None = None
    """Rate before it decays; the stage's where not given."""
    save: Callable[[int, int], None] | None = None
    """Called with (complete epochs, next step of the epoch under way): where checkpoints within epochs are written."""
    save_every_steps: int = 0
    """Optimiser steps between two of those calls, counted from the epoch's first; 0: only `report` saves."""
    max_skipped: int = 0
    """Optimiser steps of an epoch that may be left out because something is not finite."""
    alarm: Alarm = logger.warning
    """Told about every step left out."""

    def run(self, epoch: int = 0, first_step: int = 0) -> None:
        """Trains from that position to the end of the stage.

        Raises:
            NonFiniteLoss: on every rank, before any took the step that it belongs to; `max_skipped` were left out.
        """
        stream = self.batches(epoch, first_step)
        for current in range(epoch, self.stage.epochs):
            for optimizer in self.step.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = self._lr(current)
            metrics, batch = self._epoch(stream, current, first_step if current == epoch else 0)
            is_wanted = (current + 1) % self.preview_every == 0 or current + 1 == self.stage.epochs
            if self.preview and is_wanted and (pictures := self.step.preview(batch)) is not None:
                self.preview(pictures, current + 1)
            self.report(metrics, epoch=current + 1)

    def _lr(self, epoch: int) -> float:
        return (self.lr or self.stage.lr) * self.stage.lr_factor(epoch)

    def _epoch(self, stream: Iterator[Arrays], epoch: int, first_step: int) -> tuple[dict[str, float], TrainBatch]:
        sums, meter, skipped = _Means(self.device), _Meter(self.device), 0
        batches: list[TrainBatch] = []
        group = self.accumulate or self.stage.accumulate
        for first in range(first_step, self.steps_per_epoch, group):
            after = min(first + group, self.steps_per_epoch)
            with meter.waiting():
                arrays = [_next(stream, epoch, index) for index in range(first, after)]
            batches = [to_batch(one, self.device) for one in arrays]
            try:
                losses = self.step(*batches)
            except NonFiniteLoss as error:
                skipped += 1
                self._leave_out(error, arrays, skipped, epoch=epoch, step=first)
                losses = {}
            meter.count(batches)
            sums.add(losses)
            is_last, number = after == self.steps_per_epoch, first // group
            if losses and (number % 10 == 0 or is_last or any(name.startswith("share_") for name in losses)):
                row = {name: float(loss) for name, loss in losses.items()}
                self.log({"epoch": epoch, "step": after - 1, "lr": self._lr(epoch), **row})
            if self.save and self.save_every_steps and not is_last and (number + 1) % self.save_every_steps == 0:
                self.save(epoch, after)
        assert batches, "a checkpoint is never at the end of an epoch"
        return sums.values() | meter.values() | ({"skipped": float(skipped)} if skipped else {}), batches[-1]

    def _leave_out(
        self, error: NonFiniteLoss, arrays: Sequence[Arrays], skipped: int, *, epoch: int, step: int
    ) -> None:
        """Writes down whose samples a step had, and stops where that happens too often."""
        ids = sorted({str(name) for one in arrays if "segment_ids" in one for name in one["segment_ids"].ravel()})
        place = f"{self.stage.name}, epoch {epoch}, step {step}"
        self.alarm(f"{place}: {error}; the step is left out. Its segments: {', '.join(ids) or 'unknown'}")
        if skipped > self.max_skipped:
            limit = f"more than the {self.max_skipped} steps that may be left out of an epoch (max_skipped)"
            raise NonFiniteLoss(f"{place}: {error}; {limit}" if self.max_skipped else f"{place}: {error}") from error


class _Means:
    """Means of metrics, each over the steps that had it, without waiting for the device."""

    def __init__(self, device: torch.device) -> None:
        self.sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=device))
        self.counts: Counter[str] = Counter()

    def add(self, metrics: Metrics) -> None:
        for name, value in metrics.items():
            self.sums[name] += value
            self.counts[name] += 1

    def values(self) -> dict[str, float]:
        return {name: float(total) / self.counts[name] for name, total in self.sums.items()}


class _Meter:
    """Speed and memory of an epoch on this rank."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.began = device, time.perf_counter()
        self.waited, self.steps, self.samples = 0.0, 0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        asked = time.perf_counter()
        yield
        self.waited += time.perf_counter() - asked

    def count(self, batches: Sequence[TrainBatch]) -> None:
        self.steps += 1
        self.samples += sum(len(batch.source_BN3HW) for batch in batches)

    def values(self) -> dict[str, float]:
        """Optimiser steps and samples per second; the peak memory is this process's, on a GPU the tensors'."""
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = psutil.Process().memory_info().rss
        seconds = time.perf_counter() - self.began
        return {
            "seconds": seconds,
            "data_wait": self.waited / seconds,
            "steps_per_second": self.steps / seconds,
            "samples_per_second": self.samples / seconds,
            "memory_gb": peak / 1e9,
        }


def _next(stream: Iterator[Arrays], epoch: int, index: int) -> Arrays:
    arrays = next(stream)
    assert (int(arrays["epoch"]), int(arrays["step"])) == (epoch, index), "the data lost its place"
    return arrays


def to_batch(arrays: Arrays, device: torch.device) -> TrainBatch:
    """What the sampler drew (uint8, channels last) as float tensors on a device."""

    def move(name: str) -> Tensor:
        # what comes out of the object store may not be written to, which torch does not like
        return torch.from_numpy(np.require(arrays[name], requirements=["C", "W"])).to(device, non_blocking=True)

    source_BN3HW = move("source").permute(0, 1, 4, 2, 3).float() / 255
    if "reference" in arrays:
        reference_BN15HW = move("reference").permute(0, 1, 2, 5, 3, 4).flatten(2, 3).float() / 255
    else:
        reference_BN15HW = source_BN3HW[:, :, :0]
    wrong = [move(name) for name in ("other_audio", "quiet_audio") if name in arrays]
    return TrainBatch(
        source_BN3HW=source_BN3HW,
        reference_BN15HW=reference_BN15HW,
        audio_BNC5=move("audio"),
        sync_audio_BC9=move("sync_audio") if "sync_audio" in arrays else None,
        other_audio_BC9=torch.cat(wrong) if wrong else None,
    )
