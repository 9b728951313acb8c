"""Convolutions on a part of a map, equal to the same part of the whole result.

Padding belongs to the border of the whole map: where a part ends inside the map, its neighbours are read instead. So a
part of a result needs a somewhat larger part of the input; the `before_…` functions say which.

Shape letters: B batch, C channels, H W the whole map, h w a part of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lawdnet.models.layers import UpConvReLU2d


@dataclass(frozen=True)
class Box:
    """Rows top … bottom - 1 and columns left … right - 1 of a map."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns, to index an array with."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def area(self) -> int:
        """Number of cells; 0 if the box is empty."""
        return max(0, self.bottom - self.top) * max(0, self.right - self.left)

    def within(self, outer: Box) -> Box:
        """Return what lies in another box too."""
        top, left = max(self.top, outer.top), max(self.left, outer.left)
        return Box(top, min(self.bottom, outer.bottom), left, min(self.right, outer.right))

    def relative_to(self, outer: Box) -> Box:
        """Return the same box, counted from the first row and column of another."""
        top, left = outer.top, outer.left
        return Box(self.top - top, self.bottom - top, self.left - left, self.right - left)

    def times(self, factor: int) -> Box:
        """Return the same box on a map that is larger by a whole factor."""
        return Box(self.top * factor, self.bottom * factor, self.left * factor, self.right * factor)

    def cells_of(self, size: int) -> Box:
        """Return the cells of size × size px that the box touches."""
        return Box(self.top // size, -(-self.bottom // size), self.left // size, -(-self.right // size))


@dataclass(frozen=True)
class Part:
    """A part of a map that is H×W as a whole."""

    values_BChw: Tensor
    box: Box
    size: tuple[int, int]

    @classmethod
    def whole(cls, map_BCHW: Tensor) -> Part:
        """Return a whole map as its own part."""
        height, width = map_BCHW.shape[2:]
        return cls(map_BCHW, Box(0, height, 0, width), (height, width))

    def at(self, box: Box) -> Tensor:
        """Return the values of a smaller box."""
        rows, columns = box.relative_to(self.box).slices
        return self.values_BChw[:, :, rows, columns]

    def padded(self, box: Box) -> Tensor:
        """Return the values of a box that may reach beyond the map, where they are 0."""
        inside = box.within(Box(0, self.size[0], 0, self.size[1]))
        values = self.at(inside)
        beyond = (inside.left - box.left, box.right - inside.right, inside.top - box.top, box.bottom - inside.bottom)
        return F.pad(values, beyond) if any(beyond) else values


def before_conv(box: Box, kernel: int, stride: int = 1) -> Box:
    """Return what a convolution with padding kernel // 2 reads for a box; it may reach beyond the map."""
    pad = kernel // 2
    top, left = box.top * stride - pad, box.left * stride - pad
    return Box(top, (box.bottom - 1) * stride + kernel - pad, left, (box.right - 1) * stride + kernel - pad)


def before_up(box: Box) -> Box:
    """Return what `up` reads for a part of its result; it may reach beyond the map."""
    cells = box.cells_of(2)
    return Box(cells.top - 1, cells.bottom + 1, cells.left - 1, cells.right + 1)


def conv(part: Part, weight: Tensor, bias: Tensor | None, box: Box, stride: int = 1) -> Part:
    """Convolve with padding kernel // 2; the box is that of the result."""
    size = -(-part.size[0] // stride), -(-part.size[1] // stride)
    values = part.padded(before_conv(box, weight.shape[-1], stride))
    return Part(F.conv2d(values, weight, bias, stride), box, size)


def conv_relu(part: Part, layer: nn.Conv2d, box: Box) -> Part:
    """Apply a convolution and ReLU."""
    made = conv(part, layer.weight, layer.bias, box, layer.stride[0])
    return Part(made.values_BChw.relu_(), made.box, made.size)


def up(part: Part, layer: UpConvReLU2d, box: Box) -> Part:
    """Apply a doubling layer; the box is that of the result."""
    read = before_up(box)
    values = layer.doubled(part.padded(read)).relu_()
    size = 2 * part.size[0], 2 * part.size[1]
    return Part(Part(values, read.times(2), size).at(box), box, size)


class PairwiseConv(nn.Module):
    """The same convolution (odd kernel, stride 1), computing 2×2 px at once: fast for few output channels.

    A kernel one px wider, with stride 2, holds the weights four times, each shifted to the px that it is for.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        assert layer.stride == (1, 1)
        outputs, inputs, kernel, _ = layer.weight.shape
        self.kernel = kernel
        weight = layer.weight.new_zeros(outputs, 2, 2, inputs, kernel + 1, kernel + 1)
        for y in range(2):
            for x in range(2):
                weight[:, y, x, :, y : y + kernel, x : x + kernel] = layer.weight.detach()
        self.register_buffer("weight", weight.flatten(0, 2).contiguous(memory_format=torch.channels_last))
        bias = layer.weight.new_zeros(outputs) if layer.bias is None else layer.bias.detach()
        self.register_buffer("bias", bias.repeat_interleave(4))

    def forward(self, part: Part, box: Box) -> Tensor:
        """Return the result in a box of even height and width."""
        values = part.padded(before_conv(box, self.kernel))
        return F.pixel_shuffle(F.conv2d(values, self.weight, self.bias, stride=2), 2)


class FourierConv(nn.Module):
    """The same convolution (padding kernel // 2, stride 1) by Fourier transforms of square tiles that overlap.

    For a wide kernel this is far fewer operations; it is exact but for rounding.

    Args:
        layer: the convolution.
        side: of a tile, in cells; larger than the kernel.
    """

    spectrum_FIO: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Conv2d, side: int) -> None:
        super().__init__()
        self.kernel, self.side = layer.kernel_size[0], side
        spectrum_OIff = torch.fft.rfft2(layer.weight.detach(), (side, side)).conj()  # convolution layers correlate
        self.register_buffer(
            "spectrum_FIO", spectrum_OIff.permute(2, 3, 1, 0).flatten(0, 1).resolve_conj().contiguous()
        )
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach()[:, None, None])

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """Return B×O×H×W."""
        batch, channels, height, width = map_BCHW.shape
        step, pad = self.side - self.kernel + 1, self.kernel // 2
        rows, columns = -(-height // step), -(-width // step)
        after = [count * step + self.kernel - 1 - pad - size for count, size in ((columns, width), (rows, height))]
        padded = F.pad(map_BCHW, (pad, after[0], pad, after[1]))
        tiles = padded.unfold(2, self.side, step).unfold(3, self.side, step)
        spectrum_BCrcff = torch.fft.rfft2(tiles)
        frequencies = spectrum_BCrcff.shape[-2:]
        spectrum_FTC = spectrum_BCrcff.permute(4, 5, 0, 2, 3, 1).reshape(frequencies.numel(), -1, channels)
        product = torch.bmm(spectrum_FTC, self.spectrum_FIO).view(*frequencies, batch, rows, columns, -1)
        made = torch.fft.irfft2(product.permute(2, 5, 3, 4, 0, 1), (self.side, self.side))[..., :step, :step]
        made = made.transpose(3, 4).reshape(batch, -1, rows * step, columns * step)[:, :, :height, :width]
        return made if self.bias is None else made + self.bias
