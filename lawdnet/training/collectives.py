"""Collective operations of the ranks that train together; a single rank needs no others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True, kw_only=True)
class Collectives:
    """The operations as callables. All ranks call the same ones in the same order; the host waits for none of them."""

    rank: int = 0
    shares: tuple[int, ...] = (1,)
    """The number of virtual ranks of each rank: its share of the batches of a step."""
    is_alike: bool = True
    """Whether all ranks have as many batches as this one in every step. Otherwise none may do less for a single batch:
    their collectives would not meet."""
    total: Callable[[Tensor], Tensor] = lambda tensor: tensor
    """Sum of the ranks' tensors, which have the same shape; no gradient flows back."""
    stack: Callable[[Tensor], list[Tensor]] = lambda tensor: [tensor]
    """The tensor of each rank, which have the same shape; no gradient flows back."""
    no_sync: Callable[[nn.Module], AbstractContextManager[object]] = lambda network: nullcontext()
    """While the block runs, gradients of a wrapped network stay on this rank."""

    @property
    def weight(self) -> float:
        """The weight of this rank in a mean over all batches."""
        return self.shares[self.rank] / sum(self.shares)

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean of the ranks' tensors by their shares; no gradient flows back."""
        return self.total(tensor * self.weight)

    def agree(self, flags: Tensor) -> Tensor:
        """Which flags are set on any rank."""
        return self.total(flags.float()) > 0

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, which have as many as is their share; no gradient flows back."""
        unit = len(rows) // self.shares[self.rank]
        missing = unit * max(self.shares) - len(rows)
        padded = F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, missing)) if missing else rows
        parts = zip(self.stack(padded.detach()), self.shares, strict=True)
        return torch.cat([part[: unit * share] for part, share in parts])

    def mine(self, count: int) -> slice:
        """Where this rank's rows are among all `count` gathered ones."""
        unit = count // sum(self.shares)
        start = unit * sum(self.shares[: self.rank])
        return slice(start, start + unit * self.shares[self.rank])


def find_collectives(device: torch.device, shares: tuple[int, ...] = (), *, is_alike: bool = True) -> Collectives:
    """The collectives of torch.distributed if it is initialised, else those of a single rank.

    Args:
        device: device of the tensors that are exchanged.
        shares: see `Collectives`; equal ones if not given.
        is_alike: see `Collectives`.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return Collectives(shares=shares or (1,))

    def total(tensor: Tensor) -> Tensor:
        found = tensor.detach().to(device, copy=True)
        dist.all_reduce(found)
        return found

    def stack(tensor: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return parts

    def no_sync(network: nn.Module) -> AbstractContextManager[object]:
        return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()

    equal = (1,) * dist.get_world_size()
    return Collectives(
        rank=dist.get_rank(), shares=shares or equal, is_alike=is_alike, total=total, stack=stack, no_sync=no_sync
    )
