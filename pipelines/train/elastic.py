"""Ray Train and torch.distributed as the virtual ranks of a stage need them; see `lawdnet.training.virtual_ranks`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from ray.train import ScalingConfig
from ray.train.torch import prepare_model
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from lawdnet.training.collectives import Collectives, find_collectives
from lawdnet.training.virtual_ranks import Seat, Workers
from pipelines.cluster.resources import PREPROCESS, away_from

RESIZE_SECONDS = 30.0
"""Between two looks at whether the cluster has room for more workers; taking them in costs a restart of all."""


def scaling(workers: Workers, *, gpu: bool) -> ScalingConfig:
    """What Ray Train is asked for."""
    share = {"CPU": 1.0, "GPU": 1.0} if gpu else {"CPU": 1.0}
    number: Any = (workers.least, workers.most) if workers.is_elastic else workers.most
    return ScalingConfig(
        num_workers=number, use_gpu=gpu, resources_per_worker=share, label_selector=away_from(PREPROCESS),
        elastic_resize_monitor_interval_s=RESIZE_SECONDS,
    )  # fmt: skip


@dataclass(frozen=True)
class Parallel:
    """`wrap` for the training steps: gradients are the mean over all lanes, whoever computed them."""

    seat: Seat

    def __call__(self, network: nn.Module) -> nn.Module:
        wrapped: nn.Module = prepare_model(network, move_to_device=False)
        if isinstance(wrapped, DistributedDataParallel):
            # torch compares a hook's annotations as objects, and ours are strings
            wrapped.register_comm_hook(self.seat.share, lambda share, bucket: _weighted_sum(share, bucket))
        return wrapped


def _weighted_sum(share: float, bucket: dist.GradBucket) -> Future[Tensor]:
    """Each worker brings the mean over its own lanes."""
    total = dist.all_reduce(bucket.buffer().mul_(share), async_op=True)
    assert total is not None
    return total.get_future().then(lambda done: done.value()[0])


def find_shared_collectives(device: torch.device, seat: Seat) -> Collectives:
    """The other workers as a training step sees them: without spare ones."""
    peers = find_collectives(device)
    return replace(peers, rank=seat.index, world=seat.seats, gather=lambda rows: peers.gather(rows)[: seat.seats])


def gather(value: Any) -> list[Any]:
    """What each worker brings, by rank, for small things; all of them call it together."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
