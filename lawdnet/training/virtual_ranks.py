"""The number of workers, and why it does not change what is learnt.

An optimiser step takes a fixed number of micro-batches from each of a fixed number of *virtual ranks*. A virtual rank
is a stream of batches that belongs to no worker: the workers there are at the moment share the virtual ranks. So the
global batch, the learning rate and the order of the data are the same for every number of workers, a stage can gain or
lose workers in the middle of an epoch and keep its position, and runs differ only by the rounding of sums. (The idea is
EasyScale's, Li et al. 2022, arXiv 2208.14228.) Shares may differ by one virtual rank, and each worker's gradient counts
by its share: of three workers for four virtual ranks one takes two, and a step lasts as long as two. So there are more
virtual ranks than workers: several bring small batches, which a worker merges into one for its device.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np

from lawdnet.training.position import Position
from lawdnet.training.stages import Stage, micro_batches

FINEST = 8
"""Most parts into which a batch is split."""


@dataclass(frozen=True)
class Workers:
    """How many processes train together: a fixed number, or as many as there is room for between two bounds.

    0 trains in the calling process, without Ray.
    """

    least: int
    most: int

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most or (self.least == 0 < self.most):
            raise ValueError(
                f"workers: {self.least}:{self.most} is not a range; write N, or MIN:MAX with 1 ≤ MIN ≤ MAX"
            )

    @classmethod
    def parse(cls, text: str) -> Workers:
        """Read `4` or `1:4`.

        Raises:
            ValueError: the text is neither.
        """
        if not re.fullmatch(r"\d+(:\d+)?", text):
            raise ValueError(f"workers: {text!r} is neither N nor MIN:MAX")
        least, _, most = text.partition(":")
        return cls(int(least), int(most or least))

    @property
    def is_elastic(self) -> bool:
        """Whether the number may change while a stage trains."""
        return self.least < self.most

    def at_most(self, virtual_ranks: int) -> Workers:
        """Return the same bounds, lowered so that every worker has a virtual rank."""
        return Workers(min(self.least, virtual_ranks), min(self.most, virtual_ranks))


@dataclass(frozen=True, kw_only=True)
class VirtualRanks:
    """The virtual ranks of a stage, which it keeps from its first step to its last."""

    count: int
    split: int = 1
    """Number of them that bring one batch of the stage together."""


def virtual_ranks_of(stage: Stage, workers: Workers, windows: int, segments: int) -> VirtualRanks:
    """As many as bring a batch for each of the largest number of workers, or `global_batch`, or what is nearest to it.

    The more there are to a batch, the less the loss of a worker costs: with eight, the step of 64 workers takes 63 an
    eighth longer, not twice as long. A worker that shares with none needs only one.

    Args:
        windows: samples that must stay together.
        segments: of the dataset; each virtual rank has one, unless there are more batches in a step.
    """
    batches = micro_batches(stage, 1) if stage.global_batch else max(1, workers.most)
    if workers.most <= 1 and not stage.global_batch:
        return VirtualRanks(count=batches)
    splits = (n for n in range(FINEST, 1, -1) if stage.batch_size % (n * windows) == 0 and batches * n <= segments)
    split = next(splits, 1)
    return VirtualRanks(count=batches * split, split=split)


def micro_batches_per_rank(stage: Stage) -> int:
    """Number of micro-batches that an optimiser step takes from each virtual rank."""
    return 1 if stage.global_batch else stage.accumulate


def share_of(rank: int, world: int, virtual_ranks: int) -> range:
    """The virtual ranks that one of `world` workers computes; shares differ by one at most.

    They are neighbours, so that the same ones are merged into a batch whatever the number of workers, if it divides.
    """
    assert world <= virtual_ranks, "`Workers.at_most` leaves no worker without a share"
    size, rest = divmod(virtual_ranks, world)
    start = rank * size + min(rank, rest)
    return range(start, start + size + (rank < rest))


def shares(world: int, virtual_ranks: int) -> tuple[int, ...]:
    """The size of each worker's share."""
    return tuple(len(share_of(rank, world, virtual_ranks)) for rank in range(world))


@dataclass(frozen=True, kw_only=True)
class Merge:
    """How a worker merges what its virtual ranks bring to a step into batches for its device."""

    shares: tuple[int, ...]
    """The number of virtual ranks of each worker."""
    split: int
    accumulate: int

    def count(self, brought: int) -> int:
        """Number of batches for so many: of the stage's size, or an eighth larger if that saves one."""
        return -(-brought // (self.split * 9 // 8))

    @property
    def is_alike(self) -> bool:
        """Whether all workers have equally many batches in every step; the last step of an epoch may be short."""
        return all(
            len({self.count(share * times) for share in self.shares}) == 1 for times in range(1, self.accumulate + 1)
        )

    def __call__(self, brought: Sequence[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """Merge the arrays of a step; `epoch` and `step` are the same in all."""
        count = self.count(len(brought))
        bounds = [len(brought) * part // count for part in range(count + 1)]
        return [_concatenated(brought[start:stop]) for start, stop in pairwise(bounds)]


def _concatenated(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    if len(parts) == 1:
        return parts[0]
    return {name: concatenated([part[name] for part in parts]) if one.ndim else one for name, one in parts[0].items()}


def concatenated(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return the arrays one after the other; a single one is not copied."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def steps_per_epoch(batches_per_rank: int, accumulate: int) -> int:
    """Number of optimiser steps in an epoch of so many batches per virtual rank; the last step may be short."""
    return -(-batches_per_rank // accumulate)


def group_by_step(
    batches: Iterator[dict[str, np.ndarray]],
    *,
    start: Position,
    epochs: int,
    batches_per_rank: int,
    accumulate: int,
    ranks: int = 1,
) -> Iterator[list[dict[str, np.ndarray]]]:
    """Yield the micro-batches of each optimiser step from `start` to the end of `epochs`.

    Args:
        batches: of all virtual ranks of a share, which take turns, each batch with its `epoch` and `index`.
        batches_per_rank: number of batches of each virtual rank in an epoch.
        accumulate: micro-batches that a step takes from each virtual rank; an epoch's last step takes what is left.
        ranks: number of virtual ranks.

    Yields:
        The batches as they are, with `step` in place of `index`.
    """
    for epoch in range(start.epoch, epochs):
        first = start.step if epoch == start.epoch else 0
        for step in range(first, steps_per_epoch(batches_per_rank, accumulate)):
            count = min(accumulate, batches_per_rank - step * accumulate)
            yield [_at(batch, Position(epoch, step), accumulate) for batch in islice(batches, count * ranks)]


def _at(batch: dict[str, np.ndarray], position: Position, accumulate: int) -> dict[str, np.ndarray]:
    index = int(batch["index"])
    assert Position(int(batch["epoch"]), index // accumulate) == position, "the data lost its position"
    return {name: value for name, value in batch.items() if name != "index"} | {"step": np.array(position.step)}
