"""Workers that hang or fail: a time-out for what they do together, a check before training, nodes to leave out."""

from __future__ import annotations

import logging
import re
import socket
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

log = logging.getLogger(__name__)

COLLECTIVE_SECONDS = 600
"""Longest wait for another worker; PyTorch's own is half an hour. A first step may compile for a minute."""
CHECK_SECONDS = 120.0
"""Longest wait in the check before training."""
FAILURES = 2
"""Failures of a node after which it is left out."""
NODE_ID = "ray.io/node-id"
ENVIRONMENT = {
    # the flight recorder: what every rank was doing when a collective ran out of time, for `torchfrtrace`
    "TORCH_FR_BUFFER_SIZE": "2000",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    "TORCH_FR_DUMP_TEMP_FILE": "/tmp/lawdnet_flight_recorder_rank_",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
}
"""For the workers, before they start torch.distributed."""


class NodeHangs(RuntimeError):
    """Some ranks did not take part in the check in time; the message names their nodes."""


def torch_config() -> TorchConfig:
    """How workers find each other, and how long they wait for each other."""
    return TorchConfig(timeout_s=COLLECTIVE_SECONDS)


def check_ranks(device: torch.device, seconds: float = CHECK_SECONDS, work: Callable[[], None] | None = None) -> None:
    """Let every rank compute on its device, and all of them sum a number, before anything depends on it.

    A GPU, a driver or a network card that hangs would otherwise show as a time-out of all ranks, which names none.

    Args:
        work: replaces the computing.

    Raises:
        NodeHangs: names the ranks that did not answer in time, and their nodes.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    store, rank, world = dist.distributed_c10d._get_default_store(), dist.get_rank(), dist.get_world_size()
    store.set(f"lawdnet/where/{rank}", f"on {socket.gethostname()}{_node()}")
    (work or (lambda: _compute(device)))()
    _meet(store, rank, world, "computed on its device", seconds)
    number = torch.ones((), device=device)
    summing = dist.all_reduce(number, async_op=True)
    end = time.monotonic() + seconds
    while not summing.is_completed() and time.monotonic() < end:
        time.sleep(0.01)
    if summing.is_completed():
        assert int(number) == world
        store.set(_key("summed", rank), "1")
    _meet(store, rank, world, "summed", seconds, is_there=True)


def _compute(device: torch.device) -> None:
    square = torch.ones(256, 256, device=device)
    assert float((square @ square).sum()) == 256**3


def _key(what: str, rank: int) -> str:
    return f"lawdnet/{what}/{rank}"


def _meet(store: Any, rank: int, world: int, what: str, seconds: float, *, is_there: bool = False) -> None:
    """Wait until all ranks have said that they did something; `is_there`: this one has said so if it has."""
    if not is_there:
        store.set(_key(what, rank), "1")
    try:
        store.wait([_key(what, one) for one in range(world)], timedelta(seconds=seconds))
    except RuntimeError:
        missing = [one for one in range(world) if not store.check([_key(what, one)])]
        if missing:
            ranks = "; ".join(_where(store, one) for one in missing)
            raise NodeHangs(f"has not {what} within {seconds:g} s: {ranks}") from None


def _where(store: Any, rank: int) -> str:
    key = f"lawdnet/where/{rank}"
    return f"rank {rank} {store.get(key).decode() if store.check([key]) else '(which never came)'}"


def _node() -> str:
    return f" (node {ray.get_runtime_context().get_node_id()})" if ray.is_initialized() else ""


class LeaveOutFailing(ControllerCallback, WorkerGroupCallback):
    """Starts no more workers on a node that failed twice: one whose worker died or hung, or that the check named.

    At most half of the nodes are left out. The count starts again with each stage.

    Args:
        selector: Ray's label selector for the nodes that may have workers.
    """

    def __init__(self, selector: dict[str, str]) -> None:
        self.selector = selector
        self.failures: Counter[str] = Counter()
        self.nodes: dict[int, str] = {}
        self.seen: set[str] = set()

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Note where the ranks are."""
        workers = worker_group.get_workers()
        self.nodes = {one.distributed_context.world_rank: one.metadata.node_id for one in workers}
        self.seen |= set(self.nodes.values())

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Count the nodes that are to blame; there is one status with errors for each failure."""
        errors = {rank: status.error for rank, status in worker_group_status.worker_statuses.items() if status.error}
        died = (WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError)
        blamed = {self.nodes[rank] for rank, error in errors.items() if isinstance(error, died) and rank in self.nodes}
        for error in errors.values():
            if "has not" in f"{error}" and NodeHangs.__name__ in f"{error!r}{error}":
                blamed |= set(re.findall(r"\(node ([0-9a-f]+)\)", f"{error}"))
        self.failures.update(blamed)

    def on_controller_start_worker_group(self, *, scaling_config: Any, num_workers: int) -> dict[str, str] | None:
        """The label selector for the next workers."""
        worst = [node for node, count in self.failures.most_common() if count >= FAILURES]
        left_out = worst[: len(self.seen) // 2]
        if not left_out:
            return None
        log.warning("left out after %d failures: node %s", FAILURES, ", ".join(left_out))
        return self.selector | {NODE_ID: f"!in({','.join(left_out)})"}
