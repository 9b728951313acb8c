"""Training data as a Ray Data stream: a row per group of segments goes in, a row per batch comes out, in order.

Each rank streams the batches of its share of the virtual ranks (see `lawdnet.training.virtual_ranks`). The tasks that
read and decode run on any free CPU of the cluster that is not kept for builds; if the trainers hold all CPUs, each
draws its samples in its own process.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any

import cv2
import numpy as np
import ray
from ray.data._internal.execution.execution_callback import ExecutionCallback

from lawdnet.data.manifest import SegmentRef
from lawdnet.data.sampling import SampleSpec, Work, batches_per_epoch, draw_batches, plan_epoch
from lawdnet.tasks.background import ahead
from lawdnet.training.position import START, Position
from lawdnet.training.virtual_ranks import group_by_step, share_of
from pipelines.cluster import resources

log = logging.getLogger(__name__)

WORK_AT_ONCE = 4096
"""Groups of segments listed at a time: epochs of a small dataset share one stream, and the list of a large one stays
within bounds."""
BATCHES_AHEAD = 4

Batch = dict[str, np.ndarray]
Row = dict[str, Any]

IDLE_SECONDS = 0.02


class _Idle(ExecutionCallback):
    """Lets Ray Data's scheduling loop sleep between its steps.

    While it waits for the trainer to take a batch it has no task to wait for and spins: in the trainer's process that
    costs one core and the interpreter's lock, half of the speed on two cores (Ray 2.60).
    """

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(IDLE_SECONDS)


def rank_batches(
    segments: Sequence[SegmentRef],
    spec: SampleSpec,
    *,
    seed: int,
    rank: int,
    world: int,
    stored_width: int,
    epochs: int,
    start: Position = START,
    virtual_ranks: int | None = None,
    accumulate: int = 1,
    in_process: bool = False,
) -> Iterator[list[Batch]]:
    """Yield this rank's micro-batches of every optimiser step from `start` to the end of `epochs`.

    Args:
        virtual_ranks: number of streams that all ranks share; as many as ranks if not given.
        accumulate: micro-batches that a step takes from each virtual rank.
        in_process: draw samples in this process, without Ray Data.
    """
    total = virtual_ranks or world
    mine = share_of(rank, world, total)
    works = (
        group
        for epoch in range(start.epoch, epochs)
        for group in zip(
            *(
                plan_epoch(
                    segments,
                    spec,
                    seed=seed,
                    epoch=epoch,
                    rank=virtual_rank,
                    world=total,
                    start=start.step * accumulate if epoch == start.epoch else 0,
                )
                for virtual_rank in mine
            ),
            strict=True,
        )
    )
    draw = partial(draw_samples, spec=spec, seed=seed, stored_width=stored_width)
    rows = ({"works": [dataclasses.asdict(work) for work in group]} for group in works)
    batches = ahead(chain.from_iterable(map(draw, rows)), BATCHES_AHEAD) if in_process else _through_ray(rows, draw)
    return group_by_step(
        batches,
        start=start,
        epochs=epochs,
        batches_per_rank=batches_per_epoch(len(segments), total, spec),
        accumulate=accumulate,
        ranks=len(mine),
    )


def draw_samples(row: Row, *, spec: SampleSpec, seed: int, stored_width: int) -> Iterator[Batch]:
    """Draw the batches of one group of segments of every virtual rank. The ranks take turns; all have as many."""
    cv2.setNumThreads(1)  # Ray counts one CPU for this task
    streams = [draw_batches(_work(work), spec, seed=seed, stored_width=stored_width) for work in row["works"]]
    for batches in zip(*streams, strict=True):
        yield from batches


def _work(row: Row) -> Work:
    return Work(**row | {"segments": tuple(SegmentRef(**segment) for segment in row["segments"])})


def _through_ray(rows: Iterator[Row], draw: Callable[[Row], Iterator[Batch]]) -> Iterator[Batch]:
    resources.quiet_data()
    context = ray.data.DataContext.get_current()
    context.execution_options.label_selector = resources.away_from(resources.PREPROCESS)
    callbacks = context.custom_execution_callback_classes
    if _Idle not in callbacks:
        callbacks.append(_Idle)
    while items := list(islice(rows, WORK_AT_ONCE)):
        given = ray.data.from_items(items, override_num_blocks=len(items))
        stream = given.flat_map(draw, num_cpus=1, max_retries=3)
        stream.set_name("train")
        for batch in stream.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=BATCHES_AHEAD):
            yield {name: values[0] for name, values in batch.items()}


def is_starved(trainers: int) -> bool:
    """Whether the trainers hold every CPU that is not kept for builds, so that Ray Data would wait forever for one."""
    if not ray.is_initialized():
        return True
    starved = resources.cpus(away=resources.PREPROCESS) - trainers < 1
    if starved:
        log.warning("no CPU is left to draw samples: each of %d workers draws its own; leave one CPU free", trainers)
    return starved
