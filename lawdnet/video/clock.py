"""The 25 fps clock of the package: which frame of a file is shown at which tick, defined here only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TypeVar

from lawdnet.types import FPS, Rejected, RejectReason

MAX_GAP_SECONDS = 10
"""Longest time that one frame may be shown; beyond it the time stamps are taken to be broken."""

T = TypeVar("T")


def on_clock(timed: Iterable[tuple[Fraction, T]]) -> Iterator[tuple[int, T]]:
    """Map timed items to the ticks of the 25 fps clock by nearest time.

    Args:
        timed: (time in s, item); times never decrease, and the first is 0.

    Yields:
        (index of the item in the input, item) once per tick.

    Raises:
        Rejected: DAMAGED at a gap of more than `MAX_GAP_SECONDS`.
    """
    tick = 0
    index = -1
    last: tuple[Fraction, T] | None = None
    for index, (time, item) in enumerate(timed):
        if last is not None:
            if time - last[0] > MAX_GAP_SECONDS:
                detail = f"no frame between {float(last[0]):.2f} s and {float(time):.2f} s"
                raise Rejected(RejectReason.DAMAGED, detail)
            while 2 * tick <= FPS * (last[0] + time):
                yield index - 1, last[1]
                tick += 1
        last = time, item
    if last is not None:
        average = last[0] / index if index else Fraction(1, FPS)
        for _ in range(tick, round(FPS * (last[0] + average))):
            yield index, last[1]
