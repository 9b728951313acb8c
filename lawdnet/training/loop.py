"""The loop of a stage. It gets what differs between a laptop and a cluster as callables, and knows neither.

Shape letters: B batch, N frames of a sample, K references, H W crop, C feature dimension.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lawdnet.training.stages import Stage
from lawdnet.training.steps import Step
from lawdnet.types import TrainBatch

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
    """Called with the metrics of every tenth step and the last of an epoch."""
    preview: Callable[[Tensor, int], None] | None = None
    """Called with pictures (rows × 3 × H × W) and the number of complete epochs."""
    preview_every: int = 1
    """Epochs between two of those calls; the last epoch always has one."""

    def run(self, epoch: int = 0, first_step: int = 0) -> None:
        """Trains from that position to the end of the stage.

        Raises:
            NonFiniteLoss: on every rank, before any took the step that it belongs to.
        """
        stream = self.batches(epoch, first_step)
        for current in range(epoch, self.stage.epochs):
            for optimizer in self.step.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = self.stage.lr * self.stage.lr_factor(current)
            metrics, batch = self._epoch(stream, current, first_step if current == epoch else 0)
            is_wanted = (current + 1) % self.preview_every == 0 or current + 1 == self.stage.epochs
            if self.preview and is_wanted and (pictures := self.step.preview(batch)) is not None:
                self.preview(pictures, current + 1)
            self.report(metrics, epoch=current + 1)

    def _epoch(self, stream: Iterator[Arrays], epoch: int, first_step: int) -> tuple[dict[str, float], TrainBatch]:
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        began, waited = time.perf_counter(), 0.0
        batch: TrainBatch | None = None
        for index in range(first_step, self.steps_per_epoch):
            asked = time.perf_counter()
            arrays = next(stream)
            waited += time.perf_counter() - asked
            assert (int(arrays["epoch"]), int(arrays["step"])) == (epoch, index), "the data lost its place"
            batch = to_batch(arrays, self.device)
            losses = self.step(batch)
            for name, loss in losses.items():
                sums[name] += loss
            if index % 10 == 0 or index + 1 == self.steps_per_epoch:
                row = {name: float(loss) for name, loss in losses.items()}
                self.log({"epoch": epoch, "step": index, "lr": self.stage.lr * self.stage.lr_factor(epoch), **row})
        assert batch is not None, "a checkpoint is never at the end of an epoch"
        seconds, steps = time.perf_counter() - began, self.steps_per_epoch - first_step
        means = {name: float(total) / steps for name, total in sums.items()}
        speed = {"seconds": seconds, "data_wait": waited / seconds, "steps_per_second": steps / seconds}
        return means | speed, batch


def to_batch(arrays: Arrays, device: torch.device) -> TrainBatch:
    """What the sampler drew (uint8, channels last) as float tensors on a device."""

    def move(name: str) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(arrays[name])).to(device, non_blocking=True)

    source_BN3HW = move("source").permute(0, 1, 4, 2, 3).float() / 255
    if "reference" in arrays:
        reference_BN15HW = move("reference").permute(0, 1, 2, 5, 3, 4).flatten(2, 3).float() / 255
    else:
        reference_BN15HW = source_BN3HW[:, :, :0]
    return TrainBatch(
        source_BN3HW=source_BN3HW,
        reference_BN15HW=reference_BN15HW,
        audio_BNC5=move("audio"),
        sync_audio_BC9=move("sync_audio") if "sync_audio" in arrays else None,
        other_audio_BC9=move("other_audio") if "other_audio" in arrays else None,
    )
