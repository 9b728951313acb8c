"""The part of a crop that is hidden from the generator, and the opacity with which its output is pasted.

Both masks are a rectangle, so each is the outer product of a row profile and a column profile. What is pasted is also
limited by the jaw line of the face.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from lawdnet.face.geometry import MASK_BLUR_RADIUS, MASK_BOX, MASK_CANVAS
from lawdnet.face.points import CHIN, JAW
from lawdnet.types import Float32

HIDDEN = 1e-6
"""Values of `keep_mask` up to this are rounding errors of 0."""
REGIONS = {"lower-face": (MASK_BOX, (14, 12, 11)), "mouth": ((slice(48, 82), slice(16, 64)), (8, 10, 9))}
"""What can be pasted: its rectangle on the canvas, and the width of its soft edge in canvas px: top, bottom (for
`lower-face` below a resting chin), sides."""
JAW_DROP = 0.14
"""How far below the chin the paste may reach, in crop widths: a generated jaw may be wider open than the true one."""
JAW_FEATHER = 0.06
"""Width of the soft edge along the jaw line, in crop widths: a third of it outside, because in a profile the line runs
through the corner of the mouth."""
JAW_SCALE = 8
"""The jaw line is drawn with this many steps per px."""


@cache
def keep_mask(height: int, width: int) -> Float32:
    """Return the factor that hides the mouth from the generator: 0 in a soft rectangle over the mouth, 1 around it.

    It is a rectangle on a small canvas, blurred by a Gaussian (radius 2, sigma 1, no padding) and resized bilinearly
    with antialiasing (LawDNet 2024). The array is shared and read-only.

    Returns:
        height×width in [0, 1].
    """
    rows, columns = (_profile(axis, size) for axis, size in enumerate((height, width)))
    return _frozen(1 - np.outer(rows, columns))


def check_region(region: str) -> None:
    """Raise ValueError unless there is such a region."""
    if region not in REGIONS:
        raise ValueError(f"region: {region!r}, expected one of {', '.join(REGIONS)}")


@cache
def paste_alpha(height: int, width: int, region: str = "lower-face") -> Float32:
    """Return the opacity of a generated crop for `paste_face`: 1 over the mouth, fading out inside a rectangle.

    Outside the hidden rectangle it is 0: there the generator saw the original, and the frame keeps it. The array is
    shared and read-only.

    Args:
        height, width: of the crop.
        region: `lower-face`, all of the hidden rectangle, or `mouth`, the lips and what is around them.

    Returns:
        height×width in [0, 1].

    Raises:
        ValueError: there is no such region.
    """
    check_region(region)
    (rows, columns), (top, bottom, side) = REGIONS[region]
    return _frozen(np.outer(_ramps(0, height, rows, top, bottom), _ramps(1, width, columns, side, side)))


def inside_jaw(height: int, width: int, jaw_17x2: Float32) -> Float32:
    """Return a factor for `paste_alpha` that keeps off what is beside a turned head: 1 in the face, 0 outside.

    It fades out along the jaw line; around the chin it reaches `JAW_DROP` below it.

    Args:
        height, width: of the crop.
        jaw_17x2: the points `JAW` in px of this crop, from ear to ear.

    Returns:
        height×width in [0, 1]; all 1 if a point is not finite.
    """
    if not np.isfinite(jaw_17x2).all():
        return np.ones((height, width), np.float32)
    number = np.arange(JAW.start, JAW.stop)
    drop = np.clip(1 - np.abs(number - CHIN) / 5, 0, 1) * JAW_DROP * width
    line = jaw_17x2 + np.stack([0 * drop, drop], 1)
    above = np.array([[line[-1, 0], -height], [line[0, 0], -height]])
    polygon = np.clip(np.concatenate([line, above]), -4 * height, 4 * height)
    face = np.zeros((height, width), np.uint8)
    shift = JAW_SCALE.bit_length() - 1
    cv2.fillPoly(face, [np.round(polygon * JAW_SCALE).astype(np.int32)], 1, shift=shift)
    inside, outside = (cv2.distanceTransform(side, cv2.DIST_L2, 5) for side in (face, 1 - face))
    from_line = inside - outside + 0.5 - face  # both count whole px to the first one across the line
    rise = np.clip(from_line / (JAW_FEATHER * width) + 1 / 3, 0, 1)
    return np.asarray(rise**2 * (3 - 2 * rise), np.float32)


def _profile(axis: int, size: int) -> NDArray[np.float64]:
    """Return the rectangle along one axis (0 rows, 1 columns), blurred and resized to `size`."""
    canvas = np.zeros(MASK_CANVAS[axis])
    canvas[MASK_BOX[axis]] = 1
    offsets = np.arange(-MASK_BLUR_RADIUS, MASK_BLUR_RADIUS + 1)
    kernel = np.exp(-(offsets**2) / 2)
    return _resize(np.convolve(canvas, kernel / kernel.sum(), "valid"), size)


def _resize(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Resize bilinearly with antialiasing: triangular weights as wide as the larger px, normalised at the ends."""
    step = len(values) / size
    centres = (np.arange(size)[:, None] + 0.5) * step - 0.5
    weights = np.clip(1 - np.abs(np.arange(len(values)) - centres) / max(step, 1), 0, None)
    return (weights @ values) / weights.sum(1)


def _ramps(axis: int, size: int, box: slice, before: float, after: float) -> NDArray[np.float64]:
    """Return 0 outside a box's range, rising as a smoothstep over `before` and `after` canvas px inside its ends."""
    visible = MASK_CANVAS[axis] - 2 * MASK_BLUR_RADIUS
    position = (np.arange(size) + 0.5) * visible / size + MASK_BLUR_RADIUS
    rise = np.clip(np.minimum((position - box.start) / before, (box.stop - position) / after), 0, 1)
    return rise**2 * (3 - 2 * rise)


def _frozen(values: NDArray[np.float64]) -> Float32:
    mask = values.astype(np.float32)
    mask.setflags(write=False)
    return mask
