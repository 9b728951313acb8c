"""Ray Train and torch.distributed as a stage's virtual ranks need them; see `lawdnet.training.virtual_ranks`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from ray.train import ScalingConfig
from ray.train.torch import prepare_model
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from lawdnet.training.virtual_ranks import Workers
from pipelines.cluster.resources import PREPROCESS, away_from

RESIZE_SECONDS = 30.0
"""Interval at which Ray looks for room for more workers; taking them in restarts all workers."""


def scaling(workers: Workers, *, gpu: bool, loaders: int = 0) -> ScalingConfig:
    """What to ask of Ray Train. A worker's CPUs are on one node: its own, and those of the processes that it starts."""
    number: Any = (workers.least, workers.most) if workers.is_elastic else workers.most
    return ScalingConfig(
        num_workers=number,
        use_gpu=gpu,
        resources_per_worker={"CPU": 1.0 + loaders} | ({"GPU": 1.0} if gpu else {}),
        label_selector=away_from(PREPROCESS),
        elastic_resize_monitor_interval_s=RESIZE_SECONDS,
    )


@dataclass(frozen=True)
class Parallel:
    """`wrap` for the training steps: gradients are the mean over all virtual ranks, whoever computed them."""

    weight: float
    """Weight of this worker's gradient in the mean."""
    mark: Callable[[], None] = lambda: None
    """Called when gradients are exchanged."""

    def __call__(self, network: nn.Module) -> nn.Module:
        wrapped: nn.Module = prepare_model(network, move_to_device=False)
        return weigh(wrapped, self.weight, self.mark) if isinstance(wrapped, DistributedDataParallel) else wrapped


def weigh(
    network: DistributedDataParallel, weight: float, mark: Callable[[], None] = lambda: None
) -> DistributedDataParallel:
    """Let this rank's gradients count with a weight in the mean; returns the network."""

    # torch compares a hook's annotations as objects, and ours are strings: this one has none
    def exchange(weight, bucket):  # type: ignore[no-untyped-def]
        mark()
        return _weighted_sum(weight, bucket)

    network.register_comm_hook(weight, exchange)
    return network


def _weighted_sum(weight: float, bucket: dist.GradBucket) -> Future[Tensor]:
    """Sum over the workers, each of which brings the mean over its own virtual ranks."""
    total = dist.all_reduce(bucket.buffer().mul_(weight), async_op=True)
    assert total is not None
    return total.get_future().then(lambda done: done.value()[0])


def gather(value: Any) -> list[Any]:
    """A small value of each worker, by rank; all workers call it together."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
