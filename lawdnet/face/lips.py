"""The distance between the lips, from landmarks."""

from __future__ import annotations

import numpy as np

from lawdnet.face.points import INNER_LIP_LOWER, INNER_LIP_UPPER, OUTER_EYE_CORNERS
from lawdnet.types import Float32

UPPER = INNER_LIP_UPPER[1:-1]
LOWER = INNER_LIP_LOWER[1:-1]
"""Pairs of inner lip points that face each other, without the corners, which both lips share."""


def lip_gap(points_T68x2: Float32) -> Float32:
    """Return the mean distance between the inner lips of T faces, in units of the outer eye distance.

    Returns:
        T values: 0 for closed lips, about 0.4 for a wide open mouth, NaN where the points are not finite.
    """
    points = np.asarray(points_T68x2, np.float64)
    gap_T = np.linalg.norm(points[:, UPPER] - points[:, LOWER], axis=-1).mean(1)
    left, right = OUTER_EYE_CORNERS
    eyes_T = np.linalg.norm(points[:, left] - points[:, right], axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio_T = gap_T / eyes_T
    return np.where(np.isfinite(ratio_T), ratio_T, np.nan).astype(np.float32)
