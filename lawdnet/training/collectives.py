"""Collective operations of the ranks that train together; a single rank needs no others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True, kw_only=True)
class Collectives:
    """The operations as callables. All ranks call the same ones in the same order."""

    rank: int = 0
    world: int = 1
    agree: Callable[[bool], bool] = lambda flag: flag
    """Whether the flag is set on any rank."""
    gather: Callable[[Tensor], list[Tensor]] = lambda tensor: [tensor]
    """The tensor of each rank, in rank order; all have the same shape, and no gradient flows back."""
    no_sync: Callable[[nn.Module], AbstractContextManager[object]] = lambda network: nullcontext()
    """While the block runs, gradients of a wrapped network stay on this rank."""

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean of the ranks' tensors; no gradient flows back."""
        return torch.stack(self.gather(tensor)).mean(0)


def find_collectives(device: torch.device) -> Collectives:
    """The collectives of torch.distributed if it is initialised, else those of a single rank.

    Args:
        device: device of the tensors that are exchanged.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return Collectives()

    def agree(flag: bool) -> bool:
        votes = torch.tensor(float(flag), device=device)
        dist.all_reduce(votes)
        return bool(votes > 0)

    def gather(tensor: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.detach().contiguous())
        return parts

    def no_sync(network: nn.Module) -> AbstractContextManager[object]:
        return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()

    return Collectives(rank=dist.get_rank(), world=dist.get_world_size(), agree=agree, gather=gather, no_sync=no_sync)
