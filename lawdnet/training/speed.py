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
    own: float
    """Those of them before this rank first waited for others: it is the slow ranks that have many."""
    samples: int


class OwnTime:
    """Measures a step until `mark` is first called, with the device's clock: the host runs ahead of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []
        self._began = self._ended = 0.0
        self._is_marked = False

    def begin(self) -> None:
        """Begin a step."""
        self._is_marked = False
        self._began = time.perf_counter()
        for event in self._events[:1]:
            event.record()

    def mark(self) -> None:
        """Say that from now on the step waits for other ranks."""
        if self._is_marked:
            return
        self._is_marked = True
        self._ended = time.perf_counter()
        for event in self._events[1:]:
            event.record()

    def seconds(self) -> float:
        """Seconds until the mark, once the step has ended; all of them without a mark."""
        if not self._is_marked:
            return time.perf_counter() - self._began
        if self._events:
            self._events[1].synchronize()
            return float(self._events[0].elapsed_time(self._events[1])) / 1000
        return self._ended - self._began


class SpeedMeter:
    """Measures the steps of an epoch. What comes between steps (logs, checkpoints, validation) belongs to none of them.

    Args:
        device: the device whose peak memory is reported.
        on_step: called after every step.
        own: is marked by whoever exchanges gradients.
    """

    def __init__(
        self,
        device: torch.device,
        on_step: Callable[[StepTime], None] = lambda step: None,
        own: OwnTime | None = None,
    ) -> None:
        self.device, self.on_step, self.own = device, on_step, own or OwnTime(device)
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
        self.own.begin()
        yield
        own = self.own.seconds()
        self._steps += 1
        self._samples += samples
        self._total_waited += self._waited
        computed = time.perf_counter() - began
        self.on_step(StepTime(waited=self._waited, computed=computed, own=own, samples=samples))

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
