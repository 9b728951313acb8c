"""The part of a crop that is hidden from the generator, and the opacity with which its output is pasted.

Both masks are a rectangle, so each is the outer product of a row profile and a column profile.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from lawdnet.face.geometry import MASK_BLUR_RADIUS, MASK_BOX, MASK_CANVAS
from lawdnet.types import Float32

FEATHER = (14, 12, 11)
"""Width of the pasted face's soft edge in canvas px: top, bottom (below a resting chin), sides."""


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


@cache
def paste_alpha(height: int, width: int) -> Float32:
    """Return the opacity of a generated crop for `paste_face`: 1 over the mouth, fading out inside the masked
    rectangle.

    Outside the rectangle it is 0: there the generator saw the original, and the frame keeps it. The array is shared and
    read-only.

    Returns:
        height×width in [0, 1].
    """
    top, bottom, side = FEATHER
    rows = _ramps(0, height, top, bottom)
    return _frozen(np.outer(rows, _ramps(1, width, side, side)))


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


def _ramps(axis: int, size: int, before: float, after: float) -> NDArray[np.float64]:
    """Return 0 outside the rectangle, rising as a smoothstep over `before` and `after` canvas px inside its ends."""
    visible = MASK_CANVAS[axis] - 2 * MASK_BLUR_RADIUS
    position = (np.arange(size) + 0.5) * visible / size + MASK_BLUR_RADIUS
    box = MASK_BOX[axis]
    rise = np.clip(np.minimum((position - box.start) / before, (box.stop - position) / after), 0, 1)
    return rise**2 * (3 - 2 * rise)


def _frozen(values: NDArray[np.float64]) -> Float32:
    mask = values.astype(np.float32)
    mask.setflags(write=False)
    return mask
