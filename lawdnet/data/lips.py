"""The lips as numbers: their shape, which the audio tells, and their place in the image of a mouth.

Shape letters: T frames.
"""

from __future__ import annotations

import numpy as np

from lawdnet.face.geometry import mouth_box, stage_size
from lawdnet.face.points import INNER_LIP_LOWER, INNER_LIP_UPPER, MOUTH, OUTER_EYE_CORNERS
from lawdnet.types import Float32

INNER_UPPER = [point - MOUTH.start for point in INNER_LIP_UPPER[1:-1]]
"""The inner upper lip without its corners, among the 20 mouth landmarks …"""
INNER_LOWER = [point - MOUTH.start for point in INNER_LIP_LOWER[1:-1]]
"""… and the points of the lower lip below them."""
USUAL = 0.03
"""A usual deviation of a mouth landmark from its mean, in distances between the outer corners of the eyes: measured on
ten minutes of fifty people."""
USUAL_OF_SQUARE = 0.02
"""The same deviation in sides of the mouth's square."""


def lip_shapes(landmarks_T68x2: Float32) -> Float32:
    """Return how far the 20 mouth landmarks are from their mean over the segment, T×40 in usual deviations (about ±1).

    The mean is the person and the pose, about which the audio says nothing.
    """
    eyes_T2 = landmarks_T68x2[:, OUTER_EYE_CORNERS[1]] - landmarks_T68x2[:, OUTER_EYE_CORNERS[0]]
    unit = max(float(np.linalg.norm(eyes_T2, axis=1).mean()), 1e-6) * USUAL
    lips_T40 = landmarks_T68x2[:, MOUTH].reshape(len(landmarks_T68x2), -1)
    return ((lips_T40 - lips_T40.mean(0)) / unit).astype(np.float32)


def lip_points(landmarks_T68x2: Float32, crop_width: int) -> Float32:
    """Return where the 20 mouth landmarks are in the mouth's square, T×40 in usual deviations from its centre.

    Args:
        landmarks_T68x2: in px of a crop.
        crop_width: of that crop, in px.
    """
    side = 64  # of any stage: all have the same proportions
    rows, columns = mouth_box(side)
    centre_2 = np.array([columns.start + columns.stop, rows.start + rows.stop], np.float32) / 2 - 0.5
    px_T20x2 = (landmarks_T68x2[:, MOUTH] + 0.5) * (stage_size(side)[1] / crop_width) - 0.5
    lips_T20x2 = (px_T20x2 - centre_2) / (side * USUAL_OF_SQUARE)
    return lips_T20x2.reshape(len(lips_T20x2), -1).astype(np.float32)
