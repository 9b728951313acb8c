"""The networks of a build in processes of their own: a few have the GPUs, and the CPU workers ask them.

A CPU worker decodes, sends what its networks take (small frames, crops of faces, pieces of audio), and decodes on while
they compute. It is the same code as without GPUs: a landmark source or an extractor whose `networks` ask elsewhere.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property, partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from lawdnet.networks import HasNetworks, Network
from lawdnet.tasks.records import TaskRecord
from lawdnet.tasks.task import Item, Job, Task
from lawdnet.types import Beat
from pipelines.build.network_worker import NetworkWorker
from pipelines.cluster import resources
from pipelines.executor import map_items

if TYPE_CHECKING:
    from pipelines.build.task import BuildJob

T = TypeVar("T")
I = TypeVar("I", bound=Item[Any])
R = TypeVar("R", bound=TaskRecord)

CALLS = 3
"""How many calls a CPU worker makes at once: one is computed, one is on its way, and frames are decoded for one."""
CALL_BYTES = 20 << 20
"""Most that a call of a usual size takes in the object store: 16 frames of 640×640."""
WORKERS_PER_CPU = 2
"""CPU workers for each CPU. One that waits for a network leaves its CPU to the other, which decodes or crops."""
LOOK_SECONDS = 30.0
"""How long a CPU worker remembers which network workers there are."""
WAIT_SECONDS = 1.0


class RemoteNetworks:
    """What a CPU worker knows of the network workers. It uses those of its own node; if there are none, all.

    Args:
        workers: handles of the actors.
        stall_seconds: a network worker that does not say a word for twice as long is replaced.
    """

    def __init__(self, workers: Sequence[Any], stall_seconds: float) -> None:
        self.workers, self.stall_seconds = workers, stall_seconds
        self.video = ""
        """Key of the video that the next calls are for: it is what is given up if they end processes."""
        self._near: list[Any] = []
        self._looked = 0.0
        self._turn = 0

    def connect(self, made: T, beat: Beat) -> T:
        """Let a landmark source or an extractor ask here for what its networks compute, if it has any.

        Args:
            made: the source or extractor, of which only the networks change.
            beat: called while an answer is waited for: a network that hangs is found by its own worker.
        """
        if isinstance(made, HasNetworks):
            owner = made.name
            made.networks = {
                name: Network(partial(self.compute, beat, f"{owner}/{name}"), network.batch)
                for name, network in made.networks.items()
            }
            made.calls = CALLS
        return made

    def compute(self, beat: Beat, name: str, *given: Any) -> Any:
        """Return what a network makes of its input; if a network worker dies, the call is made again.

        Raises:
            Rejected: CRASH or TIMEOUT, if calls for this video end every process that computes them, or make one hang.
            Exception: what the network raises.
        """
        is_retry = False
        while True:
            worker = self._choose(beat)
            try:
                return self._wait(worker, worker.compute.remote(self.video, name, is_retry, *given), beat)
            except RayTaskError as error:
                raise error.cause or error from error
            except RayActorError:
                is_retry = True
                with self._lock:
                    self._near = []
                time.sleep(WAIT_SECONDS / 4)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    @cached_property
    def _lock(self) -> threading.Lock:
        return threading.Lock()

    def _choose(self, beat: Beat) -> Any:
        """Return the network workers that are near in turn."""
        with self._lock:
            if not self._near or time.monotonic() - self._looked > LOOK_SECONDS:
                self._near, self._looked = self._look(beat), time.monotonic()
            self._turn += 1
            return self._near[self._turn % len(self._near)]

    def _look(self, beat: Beat) -> list[Any]:
        """Return the network workers on this node, or all that have started; wait for one, as for a GPU.

        Raises:
            RuntimeError: all are gone for good.
        """
        here = ray.get_runtime_context().get_node_id()
        while True:
            asked = {worker.place.remote(): worker for worker in self.workers}
            ray.wait(list(asked), timeout=WAIT_SECONDS)
            told, _ = ray.wait(list(asked), num_returns=len(asked), timeout=WAIT_SECONDS / 4)
            beat()
            places = {ref: _place(ref) for ref in told}
            if started := [ref for ref, place in places.items() if place]:
                own = [ref for ref in started if places[ref] == here]
                return [asked[ref] for ref in own or started]
            if len(told) == len(asked) and all(place is None for place in places.values()):
                raise RuntimeError("no network worker is left; their log says why")

    def _wait(self, worker: Any, asked: Any, beat: Beat) -> Any:
        """Return the answer to a call; a worker that hangs as a whole, so that it finds nothing, is replaced."""
        since, sign = time.monotonic(), None
        while not ray.wait([asked], timeout=WAIT_SECONDS)[0]:
            beat()
            if time.monotonic() - since > self.stall_seconds:
                if sign is not None and not ray.wait([sign], timeout=0)[0]:
                    ray.kill(worker, no_restart=False)
                since, sign = time.monotonic(), worker.place.remote()
        beat()
        return ray.get(asked)


def _place(ref: Any) -> str | None:
    """Return the node that a network worker says it is on, "" if it is being replaced, None if it is gone for good."""
    try:
        place: str = ray.get(ref)
    except ActorDiedError:
        return None
    except RayActorError:
        return ""
    return place


class NetworkPool(AbstractContextManager["NetworkPool"]):
    """Does a build's work as `map_items`, with the networks in workers that start with the first work there is.

    Args:
        make: makes the networks in a network worker, from the job.
        job: what all workers of the build are told.
        gpu: share of a GPU that each network worker takes.
        join: see `NetworkWorker`.
        per_cpu: CPU workers for each CPU.
    """

    def __init__(
        self,
        make: Callable[[BuildJob], Mapping[str, Network]],
        job: BuildJob,
        gpu: float,
        *,
        join: bool | None = None,
        per_cpu: int = WORKERS_PER_CPU,
    ) -> None:
        self.gpu, self.per_cpu = gpu, per_cpu
        self._given = make, job, join
        self._stack = ExitStack()
        self._remote: RemoteNetworks | None = None

    def __call__(
        self, task: type[Task[I, R]], job: Job, items: Sequence[I], *, name: str, gpu: float
    ) -> Generator[tuple[str, R], None, None]:
        """See `Execute`; the CPU workers take no share of a GPU."""
        job = dataclasses.replace(cast("BuildJob", job), networks=self._start())
        yield from map_items(task, job, items, name=name, gpu=0.0, beside_gpus=gpu > 0, per_cpu=self.per_cpu)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def workers(self) -> Sequence[Any]:
        """The actors; none before there is work."""
        return self._remote.workers if self._remote else []

    def _start(self) -> RemoteNetworks:
        if self._remote is None:
            in_flight = CALLS * CALL_BYTES * self.per_cpu * (os.cpu_count() or 1)
            store_bytes = resources.LOCAL_OBJECT_STORE_BYTES + in_flight
            self._stack.enter_context(resources.cluster(store_bytes=store_bytes))
            # its CPU is not counted: it launches what the GPU computes, and must start on a node that is full
            actor = ray.remote(NetworkWorker).options(num_cpus=0, num_gpus=self.gpu, max_restarts=-1)
            workers = [actor.remote(*self._given) for _ in range(resources.network_workers(self.gpu))]
            self._stack.callback(_stop, workers)
            self._remote = RemoteNetworks(workers, self._given[1].stall_seconds)
        return self._remote


def _stop(workers: Sequence[Any]) -> None:
    ray.wait([worker.close.remote() for worker in workers], num_returns=len(workers), timeout=WAIT_SECONDS)
    for worker in workers:
        ray.kill(worker)
