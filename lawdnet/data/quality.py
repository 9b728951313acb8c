"""Which frames of a video can be used, and why the others cannot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lawdnet.face.track import inside
from lawdnet.types import Bool, Float32, Landmarks, RejectReason


@dataclass(frozen=True)
class Usable:
    """The verdict on each of T frames."""

    usable_T: Bool
    no_face: int
    """Frames without a face."""
    outside: int
    """Frames whose face is partly outside the picture."""

    def main_reason(self) -> RejectReason:
        """What to name when too few frames are usable."""
        if not self.no_face and not self.outside:
            return RejectReason.TOO_SHORT
        return RejectReason.NO_FACE if self.no_face >= self.outside else RejectReason.FACE_LEAVES_PICTURE


def usable_frames(landmarks: Landmarks, height: int, width: int) -> Usable:
    """Frames that have a face with all 68 points inside the picture of height × width px."""
    valid_T, inside_T = landmarks.valid_T, inside(landmarks.points_T68x2, height, width)
    return Usable(valid_T & inside_T, int((~valid_T).sum()), int((valid_T & ~inside_T).sum()))


def face_scale(matrix_T33: Float32) -> Float32:
    """Crop px per frame px of T similarity matrices, shape T."""
    return np.hypot(matrix_T33[:, 0, 0], matrix_T33[:, 0, 1]).astype(np.float32)


def scale_change(matrix_T33: Float32) -> float:
    """Largest over smallest face size within a segment, at least 1 (DINet refuses more than 1.5)."""
    scale_T = face_scale(matrix_T33)
    return float(scale_T.max() / scale_T.min())
