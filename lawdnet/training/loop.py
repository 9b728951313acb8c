"""The training loop of a stage. What differs between a laptop and a cluster comes as callables.

Shape letters: B batch, N frames of a sample, K references, H W crop, C feature dimension.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lawdnet.training.alarms import Alarm, NonFiniteLoss
from lawdnet.training.networks import Values
from lawdnet.training.position import START, Position
from lawdnet.training.speed import OwnTime, SpeedMeter, StepTime
from lawdnet.training.stages import Stage
from lawdnet.training.steps import Step
from lawdnet.types import TrainBatch

logger = logging.getLogger(__name__)
Arrays = Mapping[str, np.ndarray | Tensor]
"""A batch of the sampler; tensors if they are in page-locked memory."""
STAYING = ("segment_ids", "epoch", "index", "step")
"""The arrays of a batch that do not go to the device."""


class Report(Protocol):
    """Called by every rank after every epoch, to validate, save and log."""

    def __call__(self, metrics: dict[str, float], /, *, epoch: int) -> None:
        """`epoch` counts complete epochs."""
        ...


@dataclass(frozen=True, kw_only=True)
class Loop:
    """One stage on one rank. It counts optimiser steps and knows neither workers nor virtual ranks."""

    stage: Stage
    step: Step
    device: torch.device
    batches: Callable[[Position], Iterator[Sequence[Arrays]]]
    """Position → the micro-batches of each optimiser step from there to the end of the stage."""
    steps_per_epoch: int
    report: Report
    log: Callable[[dict[str, float]], None]
    """Called with the metrics of every tenth step, of steps that measure more, and of the last step of an epoch."""
    preview: Callable[[Tensor, int], None] | None = None
    """Called with images (rows × 3 × H × W) and the number of complete epochs."""
    preview_every: int = 1
    """Epochs between two previews; the last epoch always has one."""
    lr: float | None = None
    """Learning rate before it decays; the stage's if not given."""
    save: Callable[[Position], None] | None = None
    """Called within epochs to write a checkpoint."""
    save_every_steps: int = 0
    """Steps between two of those calls, counted from the start of the epoch; 0: only `report` saves."""
    save_wanted: Callable[[], bool] = lambda: False
    """Whether this rank wants a checkpoint after the next step; if any does, all call `save`."""
    max_skipped: int = 0
    """Steps of an epoch that may be skipped because a loss or gradient is not finite."""
    alarm: Alarm = logger.warning
    """Told about every step that is skipped."""
    on_step: Callable[[StepTime], None] = lambda time: None
    """Told how long every step took."""
    own: OwnTime | None = None
    """Marked by whoever exchanges gradients with other ranks."""

    def run(self, start: Position = START) -> None:
        """Train from a position to the end of the stage.

        Raises:
            NonFiniteLoss: on every rank, and before any rank takes that step, when `max_skipped` steps were skipped.
        """
        stream = self.batches(start)
        for epoch in range(start.epoch, self.stage.epochs):
            metrics, batch = self._epoch(stream, epoch, start.step if epoch == start.epoch else 0)
            is_wanted = (epoch + 1) % self.preview_every == 0 or epoch + 1 == self.stage.epochs
            if self.preview and is_wanted and (images := self.step.preview(batch.to(self.device))) is not None:
                self.preview(images, epoch + 1)
            self.report(metrics, epoch=epoch + 1)

    def _lr(self, epoch: int, step: int) -> float:
        warmup = self.stage.warmup_factor(epoch * self.steps_per_epoch + step)
        return (self.lr or self.stage.lr) * self.stage.lr_factor(epoch) * warmup

    def _set_lr(self, lr: float) -> None:
        for optimizer in self.step.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = lr

    def _epoch(
        self, stream: Iterator[Sequence[Arrays]], epoch: int, first_step: int
    ) -> tuple[dict[str, float], HostBatch]:
        """Return the epoch's metrics and its last batch."""
        means, meter, skipped = _Means(), SpeedMeter(self.device, self.on_step, self.own), 0
        batches: list[HostBatch] = []
        for step in range(first_step, self.steps_per_epoch):
            with meter.waiting():
                arrays = _next(stream, Position(epoch, step))
            batches = [HostBatch(one) for one in arrays]
            with meter.computing(sum(batch.size for batch in batches)):
                self._set_lr(self._lr(epoch, step))
                self.step.save_wanted = self.save_wanted()
                try:
                    losses = self.step(*batches)
                except NonFiniteLoss as error:
                    skipped += 1
                    self._skip(error, arrays, skipped, Position(epoch, step))
                    losses = {}
            means.add(losses)
            self._log(losses, epoch, step)
            self._save(Position(epoch, step + 1))
        assert batches, "a checkpoint is never at the end of an epoch"
        return means.values() | meter.values() | ({"skipped": float(skipped)} if skipped else {}), batches[-1]

    def _save(self, position: Position) -> None:
        """Save within an epoch, if that is wanted or due."""
        is_due = self.save_every_steps and not position.step % self.save_every_steps
        if self.save and position.step < self.steps_per_epoch and (is_due or self.step.save_wanted):
            self.save(position)

    def _log(self, losses: Values, epoch: int, step: int) -> None:
        is_last = step + 1 == self.steps_per_epoch
        if losses and (step % 10 == 0 or is_last or any(name.startswith("share_") for name in losses)):
            self.log({"epoch": epoch, "step": step, "lr": self._lr(epoch, step), **losses})

    def _skip(self, error: NonFiniteLoss, arrays: Sequence[Arrays], skipped: int, position: Position) -> None:
        """Name the segments of the step, and stop if too many steps were skipped."""
        ids = sorted({str(name) for one in arrays if "segment_ids" in one for name in one["segment_ids"].ravel()})
        where = f"{self.stage.name}, {position}"
        self.alarm(f"{where}: {error}; the step is skipped. Its segments: {', '.join(ids) or 'unknown'}")
        if skipped > self.max_skipped:
            limit = f"more than the {self.max_skipped} steps that may be skipped in an epoch (max_skipped)"
            raise NonFiniteLoss(f"{where}: {error}; {limit}" if self.max_skipped else f"{where}: {error}") from error


class _Means:
    """Means of metrics, each over the steps that have it."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: Counter[str] = Counter()

    def add(self, metrics: Values) -> None:
        for name, value in metrics.items():
            self.sums[name] += value
            self.counts[name] += 1

    def values(self) -> dict[str, float]:
        return {name: total / self.counts[name] for name, total in self.sums.items()}


def _next(stream: Iterator[Sequence[Arrays]], position: Position) -> Sequence[Arrays]:
    arrays = next(stream)
    assert all((one["epoch"], one["step"]) == (position.epoch, position.step) for one in arrays), (
        "the data lost its position"
    )
    return arrays


@dataclass(frozen=True)
class HostBatch:
    """A batch of the sampler, which a step moves to its device while it works on it."""

    arrays: Arrays

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.arrays["source"])

    def to(self, device: torch.device, /) -> TrainBatch:
        """The batch on a device."""
        return to_batch(self.arrays, device)


def pinned(arrays: Mapping[str, np.ndarray], device: torch.device) -> Arrays:
    """Put what goes to a GPU into page-locked memory, from which it is copied while the host does other things."""
    if device.type != "cuda":
        return arrays
    with torch.cuda.device(device):  # the thread that prepares batches would take the first GPU
        return {name: torch.from_numpy(a).pin_memory() if name not in STAYING else a for name, a in arrays.items()}


def to_batch(arrays: Arrays, device: torch.device) -> TrainBatch:
    """Move a batch of the sampler (uint8, channels last) to a device, as float tensors; the host does not wait."""

    def move(name: str) -> Tensor:
        return torch.as_tensor(arrays[name]).to(device, non_blocking=True)

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
        lip_audio_RC5=move("lip_audio").flatten(0, 1) if "lip_audio" in arrays else None,
        lips_R40=move("lips").flatten(0, 1) if "lips" in arrays else None,
        lip_points_BN40=move("lip_points") if "lip_points" in arrays else None,
        audio_origin_A2=move("origin").transpose(0, 1).flatten(0, 1) if "origin" in arrays else None,
    )
