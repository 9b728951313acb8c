"""Local affine warping: every feature channel is deformed around a few key points of its own.

Shape letters: B batch, C channels, M maps (= B·C; m is a part of them), N key points per channel, G cells along a side
of the coarse grid, H W feature map, D width of the code. Coordinates are those of `grid_sample` with
`align_corners=False`: x to the right, y down, -1 … 1 from edge to edge.

Source of the formulas: LawDNet, arXiv 2409.09326. With the offset o = g - k from key point k to grid point g, and
e = exp(-|o| / r), the key point moves g by

    t·e + (1 + s·e)·R(π·a·e)·o - o

and the N moves are averaged with weights softmax(e). If scale s, angle a and shift t are zero, nothing moves.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lawdnet.models.layers import init_he
from lawdnet.models.parts import Box

LAYOUTS = ("correct", "lawdnet2024")
MIN_RADIUS = 1e-6
CHUNK_CELLS_CPU = 1 << 17
"""Grid cells (over all maps) processed at once: as many as stay in a CPU's cache …"""
CHUNK_CELLS_GPU = 1 << 22
"""… or keep a GPU busy."""


class LocalAffineWarp(nn.Module):
    """Warps each of C channels by a field that a code of D values describes.

    Args:
        channels: C.
        code_dim: D.
        key_points: N.
        grid: G; the field is computed on G×G cells and resized to the feature map.
        layout: `correct`, or `lawdnet2024` for weights trained with the published code, which reads its field
            (C, W, H, 2) as (C, 2, H, W): a scrambled field, which those weights were trained with.
    """

    def __init__(self, channels: int, code_dim: int, key_points: int, grid: int, layout: str) -> None:
        super().__init__()
        assert layout in LAYOUTS
        self.channels, self.num_points, self.grid, self.layout = channels, key_points, grid, layout
        self.trunk = nn.Linear(code_dim, code_dim)
        self.key_points = nn.Linear(code_dim, channels * key_points * 2)
        self.similarity = nn.Linear(code_dim, channels * key_points * 4)
        self.radius = nn.Linear(code_dim, channels * key_points)
        self.start_as_identity()

    def start_as_identity(self) -> None:
        """Initialise the weights so that nothing moves yet and key points are spread over the image."""
        init_he(self)
        nn.init.zeros_(self.similarity.weight)
        for head in (self.key_points, self.radius):
            nn.init.normal_(head.weight, std=0.01)
        with torch.no_grad():
            self.key_points.bias.uniform_(-0.9, 0.9).atanh_()

    def forward(self, feature_BCHW: Tensor, code_BD: Tensor, box: Box | None = None) -> Tensor:
        """Return the warped feature, of the same dtype; values from outside the map are 0.

        Args:
            feature_BCHW: all of the map, because the warp may fetch values from anywhere.
            code_BD: what bends it.
            box: the part of the result to return; without it, all. It saves no work with layout `lawdnet2024`.
        """
        # Positions need more than half precision: bfloat16 has steps of 1/256 here, a third of a pixel at width 160.
        dtype = torch.promote_types(feature_BCHW.dtype, torch.float32)
        with torch.autocast(feature_BCHW.device.type, enabled=False):
            parameters_7NM = self._parameters_7NM(code_BD.to(self.trunk.weight.dtype)).to(dtype)
            height, width = feature_BCHW.shape[2:]
            if box is None:
                grid_Mhw2 = self._sampling_grid(parameters_7NM, height, width)
            else:
                grid_Mhw2 = self._part_of_sampling_grid(parameters_7NM, height, width, box)
            feature_M1HW = feature_BCHW.to(dtype).reshape(-1, 1, height, width)
            warped_M1hw = F.grid_sample(feature_M1HW, grid_Mhw2, mode="bilinear", align_corners=False)
        return warped_M1hw.view(*feature_BCHW.shape[:2], *grid_Mhw2.shape[1:3]).to(feature_BCHW.dtype)

    def _part_of_sampling_grid(self, parameters_7NM: Tensor, height: int, width: int, box: Box) -> Tensor:
        """Compute only the cells of the coarse field that the part is interpolated from."""
        rows, columns = box.slices
        if self.layout == "lawdnet2024":
            return self._sampling_grid(parameters_7NM, height, width)[:, rows, columns]
        like = parameters_7NM.dtype, parameters_7NM.device
        from_rows_hg, g_rows = _interpolation(height, self.grid, box.top, box.bottom, *like)
        from_columns_wg, g_columns = _interpolation(width, self.grid, box.left, box.right, *like)
        axis_G = _axis(self.grid, parameters_7NM)
        move_M2gg = _average_parts(parameters_7NM, axis_G[g_rows], axis_G[g_columns])[0]
        move_M2hw = from_rows_hg @ move_M2gg @ from_columns_wg.T
        position_M2hw = move_M2hw + cell_centres(height, width, move_M2hw)[:, rows, columns]
        return position_M2hw.permute(0, 2, 3, 1)

    def _sampling_grid(self, parameters_7NM: Tensor, height: int, width: int) -> Tensor:
        move_M2GG = average_move(parameters_7NM, self.grid)
        if self.layout == "lawdnet2024":
            position_M2GG = move_M2GG + cell_centres(self.grid, self.grid, move_M2GG)
            scrambled_M2GG = position_M2GG.permute(0, 3, 2, 1).reshape(position_M2GG.shape)
            return _resize(scrambled_M2GG, height, width).permute(0, 2, 3, 1)
        # The move is resized, not the position, which the antialiasing filter distorts, most at the edges.
        position_M2HW = _resize(move_M2GG, height, width) + cell_centres(height, width, move_M2GG)
        return position_M2HW.permute(0, 2, 3, 1)

    def _parameters_7NM(self, code_BD: Tensor) -> Tensor:
        """Return rows: key point x y, radius, scale, angle, shift x y."""
        shape_BNC = (len(code_BD), self.num_points, self.channels, -1)
        code_BD = F.relu(self.trunk(code_BD))
        key_BNC2 = self.key_points(code_BD).view(shape_BNC).tanh()
        radius_BNC1 = self.radius(code_BD).view(shape_BNC).sigmoid().clamp_min(MIN_RADIUS)
        similarity_BNC4 = self.similarity(code_BD).view(shape_BNC).tanh()
        parameters_BNC7 = torch.cat((key_BNC2, radius_BNC1, similarity_BNC4), dim=-1)
        return parameters_BNC7.permute(3, 1, 0, 2).flatten(2)


def cell_centres(height: int, width: int, like: Tensor) -> Tensor:
    """Return 2×H×W: x and y of the centres of height×width cells that fill -1 … 1."""
    x_W, y_H = _axis(width, like), _axis(height, like)
    return torch.stack((x_W.expand(height, width), y_H[:, None].expand(height, width)))


def average_move(parameters_7NM: Tensor, grid: int) -> Tensor:
    """Compute how far the warp moves each cell centre of a grid×grid field.

    It needs no more memory than its result: the N moves are not kept, and the backward pass computes them again.

    Args:
        parameters_7NM: key point x y (-1 … 1), radius (> 0), scale, angle (half turns), shift x y.
        grid: G.

    Returns:
        M×2×G×G, x and y.
    """
    return cast("Tensor", _AverageMove.apply(parameters_7NM, grid))


class _AverageMove(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameters_7NM: Tensor, grid: int) -> Tensor:
        axis_G = _axis(grid, parameters_7NM)
        move_M2GG, weight_MGG = _average_parts(parameters_7NM, axis_G, axis_G)
        ctx.save_for_backward(parameters_7NM, move_M2GG, weight_MGG)
        return move_M2GG

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M2GG: Tensor) -> tuple[Tensor, None]:
        parameters_7NM, *by_map = ctx.saved_tensors
        grid = grad_M2GG.shape[-1]
        parts = zip(
            _parts(parameters_7NM, 2, grid**2),
            *(_parts(values, 0, grid**2) for values in (*by_map, grad_M2GG)),
            strict=True,
        )
        return torch.cat([_gradient(*part) for part in parts], dim=2), None


def _average_parts(parameters_7NM: Tensor, y_G: Tensor, x_G: Tensor) -> tuple[Tensor, Tensor]:
    """Return `_average` of all maps."""
    parts = [_average(part_7Nm, y_G, x_G) for part_7Nm in _parts(parameters_7NM, 2, len(y_G) * len(x_G))]
    move_M2GG, weight_MGG = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return move_M2GG, weight_MGG


def _average(parameters_7Nm: Tensor, y_G: Tensor, x_G: Tensor) -> tuple[Tensor, Tensor]:
    """Return the average move, m×2×G×G, and the sum of the weights, m×G×G, of cells with these centres."""
    shape = (parameters_7Nm.shape[2], len(y_G), len(x_G))
    move_x, move_y, weight = (parameters_7Nm.new_zeros(shape) for _ in range(3))
    for point_7m in parameters_7Nm.unbind(1):
        point = _Point(point_7m, y_G, x_G)
        move_x.addcmul_(point.weight, point.move_x())
        move_y.addcmul_(point.weight, point.move_y())
        weight += point.weight
    return torch.stack((move_x / weight, move_y / weight), 1), weight


def _gradient(parameters_7Nm: Tensor, move_m2GG: Tensor, weight_mGG: Tensor, grad_m2GG: Tensor) -> Tensor:
    """Return 7×N×m: the gradient of the parameters, given that of the average."""
    grad_m2GG = grad_m2GG / weight_mGG[:, None]
    axis_G = _axis(move_m2GG.shape[-1], move_m2GG)
    points = (_Point(point_7m, axis_G, axis_G) for point_7m in parameters_7Nm.unbind(1))
    return torch.stack([point.gradient(grad_m2GG, move_m2GG) for point in points], 1)


class _Point:
    """The effect of one key point on each of m maps; every attribute is m×G×G or broadcasts to it."""

    def __init__(self, point_7m: Tensor, y_G: Tensor, x_G: Tensor) -> None:
        rows_m11 = point_7m[:, :, None, None].unbind()
        key_x, key_y, self.radius, self.scale, self.angle, self.shift_x, self.shift_y = rows_m11
        self.x, self.y = x_G - key_x, y_G[:, None] - key_y
        self.distance = torch.sqrt(self.x.square() + self.y.square())
        self.effect = torch.exp(self.distance / -self.radius)
        # 0 < effect ≤ 1, so the softmax needs no shift against overflow.
        self.weight = torch.exp(self.effect)
        turn = self.effect * (math.pi * self.angle)
        self.cos, self.sin = torch.cos(turn), torch.sin(turn)
        self.factor = 1 + self.scale * self.effect
        self.turned_x = self.x * self.cos + self.y * self.sin
        self.turned_y = self.y * self.cos - self.x * self.sin

    def move_x(self) -> Tensor:
        return torch.addcmul(self.shift_x * self.effect - self.x, self.factor, self.turned_x)

    def move_y(self) -> Tensor:
        return torch.addcmul(self.shift_y * self.effect - self.y, self.factor, self.turned_y)

    def gradient(self, grad_m2GG: Tensor, average_m2GG: Tensor) -> Tensor:
        """Return 7×m: the gradient of the seven parameters, given that of the average divided by the sum of weights."""
        from_x, from_y = grad_m2GG[:, 0], grad_m2GG[:, 1]
        to_x, to_y = from_x * self.weight, from_y * self.weight
        to_factor = to_x * self.turned_x + to_y * self.turned_y
        to_turn = (to_x * self.turned_y - to_y * self.turned_x) * self.factor
        to_weight = (self.move_x() - average_m2GG[:, 0]) * from_x + (self.move_y() - average_m2GG[:, 1]) * from_y
        to_effect = to_weight * self.weight + to_factor * self.scale + to_turn * (math.pi * self.angle)
        to_effect += to_x * self.shift_x + to_y * self.shift_y
        # d effect / d distance = -effect / radius
        to_distance = to_effect * self.effect / self.radius
        along = to_distance / self.distance.clamp_min(MIN_RADIUS)
        to_key_x = along * self.x + to_x - self.factor * (to_x * self.cos - to_y * self.sin)
        to_key_y = along * self.y + to_y - self.factor * (to_x * self.sin + to_y * self.cos)
        to_radius = to_distance * self.distance / self.radius
        to_similarity = (to_factor, to_turn * math.pi, to_x, to_y)
        rows = (to_key_x, to_key_y, to_radius, *(row * self.effect for row in to_similarity))
        return torch.stack([row.sum((1, 2)) for row in rows])


def _axis(cells: int, like: Tensor) -> Tensor:
    """Return the centres of `cells` equal cells that fill -1 … 1."""
    return (2 * torch.arange(cells, dtype=like.dtype, device=like.device) + 1) / cells - 1


def _resize(field_M2GG: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(field_M2GG, (height, width), mode="bilinear", antialias=True)


@lru_cache(maxsize=16)
def _interpolation(
    cells: int, grid: int, start: int, stop: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, slice]:
    """Return h×g weights that compute the cells start … stop of an axis from grid cells, and which these are."""
    with torch.inference_mode(False):
        identity = torch.eye(grid, dtype=dtype, device=device)[None, None]
        weights_hG = _resize(identity, cells, grid)[0, 0, start:stop]
        used = weights_hG.any(0).nonzero()
        needed = slice(int(used[0]), int(used[-1]) + 1)
        return weights_hG[:, needed].contiguous(), needed


def _parts(values: Tensor, dim: int, cells_per_map: int) -> tuple[Tensor, ...]:
    """Split into a few maps at a time; not for the compiler, whose loop keeps the values of a cell in registers."""
    if torch.compiler.is_compiling():
        return (values,)
    cells = CHUNK_CELLS_CPU if values.device.type == "cpu" else CHUNK_CELLS_GPU
    return values.split(max(1, cells // cells_per_map), dim)
