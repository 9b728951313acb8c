"""Training data as a Ray Data stream: one row per work item goes in, one row per batch comes out, in order.

Each rank streams its own work; the tasks that read and decode run wherever the cluster has a free CPU.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any

import cv2
import numpy as np
import ray
from ray.data._internal.execution.execution_callback import ExecutionCallback

from lawdnet.data.manifest import SegmentRef
from lawdnet.data.sampling import SampleSpec, Work, draw_batches, plan_epoch
from pipelines import resources

WORK_AT_ONCE = 4096
"""Work items listed at a time: epochs of a small dataset share one stream, a large one's list stays in bounds."""


IDLE_SECONDS = 0.02


class _Rest(ExecutionCallback):
    """Lets Ray Data's scheduling loop sleep between its steps.

    While it waits for the trainer to take a batch it has no task to wait for, and turns without a pause: in the
    trainer's process that costs one core and the interpreter's lock, half of the speed on two cores (Ray 2.60).
    """

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(IDLE_SECONDS)


def _draw(row: dict[str, Any], *, spec: SampleSpec, seed: int, stored_width: int) -> Iterator[dict[str, np.ndarray]]:
    cv2.setNumThreads(1)  # Ray counts one CPU for this task
    segments = tuple(SegmentRef(**segment) for segment in row["segments"])
    work = Work(int(row["epoch"]), int(row["first_step"]), int(row["skip"]), segments)
    yield from draw_batches(work, spec, seed=seed, stored_width=stored_width)


def rank_batches(
    segments: Sequence[SegmentRef], spec: SampleSpec, *, seed: int, rank: int, world: int, stored_width: int,
    epochs: int, epoch: int = 0, step: int = 0,
) -> Iterator[dict[str, np.ndarray]]:  # fmt: skip
    """This rank's batches from (epoch, step) to the end of `epochs`, as `draw_batches` gives them."""
    resources.quiet_data()
    callbacks = ray.data.DataContext.get_current().custom_execution_callback_classes
    if _Rest not in callbacks:
        callbacks.append(_Rest)
    works = chain.from_iterable(
        plan_epoch(segments, spec, seed=seed, epoch=e, rank=rank, world=world, start=step if e == epoch else 0)
        for e in range(epoch, epochs)
    )
    draw = partial(_draw, spec=spec, seed=seed, stored_width=stored_width)
    while items := [dataclasses.asdict(work) for work in islice(works, WORK_AT_ONCE)]:
        stream = ray.data.from_items(items, override_num_blocks=len(items)).flat_map(draw, num_cpus=1, max_retries=3)
        for batch in stream.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=4):
            yield {name: values[0] for name, values in batch.items()}
