"""A process with a share of a GPU that computes networks for the CPU workers of a build."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray

from lawdnet.models.device import pick_device
from lawdnet.networks import Network
from lawdnet.tasks.attempts import MAX_ATTEMPTS, Attempt, Attempts
from lawdnet.tasks.task import Job
from lawdnet.tasks.watchdog import EXIT_CODE, Watchdog
from lawdnet.types import Rejected, RejectReason
from pipelines.cluster import metrics

log = logging.getLogger(__name__)

BROKEN = "CUDA error"
"""Part of the message of errors after which CUDA refuses everything else in the process."""


@dataclass(frozen=True, eq=False)
class _Call:
    """What a CPU worker asked for."""

    video: str
    name: str
    given: Sequence[Any]
    is_retry: bool
    answer: Future[Any] = field(default_factory=Future)

    @property
    def size(self) -> int:
        """Number of entries."""
        return len(self.given[0])

    @property
    def kind(self) -> tuple[Any, ...]:
        """Calls of one kind fit into one batch."""
        return self.name, *((array.shape[1:], array.dtype) for array in self.given)


class NetworkWorker:
    """Computes one batch at a time; calls that come meanwhile wait, and those of one kind are joined to the next.

    A video whose calls end the process or make it hang is found as an item is that does so: attempts on disk tell the
    next process. Calls that are made again are computed alone, so that others do not suffer for it.

    Args:
        make: makes the networks, when the first call comes.
        job: what all workers are told.
        join: whether to join calls to batches of `Network.batch` entries, and to fill those up, so that a network sees
            one size of batches only; None joins on a GPU.
    """

    def __init__(self, make: Callable[[Any], Mapping[str, Network]], job: Job, join: bool | None) -> None:
        self._make, self._job, self._join = make, job, join
        self._networks: Mapping[str, Network] = {}
        self._node: str = ray.get_runtime_context().get_node_id()
        self._folder = Path(tempfile.gettempdir()) / f"lawdnet-networks-{job.run}"
        self._folder.mkdir(exist_ok=True)
        self._attempts = Attempts(self._folder, job.run)
        self._watchdog = Watchdog(job.stall_seconds)
        self._waiting: deque[_Call] = deque()
        self._came = threading.Condition()
        threading.Thread(target=self._serve, daemon=True, name="networks").start()

    async def compute(self, video: str, name: str, is_retry: bool, *given: Any) -> Any:
        """Return the answers of a network.

        Args:
            video: key of the video that the call is for.
            name: of the network.
            is_retry: whether a worker died of this call, or of another one that was made at the same time.
            given: what the network takes.

        Raises:
            Rejected: CRASH or TIMEOUT, if calls for this video end every process, or make one hang.
            Exception: what the network raises.
        """
        call = _Call(video, name, given, is_retry)
        with self._came:
            self._waiting.append(call)
            self._came.notify()
        return await asyncio.wrap_future(call.answer)

    async def place(self) -> str:
        """Return the node that this process is on now."""
        return self._node

    async def close(self) -> None:
        """Remove what is left on disk."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _serve(self) -> None:
        while True:
            with self._came:
                self._came.wait_for(lambda: self._waiting)
                calls = [self._waiting.popleft()]
            try:
                self._load()
                calls += self._fitting(calls[0])
                self._answer(calls)
            except Exception as error:  # of making the networks, or of the disk
                for call in calls:
                    if not call.answer.done():
                        call.answer.set_exception(error)

    def _load(self) -> None:
        if not self._networks:
            self._networks = self._make(self._job)
            self._join = pick_device("auto").type != "cpu" if self._join is None else self._join

    def _batch(self, call: _Call) -> int:
        """Entries of a batch; 1 if there is no joining."""
        return self._networks[call.name].batch if self._join else 1

    def _may_join(self, call: _Call) -> bool:
        return not call.is_retry and self._batch(call) > 1

    def _fitting(self, first: _Call) -> list[_Call]:
        """Take the calls that fit into a batch with the first one."""
        if not self._may_join(first):
            return []
        room = self._batch(first) - first.size
        found = []
        with self._came:
            for call in list(self._waiting):
                if self._may_join(call) and call.kind == first.kind and call.size <= room:
                    room -= call.size
                    found.append(call)
                    self._waiting.remove(call)
        return found

    def _answer(self, calls: list[_Call]) -> None:
        """Compute a batch; if that fails, each of its calls alone."""
        begun = {video: self._attempts.begin(video) for video in dict.fromkeys(call.video for call in calls)}
        allowed = [call for call in calls if not begun[call.video].is_quarantined]
        for call in calls:
            if call not in allowed:
                call.answer.set_exception(_refusal(begun[call.video]))
        if not allowed:
            return
        network, batch = self._networks[allowed[0].name], self._batch(allowed[0])
        began = time.perf_counter()
        try:
            with self._watchdog.watching(lambda: self._give_up(allowed)):
                answers = network.compute(*(_joined(allowed, batch) if batch > 1 else allowed[0].given))
        except Exception as error:
            if BROKEN in str(error):
                log.exception("the device cannot be used any more; another process takes over")
                os._exit(EXIT_CODE)
            self._fail(allowed, error)
        else:
            _divide(answers, allowed, batch)
        finally:
            metrics.record("lawdnet_build_network_seconds_total", time.perf_counter() - began)
        for call in allowed:
            self._attempts.end(call.video)

    def _fail(self, calls: Sequence[_Call], error: Exception) -> None:
        if len(calls) == 1:
            calls[0].answer.set_exception(error)
            return
        for call in calls:
            self._attempts.end(call.video)
        for call in calls:
            self._answer([call])

    def _give_up(self, calls: Sequence[_Call]) -> None:
        """Note which call hangs; of several that were joined, each is computed alone before one is blamed."""
        if len(calls) == 1:
            detail = f"a network gave no answer for {self._job.stall_seconds:.0f} s"
            self._attempts.give_up(calls[0].video, RejectReason.TIMEOUT, detail)


def _refusal(before: Attempt) -> Rejected:
    if before.reason:
        return Rejected(RejectReason(before.reason), before.detail)
    detail = f"ended the process of a network {MAX_ATTEMPTS} times (out of memory, or a crash in a driver)"
    return Rejected(RejectReason.CRASH, detail)


def _joined(calls: Sequence[_Call], batch: int) -> Sequence[Any]:
    """Return what the network takes: that of all calls, and then the last entry again until the batch is full."""
    missing = max(0, batch - sum(call.size for call in calls))
    if len(calls) == 1 and not missing:
        return calls[0].given
    columns = zip(*(call.given for call in calls), strict=True)
    return [np.concatenate([*column, np.repeat(column[-1][-1:], missing, 0)]) for column in columns]


def _divide(answers: Any, calls: Sequence[_Call], batch: int) -> None:
    """Give each call its own answers."""
    if batch == 1:
        calls[0].answer.set_result(answers)
        return
    first = 0
    for call in calls:
        call.answer.set_result(answers[first : first + call.size])
        first += call.size
