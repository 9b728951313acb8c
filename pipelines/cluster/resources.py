"""The Ray cluster: one on this machine, or the one that the job was submitted to."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LOCAL_OBJECT_STORE_BYTES = 512 * 1024 * 1024
"""Only paths, small rows and JPEG bytes travel; the default, 30 % of the memory, would be reserved for nothing."""

_ENVIRONMENT = {
    # a worker's failure shows within half a second instead of two
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # at Ray's nice 15, one other process that wants a core makes everything three times slower
    "RAY_worker_niceness": "0",
    # torch's threads sleep instead of spinning while they wait: other processes need the cores
    "OMP_WAIT_POLICY": "PASSIVE",
    # Ray Data's actors make Ray's core print an error that is harmless (ray-project/ray#53727)
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
"""Ray reads these when its processes start."""

ROLE = "lawdnet-role"
"""Label of nodes that are kept for one kind of work, PREPROCESS or TRAIN. Builds and renders stay away from training
nodes; training and its data loading stay away from preprocessing nodes; nodes without the label take everything.

Work is told where *not* to run, so that nothing need be known about nodes that have not started yet. The autoscaler
follows the label too, and starts no GPU machine for builds however many wait."""
PREPROCESS, TRAIN = "preprocess", "train"

SPARED_CPUS = 2
"""CPUs that a build or a render leaves free on a cluster that was not started here and whose nodes take everything: one
for a training worker and one for a process that draws its samples. Ray takes nothing back, and a build's workers hold
their CPUs to its end. To keep more free, give nodes the label."""

MOST_LOADERS = 12
"""Most processes that draw samples for a GPU, unless somebody asks for more; see docs/scaling.md."""
FEW_CPUS = 4
"""CPUs of a GPU if no node tells: the fewest that clouds give."""


@contextmanager
def cluster(num_cpus: int = 2, store_bytes: int = LOCAL_OBJECT_STORE_BYTES) -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS or the enclosing job names, else start one here and stop it at the end.

    Inside another `cluster()` block nothing happens: the outer one owns the connection.

    Args:
        num_cpus: CPUs of a cluster started here, at least; if the machine has fewer, they share its cores.
        store_bytes: memory of its object store.

    Raises:
        ValueError: RAY_ADDRESS cannot be joined.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    if address and address.startswith("http"):
        raise ValueError(
            f"RAY_ADDRESS={address} is where jobs are submitted; unset it, and use lawdnet --address {address}"
        )
    local: dict[str, Any] = {} if address else {
        "num_cpus": max(num_cpus, os.cpu_count() or 1),
        "object_store_memory": store_bytes,
        "include_dashboard": False,
    }  # fmt: skip
    # "local": another Ray that runs on this machine is not ours to join
    if not address:  # a cluster on this machine alone may ask for a token, which is not worth a warning
        logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    ray.init(address=address or "local", log_to_driver=False, logging_level=logging.WARNING, **local)
    quiet_data()
    try:
        yield
    finally:
        ray.shutdown()


def quiet_data() -> None:
    """Set up Ray Data: no progress bars of its own, results in order, and blocks small enough for images."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.target_max_block_size = 16 * 1024 * 1024
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # warns that the bars are off
    # `max_restarts` and `max_retries` of an operator will go in Ray 2.64, and have no successor in 2.60
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")


def away_from(role: str) -> dict[str, str]:
    """Ray's label selector for every node except those that are kept for a role."""
    return {ROLE: f"!{role}"}


@contextmanager
def beside_training(uses_gpus: bool) -> Iterator[None]:
    """Within this block Ray Data's work takes nothing from trainers: neither their nodes nor the last CPUs.

    Args:
        uses_gpus: whether the nodes for training are allowed, as they have the GPUs.
    """
    import ray
    from ray.data import ExecutionResources

    options = ray.data.DataContext.get_current().execution_options
    before = options.label_selector, options.exclude_resources
    options.label_selector = None if uses_gpus else away_from(TRAIN)
    is_open = can_grow() and any(ROLE not in node["Labels"] for node in _nodes())
    _exclude(options, ExecutionResources(cpu=SPARED_CPUS if is_open else 0))
    try:
        yield
    finally:
        options.label_selector = before[0]
        _exclude(options, before[1])


def _exclude(options: Any, what: Any) -> None:
    with warnings.catch_warnings():  # it goes after January 2027, and labels cannot share out a node
        warnings.filterwarnings("ignore", message=".*exclude_resources. is deprecated")
        options.exclude_resources = what


def cpus() -> int:
    """Number of CPUs of the cluster as it is now; it may grow."""
    return int(sum(node["Resources"]["CPU"] for node in _nodes()))


def loaders(trainers: int, *, gpu: bool) -> int:
    """Number of processes that draw samples for each of so many trainers, if nobody chose it.

    A GPU gets its share of a node's CPUs without one that stays free: the smallest share among the nodes for training
    that are there now. A trainer without a GPU computes far longer than drawing takes: it gets one process if this
    machine has two cores for it, and none on a cluster, where it starts on any node that has a CPU left.
    """
    if not can_grow():
        room = (os.cpu_count() or 1) // trainers
        return max(0, min(MOST_LOADERS if gpu else 1, room - 1))
    if not gpu:
        return 0
    nodes = [node["Resources"] for node in _nodes() if node["Labels"].get(ROLE) != PREPROCESS]
    shares = [int((node["CPU"] - 1) / node["GPU"]) for node in nodes if node.get("GPU")]
    return max(0, min(MOST_LOADERS, min(shares, default=FEW_CPUS - 1) - 1))


def _nodes() -> list[dict[str, Any]]:
    """The nodes that are alive and have CPUs."""
    import ray

    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]


def workers(gpu: float) -> int:
    """Number of workers with one CPU and this share of a GPU that the cluster has room for now.

    Raises:
        ValueError: workers need GPUs, but the work is to be done on this machine alone, which has none.
    """
    return max(1, min(cpus(), int(_gpus() / gpu) if gpu else cpus()))


def network_workers(gpu: float) -> int:
    """Number of processes with this share of a GPU that the cluster has room for now.

    Raises:
        ValueError: as `workers`.
    """
    if not gpu:
        return 1
    return max(1, int(_gpus()) * int(1 / gpu + 1e-9) if gpu <= 1 else int(_gpus() / gpu))


def _gpus() -> float:
    import ray

    gpus: float = ray.cluster_resources().get("GPU", 0)
    if not gpus and not can_grow():  # Ray would wait for one forever
        raise ValueError(
            "--gpu: no GPU on this machine; leave --gpu out, or name a cluster: lawdnet --address http://HEAD:8265 …"
        )
    return gpus


def can_grow() -> bool:
    """Whether the cluster may add nodes when work is waiting; a cluster that was started here cannot."""
    return bool(os.environ.get("RAY_ADDRESS"))
