"""Which frames of a video have a face: runs of valid frames and short gaps between them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from lawdnet.types import Bool, Float32, Landmarks


def runs(valid_T: Bool) -> list[tuple[int, int]]:
    """Maximal stretches of true values as (start, stop), stop exclusive, in order."""
    edges = np.flatnonzero(np.diff(np.asarray(valid_T, np.int8), prepend=0, append=0))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def fill_gaps(landmarks: Landmarks, max_gap: int = 5) -> Landmarks:
    """Bridges gaps of at most `max_gap` frames by a straight line between the faces on either side.

    Rows with a NaN or infinite coordinate count as invalid. Longer gaps, and those at the start or the end,
    stay invalid and keep their points.
    """
    points = landmarks.points_T68x2.copy()
    valid = landmarks.valid_T & np.isfinite(points).all((1, 2))
    known = runs(valid)
    for (_, start), (stop, _) in pairwise(known):
        if stop - start <= max_gap:
            weight = np.linspace(0, 1, stop - start + 2)[1:-1, None, None]
            points[start:stop] = (1 - weight) * points[start - 1] + weight * points[stop]
            valid[start:stop] = True
    return replace(landmarks, points_T68x2=points, valid_T=valid)


def inside(points_T68x2: Float32, height: int, width: int) -> Bool:
    """Frames whose points all lie in a picture of height × width px; NaN does not."""
    limit = np.array([width - 1, height - 1], np.float32)
    with np.errstate(invalid="ignore"):
        return np.asarray(((points_T68x2 >= 0) & (points_T68x2 <= limit)).all((1, 2)))
