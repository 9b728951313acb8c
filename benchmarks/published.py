"""The operations of the published code, in the same order and with the same tensors: the baseline for our speed.

It reimplements `LocalAffineWarp` and `LawDNet` of `models/LawDNet.py` in iPaw-AI-LAB/LawDNet_2024: each key point has a
field tensor of its own, the values of a key point are repeated over its cells before use, the rotation is a 2×2 matrix
per cell, the three-dimensional sampling reads its feature as one volume, and both warp layers are computed although
only the result of the last one is used. The parts that are the same in both networks come from ours.

Shape letters: B batch, N key points, C channels, G cells along a side of the coarse grid, H W feature map.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lawdnet.models.generator import Generator, GeneratorConfig
from lawdnet.models.layers import Residual
from lawdnet.models.warp import cell_centres


class PublishedWarp(nn.Module):
    """The local affine warp; its parameters have the names and shapes of `LocalAffineWarp`.

    Args:
        layout: `lawdnet2024` reads the averaged field scrambled, as the published code does; `correct` does not, and
            takes as much work.
    """

    def __init__(
        self,
        channels: int = 256,
        code_dim: int = 256,
        key_points: int = 5,
        grid: int = 60,
        layout: str = "lawdnet2024",
    ) -> None:
        super().__init__()
        self.channels, self.num_points, self.grid, self.layout = channels, key_points, grid, layout
        self.trunk = nn.Linear(code_dim, code_dim)
        self.key_points = nn.Linear(code_dim, channels * key_points * 2)
        self.similarity = nn.Linear(code_dim, channels * key_points * 4)
        self.radius = nn.Linear(code_dim, channels * key_points)

    def forward(self, feature_BCHW: Tensor, code_BD: Tensor) -> Tensor:
        batch, channels, height, width = feature_BCHW.shape
        shape_BNC = (batch, self.num_points, channels, -1)
        code_BD = F.relu(self.trunk(code_BD))
        key_BNC2 = self.key_points(code_BD).view(shape_BNC).tanh()
        radius_BNC1 = self.radius(code_BD).view(shape_BNC).sigmoid()
        similarity_BNC4 = self.similarity(code_BD).view(shape_BNC).tanh()
        field_BCGG2 = self._field(key_BNC2, radius_BNC1, similarity_BNC4)
        # `lawdnet2024`: (C, G, G, 2) with columns before rows in memory, read as (C, 2, G, G).
        order = (0, 1, 3, 2, 4) if self.layout == "lawdnet2024" else (0, 1, 4, 2, 3)
        planes = field_BCGG2.permute(order).contiguous().view(batch, 2 * channels, self.grid, self.grid)
        resized = F.interpolate(planes, (height, width), mode="bilinear", antialias=True)
        position_BCHW2 = resized.view(batch, channels, 2, height, width).permute(0, 1, 3, 4, 2)
        depth_C = torch.linspace(1 / channels - 1, 1 - 1 / channels, channels, device=feature_BCHW.device)
        depth_BCHW1 = depth_C.view(1, -1, 1, 1, 1).repeat(batch, 1, height, width, 1)
        volume_B1CHW, grid_BCHW3 = feature_BCHW.unsqueeze(1), torch.cat((position_BCHW2, depth_BCHW1), -1)
        return F.grid_sample(volume_B1CHW, grid_BCHW3, align_corners=False).squeeze(1)

    def _field(self, key_BNC2: Tensor, radius_BNC1: Tensor, similarity_BNC4: Tensor) -> Tensor:
        """Return B×C×G×G×2: the position that each cell reads."""
        batch, points, channels, _ = key_BNC2.shape
        grid = self.grid
        cells_GG2 = cell_centres(grid, grid, key_BNC2).permute(1, 2, 0).contiguous()
        cells = cells_GG2[:, :, None].repeat(1, points, channels, 1, 1, 1, 1)
        per_point = (batch, points, channels, 1, 1)

        def over_cells(values: Tensor) -> Tensor:
            return values.reshape(*per_point, values.shape[-1]).repeat(1, 1, 1, grid, grid, 1)

        offset = cells - key_BNC2.view(*per_point, 1, 2)
        effect = torch.exp(-torch.norm(offset, dim=-1) / radius_BNC1.view(*per_point, 1))
        factor = over_cells(similarity_BNC4[..., :1] + 1) * effect + (1 - effect) * 1.0
        turn = over_cells(similarity_BNC4[..., 1:2] * math.pi) * effect
        shift = over_cells(similarity_BNC4[..., 2:]) * effect
        matrix = torch.cat((turn.cos(), turn.sin(), -turn.sin(), turn.cos()), -1).view(*effect.shape[:-1], 2, 2)
        turned = offset.matmul(matrix.transpose(-1, -2))
        position = factor * turned.squeeze(-2) + shift + key_BNC2.view(*per_point, 2)
        return (position * F.softmax(effect, dim=1)).sum(1)


class PublishedGenerator(Generator):
    """Runs appearance and warp twice from the same reference feature, and discards the first result."""

    def __init__(self, config: GeneratorConfig | None = None) -> None:
        super().__init__(config)
        width = 4 * self.config.base_channels
        self.appearances = nn.ModuleList(nn.Sequential(Residual(width), Residual(width)) for _ in range(2))
        points, grid = self.config.key_points, self.config.warp_grid
        self.warps = nn.ModuleList(PublishedWarp(width, width, points, grid) for _ in range(2))

    def forward(
        self,
        masked_source_B3HW: Tensor,
        reference_B15HW: Tensor,
        audio_BC5: Tensor,
        teaches_B: Tensor | None = None,
    ) -> Tensor:
        source_BChw = self.source_encoder(masked_source_B3HW)
        reference_BChw = self.reference_encoder(reference_B15HW)
        code_BD = self._code(torch.cat((source_BChw, reference_BChw), 1), audio_BC5, teaches_B)
        warped_BChw = reference_BChw
        for appearance, warp in zip(self.appearances, self.warps, strict=True):
            warped_BChw = warp(appearance(reference_BChw), code_BD)
        result: Tensor = self.decoder(torch.cat((source_BChw, warped_BChw), 1))
        return result
