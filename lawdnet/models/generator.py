"""The generator: from a face with a hidden mouth, five reference images and audio to the face that says it.

Shape letters: B batch, C channels, H W crop, h w feature map (a quarter of the crop), D code width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lawdnet.models.attention import IMAGE_FEATURE_SIZE, CrossAttention
from lawdnet.models.layers import ConvReLU1d, ConvReLU2d, Residual, UpConvReLU2d, check_at_least, check_shape, init_he
from lawdnet.models.warp import LAYOUTS, LocalAffineWarp
from lawdnet.types import AUDIO_WINDOW, NUM_REFERENCES

SHRINK = 4
"""Crop px per feature px."""


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes of a generator."""

    audio_dim: int = 29
    """Audio features per frame, C."""
    base_channels: int = 64
    """All channel counts are multiples of it: images 1, 2 and 4 times, audio 2, the code 4."""
    key_points: int = 5
    """Key points of the warp per feature channel."""
    warp_grid: int = 60
    """Cells along a side of the warp's coarse field."""
    warp_layout: str = "correct"
    """`lawdnet2024` only for published weights; see `LocalAffineWarp`."""
    normalise: bool = False
    """Bring the image feature, the audio feature and the code of each sample to mean 0 and deviation 1. Without it,
    which is how the published network is, the image feature may shrink to a constant, and the code may grow until every
    warp parameter is saturated: then the mouth never learns to follow the audio."""

    def __post_init__(self) -> None:
        check_at_least(self, audio_dim=1, base_channels=1, key_points=1, warp_grid=2)
        if self.warp_layout not in LAYOUTS:
            raise ValueError(f"GeneratorConfig.warp_layout: {self.warp_layout!r}, expected one of {', '.join(LAYOUTS)}")


class Generator(nn.Module):
    """Generates the mouth: warps the reference feature to match the audio, and decodes it together with the source."""

    def __init__(self, config: GeneratorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or GeneratorConfig()
        base = config.base_channels
        code_dim = 4 * base
        self.source_encoder = _image_encoder(3, base)
        self.reference_encoder = _image_encoder(3 * NUM_REFERENCES, base)
        self.pair_encoder = _pair_encoder(2 * code_dim, 2 * base)
        self.audio_channels = 2 * base
        self.audio_encoder = _audio_encoder(config.audio_dim, self.audio_channels)
        self.attention = CrossAttention(2 * base, code_dim, base)
        self.appearance = nn.Sequential(Residual(code_dim), Residual(code_dim))
        self.warp = LocalAffineWarp(code_dim, code_dim, config.key_points, config.warp_grid, config.warp_layout)
        self.decoder = _decoder(2 * code_dim, 2 * base)
        init_he(self)
        self.warp.start_as_identity()

    def forward(
        self,
        masked_source_B3HW: Tensor,
        reference_B15HW: Tensor,
        audio_BC5: Tensor,
        teaches_B: Tensor | None = None,
    ) -> Tensor:
        """Return the completed faces.

        Args:
            masked_source_B3HW: RGB in [0, 1] with the mouth blacked out; H and W are multiples of 4.
            reference_B15HW: five RGB crops of the same person, stacked by channel, in [0, 1].
            audio_BC5: feature rows t-2 … t+2 for frame t; C is `config.audio_dim`.
            teaches_B: which images' gradients reach the audio encoder; all if not given.

        Returns:
            B×3×H×W in (0, 1).

        Raises:
            ValueError: a shape does not fit.
        """
        self._check(masked_source_B3HW, reference_B15HW, audio_BC5)
        # Convolutions over large images with few channels are up to twice as fast in channels-last layout; those with
        # wide kernels over small images are faster in the default layout.
        source_BChw = self.source_encoder(_channels_last(masked_source_B3HW))
        reference_BChw = self.reference_encoder(_channels_last(reference_B15HW))
        code_BD = self._code(torch.cat((source_BChw, reference_BChw), 1).contiguous(), audio_BC5, teaches_B)
        warped_BChw = self.warp(self.appearance(reference_BChw), code_BD)
        return cast("Tensor", self.decoder(_channels_last(torch.cat((source_BChw, warped_BChw), 1))))

    def _code(self, pair_BChw: Tensor, audio_BC5: Tensor, teaches_B: Tensor | None = None) -> Tensor:
        image_BChw = self.pair_encoder(pair_BChw)
        image_BC86 = F.interpolate(image_BChw, IMAGE_FEATURE_SIZE, mode="bilinear", align_corners=True)
        return self.code(image_BC86, audio_BC5, teaches_B)

    def code(self, image_BC86: Tensor, audio_BC5: Tensor, teaches_B: Tensor | None = None) -> Tensor:
        """Return the code B×D that moves the reference feature.

        Args:
            image_BC86: what the source and the references say about it.
            audio_BC5, teaches_B: as in `forward`.
        """
        audio_BCA = self.audio_encoder(audio_BC5)
        if teaches_B is not None:
            audio_BCA = torch.where(teaches_B[:, None, None], audio_BCA, audio_BCA.detach())
        if not self.config.normalise:
            return cast("Tensor", self.attention(image_BC86, audio_BCA))
        return _normalised(self.attention(_normalised(image_BC86), _normalised(audio_BCA)))

    def _check(self, masked_source_B3HW: Tensor, reference_B15HW: Tensor, audio_BC5: Tensor) -> None:
        check_shape("masked_source", masked_source_B3HW, 3, None, None)
        height, width = masked_source_B3HW.shape[2:]
        if height % SHRINK or width % SHRINK:
            raise ValueError(f"masked_source: {height}×{width} px, expected multiples of {SHRINK}")
        check_shape("reference", reference_B15HW, 3 * NUM_REFERENCES, height, width)
        check_shape("audio", audio_BC5, self.config.audio_dim, AUDIO_WINDOW)


def _normalised(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[1:])


def _channels_last(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.contiguous(memory_format=torch.channels_last)


def _image_encoder(inputs: int, base: int) -> nn.Sequential:
    return nn.Sequential(
        ConvReLU2d(inputs, base, 7),
        ConvReLU2d(base, 2 * base, stride=2),
        ConvReLU2d(2 * base, 4 * base, stride=2),
    )


def _pair_encoder(inputs: int, width: int) -> nn.Sequential:
    """Reduce the size to a sixteenth, with kernels wide enough to relate distant positions of source and references."""
    kernels_strides = ((11, 1), (11, 1), (3, 2), (7, 1), (7, 1), (3, 2), (3, 1), (3, 2), (3, 1), (3, 2))
    return nn.Sequential(
        ConvReLU2d(inputs, width),
        *(ConvReLU2d(width, width, kernel, stride) for kernel, stride in kernels_strides),
    )


def _audio_encoder(inputs: int, width: int) -> nn.Sequential:
    """Reduce five columns to two."""
    return nn.Sequential(
        ConvReLU1d(inputs, width, 5),
        Residual(width, dims=1),
        ConvReLU1d(width, width, stride=2),
        Residual(width, dims=1),
        ConvReLU1d(width, width, stride=2),
        ConvReLU1d(width, width),
    )


def _decoder(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        ConvReLU2d(inputs, width),
        UpConvReLU2d(width, width),
        Residual(width),
        UpConvReLU2d(width, width),
        nn.Conv2d(width, 3, 7, padding=3),
        nn.Sigmoid(),
    )
