"""The steps of a workflow: what they do, how long they take, and the memory that they need."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil

from lawdnet.data.config import BuildConfig
from lawdnet.data.manifest import Dataset
from lawdnet.storage import Location
from lawdnet.tasks.background import repeated
from lawdnet.training.config import TrainConfig
from lawdnet.training.options import RunOptions
from pipelines.build.build import build
from pipelines.train.train import train

Begin = Callable[[str, str], AbstractContextManager[Any]]
"""Called with the name of a step and what it does. While the step lasts it gives what the step's pipeline is to call
with its progress (`on_progress` of builds and renders, `on_epoch` of training), or None."""


@dataclass
class Steps:
    """Seconds per step and the peak memory of this process and its children."""

    begin: Begin
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0

    @contextmanager
    def step(self, name: str, text: str) -> Iterator[Any]:
        """Announce a step and time it."""
        began = time.perf_counter()
        with self.begin(name, text) as on_progress:
            yield on_progress
        self.seconds[name] = round(time.perf_counter() - began, 2)

    def watch_memory(self) -> AbstractContextManager[None]:
        """Sample the resident memory of the whole process tree; shared pages count in each process."""
        us = psutil.Process()

        def sample() -> None:
            self.peak_bytes = max(self.peak_bytes, sum(map(_resident, [us, *us.children(recursive=True)])))

        return repeated(sample)


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:  # it has ended meanwhile
        return 0


def build_step(source: Location, root: Location, config: BuildConfig, steps: Steps, **options: Any) -> Dataset:
    """Build, or complete, the dataset of a workflow."""
    text = f"building the dataset: decode, align, crop, {', '.join(config.features)}"
    with steps.step("build", text) as on_progress:
        return build(source, root, config, on_progress=on_progress, **options)


def train_step(dataset: Dataset, run: Location, config: TrainConfig, options: RunOptions, steps: Steps) -> None:
    """Train the stages of a workflow that are not finished."""
    with steps.step("train", f"training {', '.join(stage.name for stage in config.stages)}") as on_epoch:
        train(dataset, run, config, options, on_epoch=on_epoch)
