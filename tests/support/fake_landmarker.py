"""A landmarker for drawn heads: it needs no weights, and measures the opening in the pixels."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from lawdnet.evaluation.mouth import mouth_opening_from_pixels
from lawdnet.face.points import INNER_LIP_LOWER, INNER_LIP_UPPER, MOUTH
from lawdnet.types import Float32, Landmarks, UInt8


class FakeLandmarker:
    """The usual face at the usual place, whose lower lips hang as low as the drawn mouth is open."""

    sha256 = "0" * 64

    def __init__(self, lost: Collection[int] = ()) -> None:
        self.lost = lost
        """Frames in which it finds nothing."""
        self.frames = 0
        """How many it has looked at."""

    def find(self, frames_THW3: UInt8, around_T68x2: Float32) -> Landmarks:
        self.frames += len(frames_THW3)
        width = frames_THW3.shape[2]
        points = np.repeat(np.median(around_T68x2, axis=0)[None], len(frames_THW3), axis=0).astype(np.float32)
        shut = points[:, MOUTH, 1].mean(1)
        for frame, image in enumerate(frames_THW3):
            points[frame, INNER_LIP_UPPER, 1] = shut[frame]
            points[frame, INNER_LIP_LOWER, 1] = shut[frame] + width / 2 * mouth_opening_from_pixels(image)
        valid_T = np.array([frame not in self.lost for frame in range(len(points))])
        points[~valid_T] = np.nan
        return Landmarks(points_T68x2=points, valid_T=valid_T, source="fake")
