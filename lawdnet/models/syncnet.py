"""The sync network: do these five mouths and this sound belong together?

Shape letters: B batch, S face side in px, C audio feature dimension, h w score map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from lawdnet.models.layers import (
    LEAKY_SLOPE,
    ConvReLU1d,
    ConvReLU2d,
    ConvReLUPool2d,
    Residual,
    check_at_least,
    check_shape,
    init_he,
)
from lawdnet.types import CLIP_FRAMES

FACE_CHANNELS = 15
SCORE_PX = 8


@dataclass(frozen=True)
class SyncNetConfig:
    """The sync network's shape."""

    audio_dim: int = 29
    """Feature rows that it hears."""
    base_channels: int = 64
    """Every width is one or two times this."""
    face_px: int = 256
    """Side of the mouth square that it sees."""

    def __post_init__(self) -> None:
        check_at_least(self, audio_dim=1, base_channels=1, face_px=4 * SCORE_PX)

    @property
    def halvings(self) -> int:
        """How often the face is halved, so that about 8×8 scores remain."""
        return round(math.log2(self.face_px / SCORE_PX))


class SyncNet(nn.Module):
    """Scores of a face and a sound, for target 1 where they are in sync."""

    def __init__(self, config: SyncNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SyncNetConfig()
        width = 2 * config.base_channels
        self.face_encoder = _face_encoder(config.base_channels, config.halvings)
        self.audio_encoder = _audio_encoder(config.audio_dim, width)
        self.merge = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1),
            nn.LeakyReLU(LEAKY_SLOPE),
            nn.Conv2d(width, 1, 3, padding=1),
        )
        init_he(self)

    def forward(self, faces_B15SS: Tensor, audio_BC9: Tensor) -> Tensor:
        """Score map B×1×h×w, without bound; a clip's score is its mean.

        Args:
            faces_B15SS: mouth squares of the five middle frames of a clip, RGB in [0, 1], stacked by channel.
            audio_BC9: feature rows of all nine frames of the clip. K·B of them are K rounds of sounds for the same
                faces, which are then encoded once.

        Raises:
            ValueError: a shape does not fit.
        """
        check_shape("faces", faces_B15SS, FACE_CHANNELS, self.config.face_px, self.config.face_px)
        check_shape("audio", audio_BC9, self.config.audio_dim, CLIP_FRAMES)
        face_BChw = self.face_encoder(faces_B15SS)
        face_BChw = face_BChw.repeat(len(audio_BC9) // len(face_BChw), 1, 1, 1)
        audio_BC11 = self.audio_encoder(audio_BC9).mean(2)[:, :, None, None]
        return cast("Tensor", self.merge(torch.cat((face_BChw, audio_BC11.expand_as(face_BChw)), 1)))


def _face_encoder(base: int, halvings: int) -> nn.Sequential:
    layers: list[nn.Module] = [ConvReLU2d(FACE_CHANNELS, base, 7)]
    for halving in range(halvings):
        width = base if halving == 0 else 2 * base
        kernel = 1 if halving == halvings - 1 else 3
        layers += [Residual(width, relu_first=True), ConvReLUPool2d(width, width), ConvReLU2d(width, 2 * base, kernel)]
    return nn.Sequential(*layers)


def _audio_encoder(inputs: int, width: int) -> nn.Sequential:
    """Nine columns → two."""
    layers: list[nn.Module] = [ConvReLU1d(inputs, width, 7)]
    for _ in range(3):
        layers += [Residual(width, dims=1, relu_first=True), ConvReLU1d(width, width, stride=2)]
    return nn.Sequential(*layers, ConvReLU1d(width, width))
