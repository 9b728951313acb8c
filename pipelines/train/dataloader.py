"""Training data as a Ray Data stream: one row per work item goes in, one row per batch comes out, in order.

Each rank streams the work of its own lanes (see `lawdnet.training.virtual_ranks`); the tasks that read and decode run
wherever the cluster has a free CPU that is not kept for builds, and where the trainers have taken them all in the
trainer's own process.
"""

from __future__ import annotations

import dataclasses
import logging
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
from lawdnet.tasks.background import ahead
from lawdnet.training.virtual_ranks import take_seat
from pipelines.cluster import resources

log = logging.getLogger(__name__)

WORK_AT_ONCE = 4096
"""Work items listed at a time: epochs of a small dataset share one stream, a large one's list stays in bounds."""
BATCHES_AHEAD = 4

Batch = dict[str, np.ndarray]

IDLE_SECONDS = 0.02


class _Rest(ExecutionCallback):
    """Lets Ray Data's scheduling loop sleep between its steps.

    While it waits for the trainer to take a batch it has no task to wait for, and turns without a pause: in the
    trainer's process that costs one core and the interpreter's lock, half of the speed on two cores (Ray 2.60).
    """

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(IDLE_SECONDS)


def rank_batches(
    segments: Sequence[SegmentRef], spec: SampleSpec, *, seed: int, rank: int, world: int, stored_width: int,
    epochs: int, epoch: int = 0, step: int = 0, lanes: int | None = None, here: bool = False,
) -> Iterator[Batch]:  # fmt: skip
    """This rank's batches from (epoch, step) to the end of `epochs`, as `draw_batches` gives them.

    Args:
        lanes: streams that all ranks share, as many as ranks where None. A step takes one batch from each; this rank's
            come one after the other, and carry the number of the step.
        here: draw in this process, without Ray Data.
    """
    mine = take_seat(rank, world, lanes or world).lanes
    works = (
        items
        for e in range(epoch, epochs)
        for items in zip(*(_plan(segments, spec, seed, e, lane, lanes or world, step if e == epoch else 0)
                           for lane in mine), strict=True)
    )  # fmt: skip
    draw = partial(draw_samples, spec=spec, seed=seed, stored_width=stored_width)
    rows = ({"works": [dataclasses.asdict(work) for work in items]} for items in works)
    if here:
        return ahead(chain.from_iterable(map(draw, rows)), BATCHES_AHEAD)
    return _through_ray(rows, draw)


def _plan(
    segments: Sequence[SegmentRef], spec: SampleSpec, seed: int, epoch: int, lane: int, lanes: int, start: int
) -> Iterator[Work]:
    return plan_epoch(segments, spec, seed=seed, epoch=epoch, rank=lane, world=lanes, start=start)


def draw_samples(row: dict[str, Any], *, spec: SampleSpec, seed: int, stored_width: int) -> Iterator[Batch]:
    """One group of every lane, whose batches take turns; all lanes have as many."""
    cv2.setNumThreads(1)  # Ray counts one CPU for this task
    streams = [draw_batches(_work(work), spec, seed=seed, stored_width=stored_width) for work in row["works"]]
    for batches in zip(*streams, strict=True):
        yield from batches


def _work(row: dict[str, Any]) -> Work:
    segments = tuple(SegmentRef(**segment) for segment in row["segments"])
    return Work(int(row["epoch"]), int(row["first_step"]), int(row["skip"]), segments)


def _through_ray(rows: Iterator[dict[str, Any]], draw: Any) -> Iterator[Batch]:
    resources.quiet_data()
    context = ray.data.DataContext.get_current()
    context.execution_options.label_selector = resources.away_from(resources.PREPROCESS)
    callbacks = context.custom_execution_callback_classes
    if _Rest not in callbacks:
        callbacks.append(_Rest)
    while items := list(islice(rows, WORK_AT_ONCE)):
        given = ray.data.from_items(items, override_num_blocks=len(items))
        stream = given.flat_map(draw, num_cpus=1, max_retries=3)
        stream.set_name("train")
        for batch in stream.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=BATCHES_AHEAD):
            yield {name: values[0] for name, values in batch.items()}


def is_starved(trainers: int) -> bool:
    """Whether the trainers hold every CPU that is not kept for builds, so that Ray Data would wait for one for ever."""
    if not ray.is_initialized():
        return True
    starved = resources.cpus(away=resources.PREPROCESS) - trainers < 1
    if starved:
        log.warning("no CPU is left to draw samples: each of %d workers draws its own; leave one CPU free", trainers)
    return starved
