"""How the project meets a Ray cluster: the one of this machine, or the one it was submitted to."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LOCAL_OBJECT_STORE_BYTES = 512 * 1024 * 1024
"""Only paths, small rows and JPEG bytes travel; the default of 30 % of the memory would be reserved for nothing."""

_ENVIRONMENT = {
    # a worker's failure shows within half a second instead of two
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # torch's threads sleep rather than spin while they wait: other processes want the cores
    "OMP_WAIT_POLICY": "PASSIVE",
    # Ray Data's actors make its core print an error that is none (ray-project/ray#53727)
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
"""Ray reads these when its processes start."""

ROLE = "lawdnet-role"
"""Label of nodes that are kept for one kind of work, PREPROCESS or TRAIN. Builds and renders stay away from nodes for
training, trainers and those who draw their samples from nodes for preprocessing; nodes without it take everything.

Work is told where *not* to run, so that nothing need be known of nodes that have not started yet. The autoscaler heeds
it too, and starts no GPU machine for builders however many wait."""
PREPROCESS, TRAIN = "preprocess", "train"

SPARED_CPUS = 2
"""What a build or a render leaves of a cluster that was not started here and whose nodes take everything: for a worker
that trains, and one who draws its samples. Ray itself shares what is left after trainers evenly among all who read,
build and render at the time; but it takes nothing back, and a build's workers hold their CPUs to its end. To keep more
free, give nodes the label."""


@contextmanager
def cluster(num_cpus: int = 2) -> Iterator[None]:
    """Joins the cluster that RAY_ADDRESS or the enclosing job names, else starts one here and stops it at the end.

    Inside another `cluster()` block nothing happens: the outer one owns the connection.

    Args:
        num_cpus: of a cluster started here, at least; more than the machine has share its cores. Training needs one
            for each worker and one to draw samples.

    Raises:
        ValueError: RAY_ADDRESS is not one that Ray joins.
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
        "object_store_memory": LOCAL_OBJECT_STORE_BYTES,
        "include_dashboard": False,
    }  # fmt: skip
    # "local": another Ray that runs on this machine is not ours to join
    if not address:  # that a cluster of this machine alone asks for a token is no news
        logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    ray.init(address=address or "local", log_to_driver=False, logging_level=logging.WARNING, **local)
    quiet_data()
    try:
        yield
    finally:
        ray.shutdown()


def quiet_data() -> None:
    """Ray Data without bars of its own, in order, and with blocks small enough for pictures."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.target_max_block_size = 16 * 1024 * 1024
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # warns that the bars are off
    # `max_restarts` and `max_retries` of an operator are to go in Ray 2.64, and have no successor in 2.60
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")


def away_from(role: str) -> dict[str, str]:
    """Ray's label selector for every node but those that are kept for a role."""
    return {ROLE: f"!{role}"}


@contextmanager
def beside_training(gpu: float) -> Iterator[None]:
    """Ray Data's work in this block takes nothing from trainers: neither their nodes nor the last CPUs.

    Args:
        gpu: share of a GPU that each worker takes; where it is any, the nodes for training are what is wanted.
    """
    import ray
    from ray.data import ExecutionResources

    options = ray.data.DataContext.get_current().execution_options
    before = options.label_selector, options.exclude_resources
    options.label_selector = None if gpu else away_from(TRAIN)
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


def cpus(away: str = "") -> int:
    """CPUs of the joined cluster as it is now, but for nodes that are kept for the role `away`; it may grow."""
    return int(sum(node["Resources"]["CPU"] for node in _nodes() if not away or node["Labels"].get(ROLE) != away))


def _nodes() -> list[dict[str, Any]]:
    """Those that are there and work."""
    import ray

    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]


def workers(gpu: float) -> int:
    """Workers with one CPU, and this share of a GPU, that the cluster has room for now.

    Raises:
        ValueError: they are to have GPUs, and this machine alone, which has none, is to do the work.
    """
    import ray

    gpus = ray.cluster_resources().get("GPU", 0)
    if gpu and not gpus and not can_grow():  # Ray would wait for one for ever
        raise ValueError(
            "--gpu: no GPU on this machine; leave --gpu out, or name a cluster: lawdnet --address http://HEAD:8265 …"
        )
    return max(1, min(cpus(), int(gpus / gpu) if gpu else cpus()))


def can_grow() -> bool:
    """Whether the cluster may add nodes when work waits; one that was started here cannot."""
    return bool(os.environ.get("RAY_ADDRESS"))
