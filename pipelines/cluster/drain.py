"""Tells Ray that this machine is about to be taken away, and waits: `python -m pipelines.cluster.drain [SECONDS]`.

For whoever learns of it first: a Kubernetes `preStop` hook, or a script that watches a cloud's spot notice. Training
that has a worker here then saves every few seconds (`pipelines.train.notice`), and Ray starts nothing more here.
"""

from __future__ import annotations

import sys
import time
from typing import Any

SECONDS = 90


def leave(seconds: int) -> None:
    """Announce that this machine goes in so many seconds.

    Raises:
        ConnectionError: no Ray is running here.
        RuntimeError: Ray does not let it go.
    """
    import ray
    from ray.core.generated import autoscaler_pb2

    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    try:
        context = ray.get_runtime_context()
        is_accepted, reason = _client(context.gcs_address).drain_node(
            context.get_node_id(),
            autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
            "the machine is taken away",
            int((time.time() + seconds) * 1000),
        )
    finally:
        ray.shutdown()
    if not is_accepted:
        raise RuntimeError(f"Ray does not let this machine go: {reason}")


def _client(address: str) -> Any:
    import ray._raylet as raylet

    return vars(raylet)["GcsClient"](address=address)  # not in what type checkers see of it


if __name__ == "__main__":
    duration = int(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    leave(duration)
    time.sleep(max(0, duration - 5))
