"""Frames of a template for as long as they are needed, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

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

    A short video is decoded once and kept in memory. A longer one is decoded again in each direction; backwards in
    blocks, of which one is in memory at a time.
    """
    first = next(frame for _, frame in decode(path))
    block = max(1, min(BLOCK, BLOCK_BYTES // first.nbytes))
    if length <= block:
        held = [frame for _, frame in decode(path, stop=length)]
        yield from ((tick, held[tick]) for tick in ping_pong(length))
    while True:
        yield from enumerate(frame for _, frame in decode(path, stop=length))
        for stop in range(length - 1, 1, -block):
            start = max(1, stop - block)
            frames = [frame for _, frame in decode(path, start=start, stop=stop)]
            yield from zip(range(stop - 1, start - 1, -1), reversed(frames), strict=True)
