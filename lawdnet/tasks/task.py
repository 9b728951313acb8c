"""Resumable work on many items: what a kind of work must say of itself, and what runs its items whatever happens.

An item becomes one record. A worker process that dies leaves the attempts it made on disk, so that its successor knows
what to leave alone; an item that hangs ends its process; an item that raises costs only itself; if the disk of the
results is full, the job stops. `pipelines.executor` runs tasks on Ray Data.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar
from uuid import uuid4

from lawdnet.storage import Location
from lawdnet.tasks.attempts import MAX_ATTEMPTS, Attempt, Attempts
from lawdnet.tasks.disk import DiskFull, is_full_disk, is_scratch_full, scratch_advice
from lawdnet.tasks.records import RecordStore, Refusal, TaskRecord
from lawdnet.tasks.watchdog import Watchdog
from lawdnet.types import Beat, Rejected, RejectReason

log = logging.getLogger(__name__)

STALL_SECONDS = 300.0
"""An item that makes no progress for this long is given up: not one frame, not one window of audio."""

R = TypeVar("R", bound=TaskRecord)
R_co = TypeVar("R_co", bound=TaskRecord, covariant=True)


class Item(Protocol[R_co]):
    """One piece of work: a frozen dataclass of plain values, which travels to the workers."""

    @property
    def key(self) -> str:
        """What the record is stored under: the same for the same item in every run."""
        ...

    @property
    def name(self) -> str:
        """What a person calls it."""
        ...

    @property
    def inputs(self) -> Sequence[str]:
        """Fingerprints of the files and settings that the result depends on."""
        ...

    def record(self) -> R_co:
        """A record that says nothing yet."""
        ...


I = TypeVar("I", bound=Item[Any])


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker of a job is told. Kinds of work add fields."""

    root: str
    """Folder or URI of the results."""
    run: str = field(default_factory=lambda: uuid4().hex)
    """Name of this run of the job."""
    stall_seconds: float = STALL_SECONDS


class Task(Generic[I, R]):
    """One kind of work, made once in every worker process.

    Args:
        job: what all workers are told.
        beat: to be called wherever the work makes progress, for the watchdog.
    """

    item_type: ClassVar[type]
    record_type: ClassVar[type[TaskRecord]]
    store: RecordStore[R]

    def __init__(self, job: Any, beat: Beat) -> None:
        raise NotImplementedError

    def run(self, item: I, record: R) -> None:
        """Do the work and fill in the record; what it holds when this raises is kept beside the reason.

        Raises:
            Rejected: the input cannot be used.
        """
        raise NotImplementedError

    def begin(self, item: I) -> R:
        """The record that `run` fills in."""
        record: R = item.record()
        return record

    def prepare(self, items: Sequence[I]) -> AbstractContextManager[None] | None:
        """What the items of a batch share, which lasts as long as the batch; None if they share nothing.

        It is guarded like an item: if it fails, all items of the batch fail with its reason.
        """

    @staticmethod
    def count(record: R) -> None:
        """Count a finished item in the metrics."""

    @staticmethod
    def batches(items: Sequence[I], workers: int) -> Iterator[Sequence[I]]:
        """The items that are to stay together on one worker, in order."""
        for item in items:
            yield [item]


@dataclass(frozen=True)
class Progress(Generic[R]):
    """One more item is done."""

    record: R
    is_stored: bool
    """Whether an earlier run of the job had done it."""
    done: int
    total: int


OnProgress = Callable[[Progress[R]], None]


class TaskRunner(Generic[I, R]):
    """Runs items in this process and stores their records.

    Args:
        task: what to do with an item.
        job: what all workers are told.
        node: name of this machine, if there are several.
        is_gone: whether the machine of that name has left.
    """

    def __init__(
        self, task: type[Task[I, R]], job: Job, node: str = "", is_gone: Callable[[str], bool] = lambda node: False
    ) -> None:
        self.job = job
        self.watchdog = Watchdog(job.stall_seconds)
        self.task = task(job, self.watchdog.beat)
        self.store = self.task.store
        self.attempts = Attempts(self.store.folder, job.run, node, is_gone)

    def __call__(self, batch: Sequence[I]) -> Iterator[tuple[I, R]]:
        """Run the items of a batch one by one; each is yielded with its record, which is stored by then.

        Raises:
            DiskFull: the item that met it has no record.
        """
        try:
            yield from self._batch(batch)
        except OSError as error:
            if not is_full_disk(error):
                raise
            raise DiskFull.of(error, self.store.folder.parent) from error

    def _batch(self, batch: Sequence[I]) -> Iterator[tuple[I, R]]:
        todo = []
        for item in batch:
            found = self.store.read_loose(item.key)
            if found and found.run == self.job.run:  # a worker did it, and died of a later one
                yield item, found
            else:
                todo.append(item)
        with ExitStack() as stack:
            refusal = None
            if todo and (shared := self.task.prepare(todo)):
                key = batch_key(batch)
                refusal = self._guarded(key, todo[0].name, lambda: stack.enter_context(shared))
                self.attempts.end(key)
            for item in todo:
                yield item, self._item(item, refusal)

    def _item(self, item: I, refusal: Refusal | None) -> R:
        record = self.task.begin(item)
        record.run = self.job.run
        refusal = refusal or self._guarded(item.key, item.name, lambda: self.task.run(item, record))
        if refusal:
            record.refuse(refusal)
        self.store.write(item.key, record)
        self.attempts.end(item.key)
        self.task.count(record)
        return record

    def _guarded(self, key: str, name: str, work: Callable[[], None]) -> Refusal | None:
        """Do the work, watched and counted, unless it took its process with it too often; return why it failed."""
        before = self.attempts.begin(key)
        if before.is_quarantined:
            return _quarantined(before)
        detail = f"no frame and no audio was finished for {self.job.stall_seconds:.0f} s"
        with self.watchdog.watching(lambda: self.attempts.give_up(key, RejectReason.TIMEOUT, detail)):
            return _attempt(name, work, self.store.folder.parent)


def batch_key(batch: Sequence[Item[Any]]) -> str:
    """What the preparation of a batch is counted under."""
    return hashlib.sha256(" ".join(item.key for item in batch).encode()).hexdigest()[:16]


def _quarantined(before: Attempt) -> Refusal:
    if before.reason:
        return Refusal("rejected", RejectReason(before.reason), before.detail)
    detail = f"ended its worker process {MAX_ATTEMPTS} times (out of memory, or a crash in a codec)"
    return Refusal("rejected", RejectReason.CRASH, detail)


def _attempt(name: str, work: Callable[[], None], root: Location) -> Refusal | None:
    try:
        work()
    except Rejected as error:
        return Refusal("rejected", error.reason, error.detail)
    except Exception as error:  # an unforeseen input must not take the others with it
        if isinstance(error, OSError) and is_full_disk(error):
            if not is_scratch_full(error, root):
                raise
            return Refusal("failed", RejectReason.INTERNAL_ERROR, scratch_advice())
        log.exception("%s: failed", name)
        return Refusal("failed", RejectReason.INTERNAL_ERROR, f"{type(error).__name__}: {error}")
    return None
