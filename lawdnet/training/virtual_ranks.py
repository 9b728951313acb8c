"""How many workers train, and why it does not matter to what is learnt.

An optimiser step takes a batch (or `accumulate` in a row) from each of a fixed number of *lanes*. A lane is a stream of
batches of its own, as a worker's would be, and belongs to no worker: those that are there at the moment share the lanes
evenly. So the global batch, the learning rate and the order of the data are the same for every number of workers, a
stage can change workers in the middle of an epoch without losing its place, and only the rounding of sums tells runs
apart. (The idea: EasyScale, Li et al. 2022, arXiv 2208.14228.) Where workers cannot share evenly, as three of them four
lanes, the largest number that can do the work, and the rest repeat theirs without weight until the number changes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lawdnet.training.stages import Stage, micro_batches


@dataclass(frozen=True)
class Workers:
    """How many processes train together: a fixed number, or as many as there is room for between two bounds.

    None at all (0) trains in the calling process, without Ray.
    """

    least: int
    most: int

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most or (self.least == 0 < self.most):
            raise ValueError(f"workers: {self.least}:{self.most} is no range; write N, or MIN:MAX with 1 ≤ MIN ≤ MAX")

    @classmethod
    def parse(cls, text: str) -> Workers:
        """From `4` or `1:4`.

        Raises:
            ValueError: it is neither.
        """
        if not re.fullmatch(r"\d+(:\d+)?", text):
            raise ValueError(f"workers: {text!r} is neither N nor MIN:MAX")
        least, _, most = text.partition(":")
        return cls(int(least), int(most or least))

    @property
    def is_elastic(self) -> bool:
        """Whether the number may change while a stage trains."""
        return self.least < self.most

    def at_most(self, lanes: int) -> Workers:
        """No more than have something to do."""
        return Workers(min(self.least, lanes), min(self.most, lanes))


def count_lanes(stage: Stage, workers: Workers) -> int:
    """Lanes of a stage, which it keeps from its first step to its last: one for each of the largest number of workers,
    or where `global_batch` is set as many as come closest to it."""
    return micro_batches(stage, 1) if stage.global_batch else max(1, workers.most)


def in_a_row(stage: Stage) -> int:
    """Batches that an optimiser step takes of each lane."""
    return 1 if stage.global_batch else stage.accumulate


@dataclass(frozen=True)
class Seat:
    """What one worker does of the work."""

    index: int
    """Among the working ones; a spare worker repeats what the one with its index does."""
    seats: int
    lanes: range
    share: float
    """Of its gradient in the mean over all lanes; 0 for a spare worker."""


def take_seat(rank: int, world: int, lanes: int) -> Seat:
    """The seat of one of `world` workers: as many as possible have lanes, all of them as many."""
    seats = max(n for n in range(1, min(world, lanes) + 1) if lanes % n == 0)
    index = rank % seats
    return Seat(index, seats, range(index, lanes, seats), 1 / seats if rank < seats else 0.0)
