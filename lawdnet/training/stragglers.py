"""Which ranks hold up the others: in every step all wait for the slowest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from lawdnet.training.speed import StepTime

SLOW = 1.5
"""A rank is slow if it takes so many times as long as the median …"""
SLOW_SECONDS = 0.02
"""… and so many seconds longer, …"""
IN_A_ROW = 3
"""… in so many comparisons in a row."""


@dataclass(frozen=True, kw_only=True)
class RankTime:
    """The mean step of a rank until it waits for others."""

    rank: int
    host: str
    waited: float
    """Seconds of waiting for batches."""
    own: float
    """Seconds of computing, for each virtual rank."""

    @property
    def whole(self) -> float:
        """Both together."""
        return self.waited + self.own


class RankClock:
    """Adds up the steps of a rank between two comparisons.

    Args:
        share: number of its virtual ranks.
    """

    def __init__(self, rank: int, host: str, share: int) -> None:
        self.rank, self.host, self.share = rank, host, share
        self._waited = self._own = 0.0
        self._steps = 0

    def add(self, step: StepTime) -> None:
        """Count a step."""
        self._waited += step.waited
        self._own += step.own / self.share
        self._steps += 1

    def take(self) -> RankTime:
        """The mean since the last call."""
        steps = max(1, self._steps)
        found = RankTime(rank=self.rank, host=self.host, waited=self._waited / steps, own=self._own / steps)
        self._waited = self._own = 0.0
        self._steps = 0
        return found


class Stragglers:
    """Finds ranks that are slow again and again."""

    def __init__(self) -> None:
        self._slow: Counter[int] = Counter()

    def update(self, times: Sequence[RankTime]) -> list[str]:
        """Take the mean steps of all ranks; returns a sentence for each that has just turned out to be slow."""
        usual = median(time.whole for time in times)
        told: list[str] = []
        for time in times:
            is_slow = time.whole > SLOW * usual and time.whole > usual + SLOW_SECONDS
            self._slow[time.rank] = self._slow[time.rank] + 1 if is_slow else 0
            if self._slow[time.rank] == IN_A_ROW:
                told.append(
                    f"rank {time.rank} on {time.host} is slow, and all others wait for it: {time.whole:.2f} s a step "
                    f"({time.waited:.2f} s of it for its batches), where the median is {usual:.2f} s"
                )
        return told
