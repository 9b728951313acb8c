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
"""Called with the name of a step and what it does; gives, while it lasts, what the step's pipeline is to call as it
gets on (`on_row` of a build and of renders, `on_epoch` of training), or None."""


@dataclass
class Steps:
    """Seconds per step and the peak memory of this process and its children."""

    begin: Begin
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0

    @contextmanager
    def step(self, name: str, text: str) -> Iterator[Any]:
        began = time.perf_counter()
        with self.begin(name, text) as on_progress:
            yield on_progress
        self.seconds[name] = round(time.perf_counter() - began, 2)

    def watch_memory(self) -> AbstractContextManager[None]:
        """Samples the resident memory of the whole process tree; shared pages count in each process."""
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
    with steps.step("build", f"building the dataset: decode, align, crop, {', '.join(config.features)}") as on_row:
        return build(source, root, config, on_row=on_row, **options)


def train_step(dataset: Dataset, run: Location, config: TrainConfig, running: RunOptions, steps: Steps) -> None:
    with steps.step("train", f"training {', '.join(stage.name for stage in config.stages)}") as on_epoch:
        train(dataset, run, config, running, on_epoch=on_epoch)
