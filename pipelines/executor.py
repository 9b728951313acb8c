"""A pool of stateful workers on Ray Data: items go in, answers come out as they are made, whatever dies on the way."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.data import ActorPoolStrategy

from lawdnet.storage import Location
from pipelines.cluster import resources

Row = dict[str, Any]


def answers(
    worker: type, order: Any, items: Sequence[Row], *, gpu: float, name: str, many: bool = False
) -> Generator[Row, None, None]:
    """What the workers say of the items, in no particular order; nothing comes of an item whose worker raised.

    A worker that dies is replaced and its item tried again, for ever: a worker counts its tries itself, see
    `lawdnet.tasks.records.Attempts`. An item that is tried again may be answered twice.

    Args:
        worker: made once per process with `order`, then called with an item; gives an answer, a small row.
        gpu: share of a GPU that each worker takes beside its CPU.
        name: of the work, as Ray's dashboard shows it.
        many: whether the worker gives an iterator of answers.
    """
    with resources.cluster(), _errors_allowed(), resources.beside_training(gpu):
        # a cluster that others use: no more workers at once than there is work
        room = len(items) if resources.can_grow() else min(resources.workers(gpu), len(items))
        given = ray.data.from_items(list(items), override_num_blocks=len(items))
        # an answer is told when it is there, and not with the last of its item; no item waits behind another one that
        # is at work, and the pool grows all the same
        given.context.target_max_block_size = 1
        given.context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
        graph = (given.flat_map if many else given.map)(
            worker,
            fn_constructor_args=(order,),
            compute=ActorPoolStrategy(
                min_size=1 if resources.can_grow() else room, max_size=room, max_tasks_in_flight_per_actor=1
            ),
            num_cpus=1,
            num_gpus=gpu or None,
            max_restarts=-1,
            max_task_retries=-1,
        )
        graph.set_name(name)
        for batch in graph.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from batch.to_pylist()


@contextmanager
def _errors_allowed() -> Iterator[None]:
    """A worker that dies costs its item, not the job, and no item waits for the one before it.

    In training the first would lose samples silently.
    """
    context = ray.data.DataContext.get_current()
    before = context.max_errored_blocks, context.execution_options.preserve_order
    context.max_errored_blocks, context.execution_options.preserve_order = -1, False
    try:
        yield
    finally:
        context.max_errored_blocks, context.execution_options.preserve_order = before


FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a disk says that has no room left."""


def is_full_disk(error: BaseException) -> bool:
    """Whether an error is about the disk rather than about the item that met it."""
    return isinstance(error, OSError) and error.errno in FULL


def full_disk(error: OSError, root: Location) -> str:
    """What a worker answers as `stop`.

    Raises:
        OSError: it is another one.
    """
    if not is_full_disk(error):
        raise error
    return f"{error.filename or root}: {os.strerror(error.errno or 0)}"


def check_stop(answer: Row) -> None:
    """Ends the job where a worker has found the disk full.

    Raises:
        OSError: it has.
    """
    if answer["stop"]:
        raise OSError(f"{answer['stop']}; make room and run the same command again, which goes on")
