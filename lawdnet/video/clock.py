"""The 25 fps clock of the package: which picture of a file is shown when. The one definition."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TypeVar

from lawdnet.types import FPS, Rejected, RejectReason

MAX_GAP_SECONDS = 10
"""Longest hold of one picture that is believed; beyond it the time stamps are broken."""

T = TypeVar("T")


def on_clock(timed: Iterable[tuple[Fraction, T]]) -> Iterator[tuple[int, T]]:
    """Put items with times that never fall (s, the first at 0) on the 25 fps clock by nearest time.

    Yields:
        (position of the item in the input, item) once per tick.

    Raises:
        Rejected: DAMAGED at a gap of more than `MAX_GAP_SECONDS`.
    """
    tick, index, last = 0, -1, None
    for index, (time, item) in enumerate(timed):
        if last is not None:
            if time - last[0] > MAX_GAP_SECONDS:
                detail = f"no picture between {float(last[0]):.2f} s and {float(time):.2f} s"
                raise Rejected(RejectReason.DAMAGED, detail)
            while 2 * tick <= FPS * (last[0] + time):
                yield index - 1, last[1]
                tick += 1
        last = time, item
    if last is not None:
        average = last[0] / index if index else Fraction(1, FPS)
        for _ in range(tick, round(FPS * (last[0] + average))):
            yield index, last[1]
