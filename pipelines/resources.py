"""How the project meets a Ray cluster: the one of this machine, or the one it was submitted to."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LOCAL_OBJECT_STORE_BYTES = 512 * 1024 * 1024
"""Only paths, small rows and JPEG bytes travel; the default of 30 % of the memory would be reserved for nothing."""

_ENVIRONMENT = {
    # a worker's failure shows within half a second instead of two
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Ray Data's actors make its core print an error that is none (ray-project/ray#53727)
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
"""Ray reads these when its processes start."""


@contextmanager
def cluster(num_cpus: int | None = None) -> Iterator[None]:
    """Joins the cluster that RAY_ADDRESS or the enclosing job names, else starts one here and stops it at the end.

    Inside another `cluster()` block nothing happens: the outer one owns the connection.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    local = {} if address else {
        # one CPU trains while another draws samples, on the smallest machine too
        "num_cpus": num_cpus or max(2, os.cpu_count() or 2),
        "object_store_memory": LOCAL_OBJECT_STORE_BYTES,
        "include_dashboard": False,
    }  # fmt: skip
    ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **local)
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
    """CPUs of the joined cluster."""
    import ray

    return int(ray.cluster_resources().get("CPU", 1))
