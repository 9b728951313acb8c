"""Frames of a template for as long as they are needed, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from lawdnet.inference.memory import give_back
from lawdnet.types import UInt8
from lawdnet.video import decode

BLOCK = 48
"""Most frames in memory when a video runs backwards."""
BLOCK_BYTES = 512 << 20
"""Fewer frames are in memory if they would take more than this."""


def ping_pong(length: int) -> Iterator[int]:
    """Yield 0 … length-1, back to 1, and again without end; the turning points are not repeated."""
    while True:
        yield from chain(range(length), range(length - 2, 0, -1))


def back_and_forth(path: Path, length: int) -> Iterator[tuple[int, UInt8]]:
    """Yield (tick, frame) of a video of `length` ticks in the order of `ping_pong`, without end.

    Every frame is an array of its own, which the caller may write into.

    A short video is decoded once and kept in memory. A longer one is decoded again in each direction; backwards in
    blocks, of which one is in memory at a time.
    """
    first = next(frame for _, frame in decode(path))
    block = max(1, min(BLOCK, BLOCK_BYTES // first.nbytes))
    if length <= block:
        held = [frame for _, frame in decode(path, stop=length)]
        yield from ((tick, held[tick].copy()) for tick in ping_pong(length))
    while True:
        yield from enumerate(_own(decode(path, stop=length)))
        for stop in range(length - 1, 1, -block):
            start = max(1, stop - block)
            give_back()
            frames = list(_own(decode(path, start=start, stop=stop)))
            for tick in range(stop - 1, start - 1, -1):
                yield tick, frames.pop()  # freed before the next block is decoded


def _own(decoded: Iterator[tuple[int, UInt8]]) -> Iterator[UInt8]:
    """Yield frames; of one that is shown several times, copies."""
    for (index, frame_HW3), (following, _) in pairwise(chain(decoded, [(-1, np.empty(0, np.uint8))])):
        yield frame_HW3.copy() if index == following else frame_HW3
