"""The published structure, written down as the reference page states it: what the speed of ours is measured against.

Every key point's field is kept as a tensor of its own, sampling goes through three dimensions, and both warp layers are
computed though only the last one's output is used.

Shape letters: B batch, N key points, C channels, G cells of the coarse grid, H W feature map, D code.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lawdnet.models.generator import Generator, GeneratorConfig
from lawdnet.models.layers import Residual


class PublishedWarp(nn.Module):
    """The local affine warp, formula by formula; read as (x, y) where the published code scrambles them."""

    def __init__(self, channels: int = 256, code_dim: int = 256, key_points: int = 5, grid: int = 60) -> None:
        super().__init__()
        self.channels, self.num_points, self.grid = channels, key_points, grid
        self.trunk = nn.Linear(code_dim, code_dim)
        self.key_points = nn.Linear(code_dim, channels * key_points * 2)
        self.similarity = nn.Linear(code_dim, channels * key_points * 4)
        self.radius = nn.Linear(code_dim, channels * key_points)

    def forward(self, feature_BCHW: Tensor, code_BD: Tensor) -> Tensor:
        batch, channels, height, width = feature_BCHW.shape
        shape = (batch, self.num_points, channels, 1, 1, -1)
        code_BD = F.relu(self.trunk(code_BD))
        key = self.key_points(code_BD).view(shape).tanh()
        radius = self.radius(code_BD).view(shape).sigmoid().clamp_min(1e-6)
        scale, angle, shift_x, shift_y = self.similarity(code_BD).view(shape).tanh().split(1, dim=-1)
        axis = (2 * torch.arange(self.grid) + 1) / self.grid - 1
        cells_GG2 = torch.stack((axis.expand(self.grid, self.grid), axis[:, None].expand(self.grid, self.grid)), -1)
        offset = cells_GG2 - key  # B N C G G 2
        effect = torch.exp(-offset.norm(dim=-1, keepdim=True) / radius)
        turn = math.pi * angle * effect
        x, y = offset.split(1, dim=-1)
        turned = torch.cat((x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()), -1)
        moved = (1 + scale * effect) * turned + torch.cat((shift_x, shift_y), -1) * effect + key
        field_BCGG2 = (moved * effect.softmax(dim=1)).sum(1)
        field = F.interpolate(
            field_BCGG2.flatten(0, 1).permute(0, 3, 1, 2), (height, width), mode="bilinear", antialias=True
        )
        place_BCHW2 = field.permute(0, 2, 3, 1).view(batch, channels, height, width, 2)
        depth = (2 * torch.arange(channels) + 1) / channels - 1
        depth_BCHW1 = depth.view(1, -1, 1, 1, 1).expand(batch, -1, height, width, -1)
        grid_BCHW3 = torch.cat((place_BCHW2, depth_BCHW1), -1)
        return F.grid_sample(feature_BCHW[:, None], grid_BCHW3, align_corners=False)[:, 0]


class PublishedGenerator(Generator):
    """Two rounds of appearance and warp from the same reference feature; the first one's result is thrown away."""

    def __init__(self, config: GeneratorConfig | None = None) -> None:
        super().__init__(config)
        width = 4 * self.config.base_channels
        self.appearances = nn.ModuleList(nn.Sequential(Residual(width), Residual(width)) for _ in range(2))
        points, grid = self.config.key_points, self.config.warp_grid
        self.warps = nn.ModuleList(PublishedWarp(width, width, points, grid) for _ in range(2))

    def forward(self, masked_source_B3HW: Tensor, reference_B15HW: Tensor, audio_BC5: Tensor) -> Tensor:
        source_BChw = self.source_encoder(masked_source_B3HW)
        reference_BChw = self.reference_encoder(reference_B15HW)
        code_BD = self._code(torch.cat((source_BChw, reference_BChw), 1), audio_BC5)
        warped_BChw = reference_BChw
        for appearance, warp in zip(self.appearances, self.warps, strict=True):
            warped_BChw = warp(appearance(reference_BChw), code_BD)
        result: Tensor = self.decoder(torch.cat((source_BChw, warped_BChw), 1))
        return result
