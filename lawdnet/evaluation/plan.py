"""Which segments a validation measures, where, and how workers' results become one."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from lawdnet.data.manifest import SegmentRef
from lawdnet.types import CLIP_FRAMES, NUM_REFERENCES

Sums = dict[str, float]
"""Name → a sum or a count."""
OnSegment = Callable[[int, int], None]
"""Called with (segments done, segments in all)."""

WINDOW_CLIPS = 5
"""Clips measured of a segment: 1.8 s, in which a sync network can try every offset."""


def plan(
    segments: Sequence[SegmentRef], rank: int = 0, world: int = 1, *, limit: int = 1, most: int | None = None,
    split: str = "val",
) -> list[SegmentRef]:  # fmt: skip
    """The segments that one worker measures; all workers together measure each chosen one once.

    Args:
        segments: of any split; the others are left out, and with them every video that was trained on.
        limit: per video, spread evenly over it, so that a long video does not decide.
        most: in all, spread evenly over the videos; None for no bound.
    """
    assert 0 <= rank < world
    videos: dict[str, list[SegmentRef]] = defaultdict(list)
    for ref in segments:
        if ref.split == split:
            videos[ref.video_id].append(ref)
    chosen = [ref for refs in videos.values() for ref in _spread(refs, limit)]
    return _spread(chosen, len(chosen) if most is None else most)[rank::world]


def _spread(refs: list[SegmentRef], count: int) -> list[SegmentRef]:
    count = min(count, len(refs))
    return [refs[(2 * i + 1) * len(refs) // (2 * count)] for i in range(count)]


def merge(parts: Iterable[Mapping[str, float]]) -> Sums:
    """The workers' sums as one."""
    total: Sums = defaultdict(float)
    for part in parts:
        for name, value in part.items():
            total[name] += value
    return dict(total)


def choose(ref: SegmentRef, seed: int) -> tuple[int, list[list[int]]]:
    """First frame of the window, and for each of its clips five frames from five other clips (LawDNet 2024)."""
    rng = np.random.default_rng([seed, zlib.crc32(ref.segment_id.encode())])
    clips = ref.num_frames // CLIP_FRAMES
    first = int(rng.integers(clips - WINDOW_CLIPS + 1))
    references = []
    for clip in range(first, first + WINDOW_CLIPS):
        others = rng.choice(np.delete(np.arange(clips), clip), NUM_REFERENCES, replace=False)
        references.append([int(c) * CLIP_FRAMES + int(rng.integers(CLIP_FRAMES)) for c in others])
    return first * CLIP_FRAMES, references
