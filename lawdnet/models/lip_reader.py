"""The lip reader: where the lips are in an image of a mouth.

Shape letters: B batch, S side of the square.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from lawdnet.models.layers import check_at_least, check_shape, init_he

READ_PX = 32
"""Side of the square that is read: more shows more of the lips' outline, but little more of how they move."""
NUM_LIP_VALUES = 40
"""x and y of the 20 mouth landmarks."""
MIN_DEVIATION = 0.02
"""Least contrast of an image; a plain one is not blown up to noise."""


@dataclass(frozen=True)
class LipReaderConfig:
    """Sizes of a lip reader."""

    base_channels: int = 16
    """Channels at full size, twice and four times as many at a half and less."""

    def __post_init__(self) -> None:
        check_at_least(self, base_channels=1)


class LipReader(nn.Module):
    """Convolutions, the last at an eighth of the size, and a linear layer that still knows where it looks."""

    def __init__(self, config: LipReaderConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or LipReaderConfig()
        base = config.base_channels
        self.encoder = nn.Sequential(
            *_block(3, base, 1),
            *_block(base, 2 * base, 2),
            *_block(2 * base, 2 * base, 1),
            *_block(2 * base, 4 * base, 2),
            *_block(4 * base, 4 * base, 1),
            *_block(4 * base, 4 * base, 2),
        )
        self.points = nn.Linear(4 * base * (READ_PX // 8) ** 2, NUM_LIP_VALUES)
        init_he(self)

    def forward(self, mouth_B3SS: Tensor) -> Tensor:
        """Return B×40: x and y of the mouth landmarks, in the unit of the points it was trained with.

        Light and colour do not count: each image is brought to mean 0 and deviation 1, each channel to mean 0.

        Args:
            mouth_B3SS: RGB in [0, 1], S = 32.

        Raises:
            ValueError: a shape does not fit.
        """
        check_shape("mouth", mouth_B3SS, 3, READ_PX, READ_PX)
        centred = mouth_B3SS - mouth_B3SS.mean((2, 3), keepdim=True)
        deviation = torch.linalg.vector_norm(centred, dim=(1, 2, 3), keepdim=True) / centred[0].numel() ** 0.5
        return cast("Tensor", self.points(self.encoder(centred / (deviation + MIN_DEVIATION)).flatten(1)))


def _block(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    # not ReLU: a generator learns through it, and its gradient shall not jump
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.SiLU()
