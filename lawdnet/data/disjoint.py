"""Disjoint sets: things that belong together because a chain of pairs connects them."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray


class DisjointSets:
    """Sets of the numbers 0 … size - 1, each known by its smallest number. At first each number is alone."""

    def __init__(self, size: int) -> None:
        self._parents = np.arange(size)

    def join(self, one: int, other: int) -> None:
        """Make one set of the sets that these two are in."""
        one, other = sorted((self._first(one), self._first(other)))
        self._parents[other] = one

    def _first(self, number: int) -> int:
        parents = self._parents
        while parents[number] != number:
            parents[number] = number = parents[parents[number]]
        return number

    def firsts(self) -> NDArray[np.int64]:
        """Return, for each number, the smallest number of the set that it is in."""
        while not np.array_equal(parents := self._parents[self._parents], self._parents):
            self._parents = parents
        return self._parents.copy()

    def sets(self, least: int = 1) -> list[list[int]]:
        """Return the sets of at least so many numbers, in the order of their smallest, each in ascending order."""
        firsts = self.firsts()
        is_wanted = np.bincount(firsts, minlength=len(firsts))[firsts] >= least
        members: defaultdict[int, list[int]] = defaultdict(list)
        for number in np.flatnonzero(is_wanted).tolist():
            members[int(firsts[number])].append(number)
        return list(members.values())
