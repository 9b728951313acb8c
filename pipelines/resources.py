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
        raise ValueError(f"RAY_ADDRESS={address} is where jobs are submitted; unset it here, or `ray job submit` this")
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


def cpus() -> int:
    """CPUs of the joined cluster as it is now; it may grow."""
    import ray

    return int(ray.cluster_resources().get("CPU", 1))


def workers(gpu: float) -> int:
    """Workers with one CPU, and this share of a GPU, that the cluster has room for now."""
    import ray

    gpus = ray.cluster_resources().get("GPU", 0)
    return max(1, min(cpus(), int(gpus / gpu) if gpu else cpus()))


def can_grow() -> bool:
    """Whether the cluster may add nodes when work waits; one that was started here cannot."""
    return bool(os.environ.get("RAY_ADDRESS"))
