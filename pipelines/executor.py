"""Tasks on Ray Data: items go in, each becomes a stored record, whatever dies on the way.

`lawdnet.tasks.task` says what a task is, and does the work within one process.
"""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import Any, Protocol, TypeVar, cast

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from lawdnet.tasks.disk import DiskFull
from lawdnet.tasks.records import RecordStore, Refusal, TaskRecord
from lawdnet.tasks.task import Item, Job, OnProgress, Progress, Task, TaskRunner
from lawdnet.types import RejectReason
from pipelines.cluster import resources

TELL_SECONDS = 1.0
"""Records that a worker finishes within this time are told together: each answer is a block that Ray Data manages."""

I = TypeVar("I", bound=Item[Any])
R = TypeVar("R", bound=TaskRecord)


class Execute(Protocol):
    """Where the work is done: on Ray (`map_items`); tests do it in their own process."""

    def __call__(
        self, task: type[Task[I, R]], job: Job, items: Sequence[I], *, name: str, gpu: float
    ) -> Generator[tuple[str, R], None, None]:
        """Yield keys with their records, as they are finished; nothing for an item whose worker raised."""
        ...


def complete(
    task: type[Task[I, R]],
    job: Job,
    items: Sequence[I],
    store: RecordStore[R],
    stored: Mapping[str, R],
    *,
    name: str,
    before: int = 0,
    gpu: float = 0.0,
    on_progress: OnProgress[R] | None = None,
    execute: Execute | None = None,
) -> Iterator[tuple[str, R]]:
    """Yield a record for every item: one that an earlier run stored, or what a worker makes of the item now.

    An item whose record was lost with its worker has failed, and is tried again by the next run.

    Args:
        job: what all workers are told.
        store: where the records are kept.
        stored: records of earlier runs that are still valid, by key.
        name: name of the work on Ray's dashboard.
        before: number of items that were done before these.
        gpu: share of a GPU that each worker takes beside its CPU.
        on_progress: called once for every item.
        execute: `map_items` if None.

    Raises:
        DiskFull: a worker has found the disk full.
    """
    done: set[str] = set()

    def finish(key: str, record: R, *, is_stored: bool = False) -> tuple[str, R]:
        done.add(key)
        if on_progress:
            on_progress(Progress(record, is_stored, before + len(done), before + len(items)))
        return key, record

    for key in [item.key for item in items if item.key in stored] if stored else ():
        yield finish(key, stored[key], is_stored=True)
    todo = [item for item in items if item.key not in stored] if stored else items
    if todo:
        with closing((execute or map_items)(task, job, todo, name=name, gpu=gpu)) as records:
            for key, record in records:
                if key not in done:  # work that is tried again may be told twice
                    yield finish(key, record)
    for item in todo:
        if item.key not in done:
            yield finish(item.key, _lost(task, job, item, store))


def _lost(task: type[Task[I, R]], job: Job, item: I, store: RecordStore[R]) -> R:
    found = store.read(item.key)
    if found and found.run == job.run:  # it was stored, and only the answer was lost
        return found
    record: R = item.record()
    record.run = job.run
    detail = "its record was lost; the workers' log says why, and the next run of the same command tries it again"
    record.refuse(Refusal("failed", RejectReason.INTERNAL_ERROR, detail))
    if found is None or list(found.inputs) != list(item.inputs):  # what an earlier run made of the same files stays
        store.write(item.key, record)
    task.count(record)
    return record


def map_items(
    task: type[Task[I, R]],
    job: Job,
    items: Sequence[I],
    *,
    name: str,
    gpu: float,
    beside_gpus: bool = False,
    per_cpu: int = 1,
) -> Generator[tuple[str, R], None, None]:
    """Do the work on Ray Data, in no particular order.

    A worker that dies is replaced and its batch tried again, without a limit: the tasks' own attempts say when to stop.

    Args:
        gpu: share of a GPU that each worker takes beside its CPU.
        beside_gpus: whether the work uses GPUs without taking a share, so that their nodes' CPUs are wanted.
        per_cpu: workers for each CPU.
    """
    with resources.cluster(), _errors_allowed(), resources.beside_training(gpu > 0 or beside_gpus):
        workers = per_cpu * resources.workers(gpu)
        batches = task.batches(items, workers)
        # bytes, as Ray would keep a Python object for every value; they come from this driver alone
        rows = [{"items": pickle.dumps([asdict(item) for item in batch])} for batch in batches]  # type: ignore[call-overload]
        # on a cluster that others use, no more workers at once than there is work
        room = len(rows) if resources.can_grow() else min(workers, len(rows))
        given = ray.data.from_items(rows, override_num_blocks=len(rows))
        # records are told when they are there, and not with the last of their batch; no batch waits behind another one
        # that is at work, and the pool grows all the same
        given.context.target_max_block_size = 1
        given.context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
        graph = given.flat_map(
            type(task.__name__, (_Worker,), {}),  # Ray's dashboard shows the name
            fn_constructor_args=(task, job),
            compute=ActorPoolStrategy(
                min_size=1 if resources.can_grow() else room, max_size=room, max_tasks_in_flight_per_actor=1
            ),
            num_cpus=1 / per_cpu,
            num_gpus=gpu or None,
            max_restarts=-1,
            max_task_retries=-1,
        )
        graph.set_name(name)
        for answers in graph.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for answer in cast("pa.Table", answers).to_pylist():
                for key, record in json.loads(answer["records"]):
                    yield key, cast("R", task.record_type.decode(record))
                if answer["stop"]:
                    raise DiskFull(answer["stop"])


class _Worker:
    """One process of the pool: batches of items come in as plain values, records go out as JSON."""

    def __init__(self, task: type[Task[Any, Any]], job: Job) -> None:
        self.item_type = task.item_type
        node: str = ray.get_runtime_context().get_node_id()
        self.runner: TaskRunner[Any, Any] = TaskRunner(task, job, node, _is_gone)

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, str]]:
        batch = [self.item_type(**item) for item in pickle.loads(row["items"])]
        records, stop, told = [], "", time.monotonic()
        try:
            for item, record in self.runner(batch):
                records.append((item.key, record.brief().encode()))
                if time.monotonic() - told >= TELL_SECONDS:
                    yield {"records": json.dumps(records), "stop": ""}
                    records, told = [], time.monotonic()
        except DiskFull as error:
            stop = str(error)
        if records or stop:
            yield {"records": json.dumps(records), "stop": stop}


def _is_gone(node: str) -> bool:
    """Whether Ray has seen a node leave. It notices after seconds, and places work that the node lost later still."""
    return not any(one["NodeID"] == node and one["Alive"] for one in ray.nodes())


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
