"""How far a drawn mouth is open, from the image alone: the only measure for generated frames, which have no landmarks.

Shape letters: H W crop height and width, R C rows and columns of the window around the mouth.
"""

from __future__ import annotations

import numpy as np

from lawdnet.face.points import CROP_RATIO
from lawdnet.types import UInt8

HALF_WINDOW = 0.22
"""Width of the window on either side of the middle; half crop widths, like all lengths here."""
TAPER = 0.08
"""Length over which the window fades at its sides, so that a shift of less than a pixel changes little."""
MEASURABLE = 0.95
"""Least correlation between the truth's opening in pixels and in landmarks for the measurement to count. Drawn heads
have 0.99 and more; people, whose teeth and tongues are bright, have less."""
WINDOW_TOP, WINDOW_BOTTOM = 0.06, 0.62
"""From the upper lip to below the lower lip of a mouth that is wide open; 0 is the centre of the crop."""


def mouth_opening_from_pixels(crop_HW3: UInt8) -> float:
    """Return the mean height of the dark between the lips in an aligned crop of a drawn head (`lawdnet.synthetic`).

    Lips and skin are equally bright in red, and the inside of a mouth is dark. Each column of the window is filled up
    to the level that encloses a pixel on both sides, min(brightest above, brightest below), as rain fills a valley;
    what the water covers is the opening. Beards and shadows are outside the lips, so they are not enclosed and do not
    count. There is no threshold: blur and partly covered pixels change the result in proportion.

    Args:
        crop_HW3: uint8 RGB, as `lawdnet.face.align.crop_face` cuts it (H = 1.3 W), at least 32 px wide.

    Returns:
        The opening in half crop widths: 0 … about 0.02 shut, about 0.25 wide open. It is proportional to the true
        opening for one person; the size of mouth and teeth differs between people, so compare within a person.

    Raises:
        ValueError: `crop_HW3` is not an H×W×3 uint8 image with the proportions of a crop.
    """
    height, width = _checked(crop_HW3).shape[:2]
    x = (np.arange(width) + 0.5) * 2 / width - 1
    y = ((np.arange(height) + 0.5) / height - 0.5) * 2 * CROP_RATIO
    rows, columns = (y > WINDOW_TOP) & (y < WINDOW_BOTTOM), np.abs(x) < HALF_WINDOW
    red_RC = crop_HW3[..., 0][np.ix_(rows, columns)].astype(np.float32) + 1
    above_RC = np.maximum.accumulate(red_RC, axis=0)
    below_RC = np.maximum.accumulate(red_RC[::-1], axis=0)[::-1]
    depth_RC = 1 - red_RC / np.minimum(above_RC, below_RC)
    weight_C = np.clip((HALF_WINDOW - np.abs(x[columns])) / TAPER, 0, 1)
    return float(np.average(depth_RC.sum(0), weights=weight_C) * 2 / width)


def _checked(crop_HW3: UInt8) -> UInt8:
    if crop_HW3.ndim != 3 or crop_HW3.shape[2] != 3 or crop_HW3.dtype != np.uint8:
        raise ValueError(f"crop: {crop_HW3.dtype} of shape {crop_HW3.shape}, expected uint8 H×W×3")
    height, width = crop_HW3.shape[:2]
    if width < 32 or abs(height - CROP_RATIO * width) > 2:
        raise ValueError(f"crop: {height}×{width}, expected H = 1.3 W and W ≥ 32; align it with crop_face first")
    return crop_HW3
