"""The discriminator: a map of scores, each for a patch of an image or of five frames (stacked by channel)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from lawdnet.models.layers import ConvLeakyReLU2d, check_at_least, check_shape, init_he

KERNEL = 4


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes of a discriminator."""

    in_channels: int = 3
    """3 for one image, 15 for five frames."""
    blocks: int = 4
    """Number of blocks; each but the last halves the image."""
    expansion: int = 64
    """Block i (from 0) has expansion·2^(i+1) channels …"""
    max_channels: int = 256
    """… but no more than this."""

    def __post_init__(self) -> None:
        check_at_least(self, in_channels=1, blocks=1, expansion=1, max_channels=1)

    @property
    def min_px(self) -> int:
        """Smallest side in px of an image that still gives a score."""
        side = 1
        for block in range(self.blocks):
            side = (side if block == 0 else 2 * side) + KERNEL - 1
        return side


class Discriminator(nn.Module):
    """A stack of 4×4 convolutions without padding, with average pooling in between."""

    def __init__(self, config: DiscriminatorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DiscriminatorConfig()
        outputs = [min(config.max_channels, config.expansion * 2 ** (block + 1)) for block in range(config.blocks)]
        inputs = [config.in_channels, *outputs[:-1]]
        self.blocks = nn.ModuleList(ConvLeakyReLU2d(i, o, KERNEL) for i, o in zip(inputs, outputs, strict=True))
        self.score = nn.Conv2d(outputs[-1], 1, 1)
        init_he(self)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return B×1×h×w unbounded scores (least squares: 1 real, 0 generated) for RGB in [0, 1].

        Raises:
            ValueError: wrong number of channels, or an image smaller than `config.min_px`.
        """
        check_shape("image", x_BCHW, self.config.in_channels, None, None)
        if min(x_BCHW.shape[2:]) < self.config.min_px:
            height, width = x_BCHW.shape[2:]
            raise ValueError(
                f"image: {height}×{width} px is too small for {self.config.blocks} discriminator blocks,"
                f" which need {self.config.min_px} px; set fewer blocks"
            )
        x = self.blocks[0](x_BCHW)
        for block in self.blocks[1:]:
            x = block(F.avg_pool2d(x, 2))
        return cast("Tensor", self.score(x))
