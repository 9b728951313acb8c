"""The shapes of a run's networks, and the image that its sync network sees.

Shape letters: B batch, N frames of a sample, H W crop, S side of the square.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lawdnet.face.geometry import mouth_box
from lawdnet.models.discriminator import DiscriminatorConfig
from lawdnet.models.generator import GeneratorConfig
from lawdnet.models.syncnet import SyncNetConfig
from lawdnet.training.config import TrainConfig
from lawdnet.training.stages import Stage


def mouth_square(crop_BN3HW: Tensor, mouth_px: int, side: int) -> Tensor:
    """Cut out the square for the sync network, frames stacked by channel: B × 3N × S × S.

    It is resized with antialiasing, so that every pixel counts and has a gradient: at a third of the size, plain
    bilinear sampling reads one pixel of nine.
    """
    rows, columns = mouth_box(mouth_px)
    square = crop_BN3HW[..., rows, columns].flatten(1, 2)
    if side == mouth_px:
        return square
    return F.interpolate(square, (side, side), mode="bilinear", align_corners=False, antialias=True)


def generator_config(config: TrainConfig, audio_dim: int) -> GeneratorConfig:
    """Shape of a run's generator."""
    return GeneratorConfig(
        audio_dim=audio_dim,
        base_channels=config.base_channels,
        key_points=config.key_points,
        warp_grid=config.warp_grid,
        warp_layout=config.warp_layout,
        normalise=config.normalise,
    )


def discriminator_config(config: TrainConfig, stage: Stage, channels: int) -> DiscriminatorConfig:
    """Shape of a stage's discriminator; small crops leave room for only three blocks."""
    return DiscriminatorConfig(
        in_channels=channels,
        blocks=3 if stage.mouth_px < 64 else 4,
        expansion=config.disc_channels,
        max_channels=config.disc_max_channels,
    )


def syncnet_config(config: TrainConfig, stage: Stage, audio_dim: int) -> SyncNetConfig:
    """Shape of a run's sync network, which sees the mouth at the size of its own stage."""
    return SyncNetConfig(
        audio_dim=audio_dim,
        base_channels=config.sync_channels,
        face_px=stage.mouth_px,
        motion=True,
        head="cosine",
    )
