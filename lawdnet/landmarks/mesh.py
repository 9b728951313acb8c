"""MediaPipe's face mesh: 478 points of a face in a square that contains it.

The constants are those of MediaPipe's graphs `tasks/cc/vision/face_detector/face_detector_graph.cc` (the square around
a detection) and `tasks/cc/vision/face_landmarker/face_landmarks_detector_graph.cc` (the square around a mesh).

Shape letters: H W image, M the 478 points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lawdnet.landmarks.blazeface import Detection
from lawdnet.landmarks.square import Square
from lawdnet.landmarks.tflite import Network
from lawdnet.types import Float32, UInt8

SIDE = 256
"""Side of the image that the network takes, in px."""
POINTS = 478
MARGIN = 1.5
"""A square's side is this many times the longer side of the face's box (`scale_x`, `square_long`)."""
MIN_SIDE = 1.0
"""Smallest side of a square, in px of the image."""
EYES = (33, 263)
"""Outer corners of the eyes, whose line turns the square (`rotation_vector_…_keypoint_index`)."""
EYES_DETECTED = slice(2, 4)
"""The eyes of `Detection.points_8x2`."""
MOVED = 0.1
"""If the square around the mesh differs from the one that the network saw by more than this part of its side, the
network looks again."""
MAX_LOOKS = 3
IS_FACE = 0.5
"""Score below which another look is in vain."""


@dataclass(frozen=True)
class Mesh:
    """The mesh of a face."""

    points_Mx2: Float32
    """In px of the image, pixel centres at integers."""
    score: float
    """How sure the network is that it saw a face, 0 … 1."""

    @property
    def square(self) -> Square:
        """The square in which the network sees this face best, here and in the next frame."""
        return around(self.points_Mx2, self.points_Mx2[list(EYES)])


def around(points_Nx2: Float32, eyes_2x2: Float32) -> Square:
    """Return the square around a face's points, turned so that the eyes are level."""
    low, high = points_Nx2.min(0), points_Nx2.max(0)
    x, y = ((low + high) / 2).tolist()
    right, down = (eyes_2x2[1] - eyes_2x2[0]).tolist()
    side = max(MIN_SIDE, MARGIN * float((high - low).max()))
    return Square(x, y, side, math.atan2(down, right))


def around_detection(detection: Detection) -> Square:
    """Return the square in which the mesh of a detected face is searched."""
    return around(detection.points_8x2[:2], detection.points_8x2[EYES_DETECTED])


def find_mesh(network: Network, image_HW3: UInt8, square: Square) -> Mesh:
    """Find the mesh of the face in a square; looks again if the face turns out to be elsewhere, or of another size.

    Args:
        network: takes 256×256 px in [0, 1].
        image_HW3: RGB.
        square: around the face, as in the last frame or as detected.
    """
    for _ in range(MAX_LOOKS):
        mesh = _look(network, image_HW3, square)
        if mesh.score < IS_FACE or not _is_off(square, mesh.square):
            break
        square = mesh.square
    return mesh


def _look(network: Network, image_HW3: UInt8, square: Square) -> Mesh:
    points, logit, *_ = network(square.cut(image_HW3, SIDE).astype(np.float32) / np.float32(255))
    # the network counts from the edge of the first pixel: in a mirrored image it sees points at 256 - x, not 255 - x
    points_Mx2 = points.reshape(POINTS, 3)[:, :2] - 0.5
    return Mesh(square.to_image(points_Mx2, SIDE), 1 / (1 + math.exp(-float(np.clip(logit[0], -100, 100)))))


def _is_off(seen: Square, best: Square) -> bool:
    shift = math.hypot(seen.x - best.x, seen.y - best.y) / best.side
    return shift > MOVED or abs(seen.side / best.side - 1) > MOVED
