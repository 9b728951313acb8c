"""Other looks of the same sample: mirrored, and in other light. A few dozen people are few faces to learn to draw from.

All images of a sample change alike, so what is to be drawn still follows from what is shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lawdnet.face.points import MIRRORED_MOUTH
from lawdnet.types import Float32, UInt8

GAMMA = 0.3
"""Standard deviation of the logarithm of the gamma: of all channels."""
TINT = 0.1
"""Standard deviation of the logarithm of each channel's gain."""
LEVEL = 0.06
"""Standard deviation of what is added, in units of white."""


@dataclass(frozen=True)
class Look:
    """How a sample is changed."""

    is_mirrored: bool
    table_256x3: UInt8
    """The new value of every value of each channel."""

    def images(self, images_HW3: UInt8) -> UInt8:
        """Change images …×H×W×3."""
        if self.is_mirrored:
            images_HW3 = images_HW3[..., ::-1, :]
        changed = [self.table_256x3[:, channel][images_HW3[..., channel]] for channel in range(3)]
        return np.stack(changed, -1)

    def lips(self, lips_N40: Float32) -> Float32:
        """Change the lips (see `lawdnet.data.lips`), …×40."""
        if not self.is_mirrored:
            return lips_N40
        lips_N20x2 = lips_N40.reshape(*lips_N40.shape[:-1], 20, 2)[..., MIRRORED_MOUTH, :]
        return (lips_N20x2 * np.array([-1, 1], np.float32)).reshape(lips_N40.shape)


def draw_look(rng: np.random.Generator) -> Look:
    """Choose how a sample is changed."""
    gamma = np.exp(rng.normal(0, GAMMA))
    gain_3 = np.exp(rng.normal(0, TINT, 3))
    value_256x1 = (np.arange(256) / 255)[:, None] ** gamma
    table = value_256x1 * gain_3 + rng.normal(0, LEVEL)
    return Look(bool(rng.integers(2)), np.round(255 * table.clip(0, 1)).astype(np.uint8))
