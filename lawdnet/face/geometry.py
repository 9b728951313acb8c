"""The proportions of the aligned face crop, each written here once.

Pixel convention of the whole package: the centre of the first pixel is at (0, 0), so an image of width W
covers [-0.5, W - 0.5]. Points are (x, y); sizes are (height, width).

The crop is 1.25 m wide and 1.625 m high, where m is the mouth size in px that a network is trained for (64, 128, …).
"""

from __future__ import annotations

import numpy as np

from lawdnet.face.points import CROP_RATIO
from lawdnet.types import Float32

TEMPLATE_25x2: Float32 = np.array(
    [
        *[(-0.7829964, -0.8754507), (-0.6630508, -0.9833938), (-0.49384925, -1.015625)],
        *[(-0.318619, -0.9904674), (-0.1545971, -0.92190075), (0.15459552, -0.92190075)],
        *[(0.31861737, -0.9904674), (0.4938493, -1.015625), (0.6630494, -0.9833938), (0.7829953, -0.8754507)],
        *[(0.0, -0.7205851), (0.0, -0.554917), (0.0, -0.39062503), (0.0, -0.22149998)],
        *[(-0.19697745, -0.10690507), (-0.10243236, -0.07171352), (0.0, -0.0417291)],
        *[(0.10243075, -0.07171352), (0.19697584, -0.10690507)],
        *[(-0.58877313, -0.6996946), (-0.24855885, -0.6752256), (0.24855722, -0.6752256)],
        *[(0.5887715, -0.6996946), (-0.3771479, 0.20140538), (0.37714633, 0.20140538)],
    ],
    dtype=np.float32,
)
"""Position of the points ALIGN_POINTS in a frontal face, in half crop widths from the crop's centre (LawDNet 2024)."""

MASK_CANVAS = (103, 80)
"""Size (height, width) of the canvas on which the generator's mask, a rectangle, is defined."""
MASK_BOX = (slice(32, 96), slice(8, 72))
"""Rows and columns of the rectangle on MASK_CANVAS."""
MASK_BLUR_RADIUS = 2
"""Radius of the blur in canvas px. It has sigma 1 and no padding, so the canvas loses this much on every side."""


def crop_height(width: int) -> int:
    """Return the height of a crop of this width: 1.3 W, rounded."""
    return round(CROP_RATIO * width)


def stage_size(mouth_px: int) -> tuple[int, int]:
    """Return the crop size (height, width) for a mouth size: (13/8 m, 5/4 m).

    Raises:
        ValueError: mouth_px is not a positive multiple of 8.
    """
    if mouth_px <= 0 or mouth_px % 8:
        raise ValueError(f"mouth_px: {mouth_px} must be a positive multiple of 8, such as 64, 128, 256 or 288")
    return mouth_px * 13 // 8, mouth_px * 5 // 4


def mouth_box(mouth_px: int) -> tuple[slice, slice]:
    """Return rows [m/2, 3m/2) and columns [m/8, 9m/8) of a stage's crop: the mouth that the sync network sees."""
    stage_size(mouth_px)
    return slice(mouth_px // 2, mouth_px * 3 // 2), slice(mouth_px // 8, mouth_px * 9 // 8)


def template_px(width: int) -> Float32:
    """Return the 25×2 template in px of a crop of this width, centred on (W/2, 1.3 W/2) as published."""
    return (TEMPLATE_25x2 * (width / 2) + (width / 2, CROP_RATIO * width / 2)).astype(np.float32)
