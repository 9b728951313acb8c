"""What a rank asks of the others. Alone, it answers itself."""

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
    """The ranks that train together, as callables. Every rank calls the same ones in the same order."""

    rank: int = 0
    world: int = 1
    agree: Callable[[bool], bool] = lambda flag: flag
    """Whether the flag is up on any rank."""
    gather: Callable[[Tensor], list[Tensor]] = lambda tensor: [tensor]
    """A tensor of every rank, in their order; all have the same shape, and no gradient flows back."""
    no_sync: Callable[[nn.Module], AbstractContextManager[object]] = lambda network: nullcontext()
    """While the block runs, backward passes keep the gradients of a wrapped network to this rank."""

    def mean(self, tensor: Tensor) -> Tensor:
        """Of the ranks' tensors; no gradient flows back."""
        return torch.stack(self.gather(tensor)).mean(0)


def find_collectives(device: torch.device) -> Collectives:
    """The ranks of torch.distributed where it is set up, with networks in DistributedDataParallel; else none.

    Args:
        device: where tensors that are exchanged lie.
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
