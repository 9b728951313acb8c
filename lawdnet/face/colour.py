"""Matching the colour of a generated face to the frame that it is pasted into.

Shape letters: H W crop, 3 RGB.
"""

from __future__ import annotations

import cv2
import numpy as np

from lawdnet.types import Float32, UInt8

UNLIKE = 48
"""A px that differs by more than this, of 255, shows something else, such as a moved lip, and is left out."""
MIN_ALIKE = 0.4
"""Share of the seam that must be alike."""
MAX_SHIFT = 16
"""Largest change of the mean, of 255."""
MAX_GAIN = 1.15
"""Largest change of the contrast, up or down."""
NOTICEABLE = 1.0
"""Changes of less than this, of 255, are left out."""


def match_colour(made_HW3: UInt8, true_HW3: UInt8, alpha_HW: Float32) -> UInt8:
    """Give a generated face the mean and contrast that the frame has along the seam, channel by channel.

    Args:
        made_HW3: the generated face.
        true_HW3: the frame in the same place.
        alpha_HW: opacity with which it will be pasted; the seam is where it is neither 0 nor 1.

    Returns:
        H×W×3: the same array if there is nothing to gain, or if the two are too different to compare.
    """
    seam_HW = alpha_HW * (1 - alpha_HW) > 0.09  # opacities from 0.1 to 0.9
    made_N3, true_N3 = made_HW3[seam_HW].astype(np.float32), true_HW3[seam_HW].astype(np.float32)
    alike_N = np.abs(made_N3 - true_N3).max(1) <= UNLIKE
    if not len(alike_N) or alike_N.mean() < MIN_ALIKE:
        return made_HW3
    made_N3, true_N3 = made_N3[alike_N], true_N3[alike_N]
    made_mean, true_mean = made_N3.mean(0), true_N3.mean(0)
    gain = np.clip((true_N3.std(0) + 1) / (made_N3.std(0) + 1), 1 / MAX_GAIN, MAX_GAIN)
    shift = np.clip(true_mean - made_mean, -MAX_SHIFT, MAX_SHIFT)
    level_256x1 = np.arange(256, dtype=np.float32)[:, None]
    changed_256x3 = (level_256x1 - made_mean) * gain + made_mean + shift
    low, high = made_N3.min(0), made_N3.max(0)
    noticed = np.abs(np.stack([low, high]) - made_mean) * np.abs(gain - 1) + np.abs(shift)
    if (noticed < NOTICEABLE).all():
        return made_HW3
    table = np.clip(np.round(changed_256x3), 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(made_HW3, table[None]), np.uint8)
