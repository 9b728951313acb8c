"""MediaPipe's face detector: BlazeFace, short range (Bazarevsky et al. 2019, arXiv 1907.05047).

The constants are those of MediaPipe's graphs `modules/face_detection/face_detection_short_range.pbtxt`,
`modules/face_detection/face_detection.pbtxt` and `tasks/cc/vision/face_detector/face_detector_graph.cc`.

Shape letters: H W image, A anchors, D detections. The 8 points of a detection are two opposite corners of its box, then
both eyes (the one at the left of an upright image first), nose, mouth, and both ears.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lawdnet.face.track import iou
from lawdnet.landmarks.square import Square
from lawdnet.landmarks.tflite import Network
from lawdnet.types import Float32, UInt8

SIDE = 128
"""Side of the image that the network takes, in px."""
GRIDS = ((16, 2), (8, 6))
"""Cells along a side, and anchors in each cell: strides 8, 16, 16, 16, with two anchors per cell of each layer."""
MAX_LOGIT = 100.0
SAME_FACE_IOU = 0.5
"""Detections that overlap more than this are averaged (`min_suppression_threshold`)."""
TILE_SCALES = (1, 2)
"""Tiles have the shorter side of the image, divided by these."""
MIN_TILE = 2 * SIDE
"""Smallest side of a tile, in px of the image: in a smaller one, a face would be too small for its mouth to be seen."""
MAX_TILES = 24


@dataclass(frozen=True)
class Detection:
    """A detected face, in px of the image, pixel centres at integers."""

    points_8x2: Float32
    """See the module."""
    score: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x0 y0 x1 y1."""
        (x0, y0), (x1, y1) = self.points_8x2[:2].tolist()
        return x0, y0, x1, y1


def detect(network: Network, image_HW3: UInt8, min_score: float) -> list[Detection]:
    """Find the faces of an image, the most confident first.

    The network finds a face that is at least about a tenth of the image's longer side.

    Args:
        network: takes 128×128 px in [-1, 1].
        image_HW3: RGB.
        min_score: smallest score, 0 … 1.
    """
    height, width = image_HW3.shape[:2]
    return _merged(_look(network, image_HW3, whole_image(height, width), min_score))


def detect_small(network: Network, image_HW3: UInt8, min_score: float) -> list[Detection]:
    """Find the faces of an image by searching overlapping tiles, large ones first; see `detect`."""
    height, width = image_HW3.shape[:2]
    for scale in TILE_SCALES:
        squares = tiles(height, width, scale)
        found = [face for square in squares for face in _look(network, image_HW3, square, min_score)]
        if found:
            return _merged(found)
    return []


def whole_image(height: int, width: int) -> Square:
    """Return the smallest square that contains an image."""
    return Square((width - 1) / 2, (height - 1) / 2, max(height, width))


def tiles(height: int, width: int, scale: int) -> Iterator[Square]:
    """Yield square tiles that overlap by half; none if they would be too small or too many."""
    side = min(height, width) // scale
    if side < MIN_TILE or side == max(height, width):
        return
    rows, columns = (1 + -(-2 * (length - side) // side) for length in (height, width))
    if rows * columns <= MAX_TILES:
        for y in np.linspace(0, height - side, rows):
            for x in np.linspace(0, width - side, columns):
                yield Square(float(x) + (side - 1) / 2, float(y) + (side - 1) / 2, side)


def _look(network: Network, image_HW3: UInt8, square: Square, min_score: float) -> list[Detection]:
    """Return what the network finds in a square of the image, a face several times."""
    outputs = network(square.cut(image_HW3, SIDE).astype(np.float32) / np.float32(127.5) - 1)
    points_D8x2, score_D = decode(outputs[0], outputs[1], min_score)
    return [
        Detection(square.to_image(points_8x2 * SIDE - 0.5, SIDE), float(score))
        for points_8x2, score in zip(points_D8x2, score_D, strict=True)
    ]


def anchors() -> Float32:
    """Return the centres of the 896 anchors as fractions of the image, A×2; all have the size of the image.

    The order is that of `calculators/tflite/ssd_anchors_calculator.cc`, with `fixed_anchor_size`.
    """
    centres = []
    for cells, per_cell in GRIDS:
        middle = (np.arange(cells, dtype=np.float32) + 0.5) / cells
        grid = np.stack(np.meshgrid(middle, middle), -1).reshape(-1, 2)
        centres.append(np.repeat(grid, per_cell, axis=0))
    return np.concatenate(centres)


ANCHORS_Ax2 = anchors()


def decode(regressors: Float32, logits: Float32, min_score: float) -> tuple[Float32, Float32]:
    """Return the points (D×8×2, fractions of the image) and scores of the anchors that see a face.

    As `calculators/tensor/tensors_to_detections_calculator.cc`: a row is the centre and the size of a box, then six
    points; centre and points are relative to the anchor.

    Args:
        regressors: A×16, in px of the network's image.
        logits: of A scores.
        min_score: smallest score that is kept.
    """
    score_A = 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -MAX_LOGIT, MAX_LOGIT)))
    seen_A = score_A >= min_score
    values_D8x2 = regressors.reshape(-1, 8, 2)[seen_A] / SIDE
    centre_D2 = values_D8x2[:, 0] + ANCHORS_Ax2[seen_A]
    half_D2 = values_D8x2[:, 1] / 2
    corners = [centre_D2 - half_D2, centre_D2 + half_D2]
    points = values_D8x2[:, 2:] + ANCHORS_Ax2[seen_A][:, None]
    return np.concatenate([np.stack(corners, 1), points], 1), score_A[seen_A].astype(np.float32)


def _merged(found: Sequence[Detection]) -> list[Detection]:
    """Average detections of one face, weighted by their scores (`non_max_suppression_calculator.cc`, WEIGHTED)."""
    left = sorted(found, key=lambda detection: -detection.score)
    merged: list[Detection] = []
    while left:
        best = left[0]
        same = [detection for detection in left if iou(detection.box, best.box) > SAME_FACE_IOU or detection is best]
        left = [detection for detection in left if not any(detection is other for other in same)]
        weights = [detection.score for detection in same]
        points = np.average([detection.points_8x2 for detection in same], axis=0, weights=weights)
        merged.append(Detection(points.astype(np.float32), best.score))
    return merged
