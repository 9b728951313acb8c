"""Which segments and frames a validation measures, and how the workers' results are merged."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from lawdnet.data.manifest import SegmentRef
from lawdnet.types import CLIP_FRAMES, NUM_REFERENCES

Sums = dict[str, float]
"""Name → a sum or a count. Sums of several workers are added."""
OnSegment = Callable[[int, int], None]
"""Called with the number of segments done and the total."""

WINDOW_CLIPS = 5
"""Number of clips of a segment that are measured: 1.8 s, long enough for a sync network to try every offset."""


def plan(
    segments: Sequence[SegmentRef],
    rank: int = 0,
    world: int = 1,
    *,
    limit: int = 1,
    most: int | None = None,
    split: str = "val",
) -> list[SegmentRef]:
    """Return the segments that one worker measures; together, the workers measure each selected segment once.

    Args:
        segments: may be of any split; those of other splits are ignored, and with them all videos trained on.
        limit: largest number per video, spread evenly over it, so that a long video does not dominate.
        most: largest number in all, spread evenly over the videos; None for no limit.
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
    """Add the workers' sums."""
    total: Sums = defaultdict(float)
    for part in parts:
        for name, value in part.items():
            total[name] += value
    return dict(total)


def choose(ref: SegmentRef, seed: int) -> tuple[int, list[list[int]]]:
    """Return the first frame of the window, and five frames of other clips for each of its clips (LawDNet 2024)."""
    rng = np.random.default_rng([seed, zlib.crc32(ref.segment_id.encode())])
    clips = ref.num_frames // CLIP_FRAMES
    first = int(rng.integers(clips - WINDOW_CLIPS + 1))
    references = []
    for clip in range(first, first + WINDOW_CLIPS):
        others = rng.choice(np.delete(np.arange(clips), clip), NUM_REFERENCES, replace=False)
        references.append([int(c) * CLIP_FRAMES + int(rng.integers(CLIP_FRAMES)) for c in others])
    return first * CLIP_FRAMES, references
