"""How long optimiser steps take on one rank: waiting for batches, and computing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """What one optimiser step took on one rank."""

    waited: float
    """Seconds spent waiting for its batches."""
    computed: float
    """Seconds spent on the step itself."""
    samples: int


class SpeedMeter:
    """Measures the steps of an epoch. What comes between steps (logs, checkpoints, validation) belongs to none of them.

    Args:
        device: the device whose peak memory is reported.
        on_step: called after every step.
    """

    def __init__(self, device: torch.device, on_step: Callable[[StepTime], None] = lambda step: None) -> None:
        self.device, self.on_step = device, on_step
        self._began = time.perf_counter()
        self._waited = 0.0
        self._total_waited, self._steps, self._samples = 0.0, 0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Times the wait for the batches of the next step."""
        began = time.perf_counter()
        yield
        self._waited = time.perf_counter() - began

    @contextmanager
    def computing(self, samples: int) -> Iterator[None]:
        """Times a step on so many samples."""
        began = time.perf_counter()
        yield
        self._steps += 1
        self._samples += samples
        self._total_waited += self._waited
        self.on_step(StepTime(waited=self._waited, computed=time.perf_counter() - began, samples=samples))

    def values(self) -> dict[str, float]:
        """Optimiser steps and samples per second, and the peak memory: of a GPU's tensors, else of this process."""
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = psutil.Process().memory_info().rss
        seconds = time.perf_counter() - self._began
        return {
            "seconds": seconds,
            "data_wait": self._total_waited / seconds,
            "steps_per_second": self._steps / seconds,
            "samples_per_second": self._samples / seconds,
            "memory_gb": peak / 1e9,
        }
