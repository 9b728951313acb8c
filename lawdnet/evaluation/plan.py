"""Which segments and frames a validation measures, and how the workers' results are merged."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from lawdnet.data.segment_list import SegmentRef
from lawdnet.types import CLIP_FRAMES, NUM_REFERENCES

Sums = dict[str, float]
"""Name → a sum or a count. Sums of several workers are added."""
OnSegment = Callable[[int, int], None]
"""Called with the number of segments done and the total."""

WINDOW_CLIPS = 5
"""Number of clips of a segment that a validation in training measures: 1.8 s, long enough for a sync network to try
every offset."""
LONG_CLIPS = 12
"""Number of clips that an evaluation measures where a segment has them: 4.3 s, so that there is a choice between spans
of 50 frames."""


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


def choose(ref: SegmentRef, seed: int, clips_wanted: int = WINDOW_CLIPS) -> tuple[int, list[list[int]]]:
    """Return the first frame of the window, and five frames of other clips for each of its clips (LawDNet 2024).

    The window is shorter than wanted if the segment is.
    """
    rng = np.random.default_rng([seed, zlib.crc32(ref.segment_id.encode())])
    clips = ref.num_frames // CLIP_FRAMES
    wanted = min(clips, clips_wanted)
    first = int(rng.integers(clips - wanted + 1))
    references = []
    for clip in range(first, first + wanted):
        others = rng.choice(np.delete(np.arange(clips), clip), NUM_REFERENCES, replace=False)
        references.append([int(c) * CLIP_FRAMES + int(rng.integers(CLIP_FRAMES)) for c in others])
    return first * CLIP_FRAMES, references


def foreign_segments(refs: Sequence[SegmentRef]) -> dict[str, SegmentRef]:
    """Return for each segment the next one of another video, which has foreign audio; segments without one are missing.

    Args:
        refs: the segments of all workers, so that their number does not matter.
    """
    return {
        ref.segment_id: other
        for index, ref in enumerate(refs)
        if (other := next((r for r in [*refs[index:], *refs[:index]] if r.video_id != ref.video_id), None))
    }
