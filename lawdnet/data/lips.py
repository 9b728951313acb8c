"""The shape of the lips, which the audio encoder learns to predict.

Shape letters: T frames, R some of them.
"""

from __future__ import annotations

import numpy as np

from lawdnet.face.points import MOUTH, OUTER_EYE_CORNERS
from lawdnet.types import Float32

USUAL = 0.03
"""A usual deviation of a mouth landmark from its mean, in distances between the outer corners of the eyes: measured on
ten minutes of fifty people."""


def lip_shapes(landmarks_T68x2: Float32) -> Float32:
    """Return how far the 20 mouth landmarks are from their mean over the segment, T×40 in usual deviations (about ±1).

    The mean is the person and the pose, about which the audio says nothing.
    """
    eyes_T2 = landmarks_T68x2[:, OUTER_EYE_CORNERS[1]] - landmarks_T68x2[:, OUTER_EYE_CORNERS[0]]
    unit = max(float(np.linalg.norm(eyes_T2, axis=1).mean()), 1e-6) * USUAL
    lips_T40 = landmarks_T68x2[:, MOUTH].reshape(len(landmarks_T68x2), -1)
    return ((lips_T40 - lips_T40.mean(0)) / unit).astype(np.float32)
