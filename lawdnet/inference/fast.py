"""The generator for inference: what depends on less than a frame is computed once, and only what is pasted is decoded.

The result is that of `Generator.forward`, but for rounding. Where its multiply-adds are (mouth 256), and what is left:

    references, appearance    29 %    once per template
    pair encoder              39 %    once per frame of the template; wide kernels by Fourier transforms (on a CPU)
    source encoder             6 %    only where the frame is not hidden
    decoder                   26 %    only what is pasted, and what that reads
    warp                              only cells that the pasted part reads

`benchmarks/inference.py` counts and times them.

Shape letters: B batch, C channels, H W crop, h w a part of it, or of a feature map (a quarter of the crop).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lawdnet.models.attention import IMAGE_FEATURE_SIZE
from lawdnet.models.generator import SHRINK, Generator
from lawdnet.models.layers import Residual
from lawdnet.models.parts import Box, FourierConv, PairwiseConv, Part, before_conv, before_up, conv, conv_relu, up

FOURIER_SIDES = (16, 20, 24, 32, 40)
"""Sides of tiles to choose from: products of small primes."""
FOURIER_GAIN = 6
"""A Fourier convolution is faster where its tiles have this many times fewer cells than the direct one has products
per channel (measured)."""


@dataclass(frozen=True, kw_only=True)
class References:
    """What depends on five references alone."""

    appearance_1Chw: Tensor
    pair_1Chw: Tensor
    """Their share of the pair encoder's first convolution, with its bias."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What depends on frames and references, but not on the audio."""

    image_BC86: Tensor
    """The image features that the audio is attended with: most of the work, in few numbers."""
    decoder_BChw: Tensor
    """The frames' share of the decoder's first convolution, with its bias, where it is needed."""


class MouthGenerator:
    """Runs a generator for a part of its output.

    Args:
        generator: in evaluation mode; its weights must not change afterwards.
        size: of the crop, H and W.
        box: the part that is wanted, in px; `box` says how far it was grown, to whole feature cells.
        hidden: where every masked source is 0.
    """

    def __init__(self, generator: Generator, size: tuple[int, int], box: Box, hidden: Box) -> None:
        self.generator = generator
        self.size = size
        self.box = box.cells_of(SHRINK).times(SHRINK).within(Box(0, size[0], 0, size[1]))
        self._boxes = _decoder_boxes(self.box, size)
        self._hidden_cells = _hidden_cells(hidden)
        # nn.Sequential forgets the types of its layers
        self._source_layers: list[Any] = list(generator.source_encoder)
        self._decoder_layers: list[Any] = list(generator.decoder)
        pair_layers: list[Any] = list(generator.pair_encoder)
        pair, first = pair_layers[0], self._decoder_layers[0]
        self._pair_bias = pair.bias
        self._pair_source, self._pair_reference = (half.contiguous() for half in pair.weight.detach().chunk(2, 1))
        self._decoder_source, self._decoder_warped = (half.contiguous() for half in first.weight.detach().chunk(2, 1))
        self._to_image = PairwiseConv(self._decoder_layers[4])
        self._pair_rest = pair_layers[1:]
        if pair.weight.device.type == "cpu":
            self._pair_rest = list(_with_fourier(self._pair_rest, (size[0] // SHRINK, size[1] // SHRINK)))
        with torch.inference_mode():
            black_13HW = pair.weight.new_zeros(1, 3, *size)
            self._blank_C11 = self._encode(Part.whole(black_13HW), _middle(size)).values_BChw[0]

    @torch.inference_mode()
    def references(self, reference_15HW: Tensor) -> References:
        """Compute what depends on the references, five crops stacked by channel, in [0, 1]."""
        feature_1Chw = self.generator.reference_encoder(_channels_last(reference_15HW[None]))
        return References(
            appearance_1Chw=self.generator.appearance(feature_1Chw),
            pair_1Chw=F.conv2d(feature_1Chw, self._pair_reference, self._pair_bias, padding=1),
        )

    @torch.inference_mode()
    def sources(self, masked_source_B3HW: Tensor, references: References, image_BC86: Tensor | None = None) -> Sources:
        """Compute what depends on the frames.

        Args:
            masked_source_B3HW: as `Generator.forward` takes it.
            references: of the same person.
            image_BC86: the image features of the same frames and references, where they are known.
        """
        image = Part.whole(_channels_last(masked_source_B3HW))
        wanted, needed = self._boxes[:2]
        if image_BC86 is None:
            features = self._source_features(image, Box(0, self.size[0] // SHRINK, 0, self.size[1] // SHRINK))
            image_BC86 = self._image_features(features, references)
        else:
            features = self._source_features(image, needed)
        decoder = conv(features, self._decoder_source, self._decoder_layers[0].bias, wanted)
        return Sources(image_BC86=image_BC86, decoder_BChw=decoder.values_BChw)

    @torch.inference_mode()
    def mouths(self, references: References, sources: Sources, audio_BC5: Tensor) -> Tensor:
        """Return the part `box` of the completed faces, B×3×h×w in (0, 1)."""
        generator = self.generator
        first, needed, doubled, middle, residual, large = self._boxes
        code_BD = generator.code(sources.image_BC86, audio_BC5)
        appearance_BChw = references.appearance_1Chw.expand(len(audio_BC5), -1, -1, -1)
        warped_BChw = _channels_last(generator.warp(appearance_BChw, code_BD, needed))
        size = self.size[0] // SHRINK, self.size[1] // SHRINK
        decoded = conv(Part(warped_BChw, needed, size), self._decoder_warped, None, first)
        part = Part(decoded.values_BChw.add_(sources.decoder_BChw).relu_(), first, size)
        part = up(part, self._decoder_layers[1], doubled)
        part = _residual(part, self._decoder_layers[2], middle, residual)
        part = up(part, self._decoder_layers[3], large)
        return cast("Tensor", self._to_image(part, self.box)).sigmoid()

    def _image_features(self, features: Part, references: References) -> Tensor:
        x_BChw = F.conv2d(features.values_BChw, self._pair_source, padding=1).add_(references.pair_1Chw).relu_()
        x_BChw = x_BChw.contiguous()
        for layer in self._pair_rest:
            x_BChw = layer(x_BChw)
        return F.interpolate(x_BChw, IMAGE_FEATURE_SIZE, mode="bilinear", align_corners=True)

    def _source_features(self, image: Part, box: Box) -> Part:
        """Encode frames; hidden cells are all alike, so only those around them are computed."""
        strips = list(_around(box, self._hidden_cells.within(box)))
        if sum(_encoder_reads(strip).area for strip in strips) >= _encoder_reads(box).area:
            return self._encode(image, box)
        shape = len(image.values_BChw), -1, box.bottom - box.top, box.right - box.left
        values_BChw = _channels_last(self._blank_C11.expand(*shape)).clone()
        for strip in strips:
            rows, columns = strip.relative_to(box).slices
            values_BChw[:, :, rows, columns] = self._encode(image, strip).values_BChw
        return Part(values_BChw, box, (image.size[0] // SHRINK, image.size[1] // SHRINK))

    def _encode(self, image: Part, box: Box) -> Part:
        layers = self._source_layers
        half = before_conv(box, 3, 2).within(Box(0, image.size[0] // 2, 0, image.size[1] // 2))
        full = before_conv(half, 3, 2).within(Box(0, image.size[0], 0, image.size[1]))
        return conv_relu(conv_relu(conv_relu(image, layers[0], full), layers[1], half), layers[2], box)


def _decoder_boxes(box: Box, size: tuple[int, int]) -> tuple[Box, Box, Box, Box, Box, Box]:
    """Return what each step of the decoder must compute for a box of the image.

    They are: the first convolution's result, what it reads, and the results of the first doubling, of the residual
    block's first convolution, of that block, and of the second doubling.
    """

    def on_map(part: Box, shrink: int) -> Box:
        return part.within(Box(0, size[0] // shrink, 0, size[1] // shrink))

    large = on_map(before_conv(box, 7), 1)
    residual = on_map(before_up(large), 2)
    middle = on_map(before_conv(residual, 3), 2)
    doubled = on_map(before_conv(middle, 3), 2)
    first = on_map(before_up(doubled), SHRINK)
    return first, on_map(before_conv(first, 3), SHRINK), doubled, middle, residual, large


def _residual(part: Part, block: Residual, middle: Box, box: Box) -> Part:
    inner = conv_relu(part, block.conv1, middle)  # type: ignore[arg-type]
    outer = conv(inner, block.conv2.weight, block.conv2.bias, box)
    return Part(outer.values_BChw.add_(part.at(box)), box, part.size)


def _hidden_cells(hidden: Box) -> Box:
    """Return the feature cells of the source encoder that read nothing but hidden px."""
    reach = _encoder_reads(Box(0, 1, 0, 1))
    top, left = -(-(hidden.top - reach.top) // SHRINK), -(-(hidden.left - reach.left) // SHRINK)
    return Box(top, (hidden.bottom - reach.bottom) // SHRINK + 1, left, (hidden.right - reach.right) // SHRINK + 1)


def _encoder_reads(box: Box) -> Box:
    return before_conv(before_conv(before_conv(box, 3, 2), 3, 2), 7)


def _around(box: Box, hole: Box) -> Iterator[Box]:
    """Yield boxes that cover a box but for a hole in it."""
    if not hole.area:
        yield box
        return
    strips = (
        Box(box.top, hole.top, box.left, box.right),
        Box(hole.bottom, box.bottom, box.left, box.right),
        Box(hole.top, hole.bottom, box.left, hole.left),
        Box(hole.top, hole.bottom, hole.right, box.right),
    )
    yield from (strip for strip in strips if strip.area)


def _middle(size: tuple[int, int]) -> Box:
    """Return one feature cell in the middle of a crop."""
    row, column = size[0] // SHRINK // 2, size[1] // SHRINK // 2
    return Box(row, row + 1, column, column + 1)


def _with_fourier(layers: list[nn.Module], size: tuple[int, int]) -> Iterator[nn.Module]:
    """Yield the layers with those replaced that Fourier transforms speed up on maps of this size."""
    for layer in layers:
        assert isinstance(layer, nn.Conv2d)
        side = _fourier_side(layer.kernel_size[0], size) if layer.stride == (1, 1) else None
        yield layer if side is None else nn.Sequential(FourierConv(layer, side), nn.ReLU(inplace=True))
        size = -(-size[0] // layer.stride[0]), -(-size[1] // layer.stride[1])


def _fourier_side(kernel: int, size: tuple[int, int]) -> int | None:
    """Return the side of tiles with the least work; None if a direct convolution is faster."""

    def cells(side: int) -> int:
        step = side - kernel + 1
        return (-(-size[0] // step) * -(-size[1] // step) + 2) * side**2  # 2: the weights must be read too

    best = min((side for side in FOURIER_SIDES if side > kernel), key=cells)
    return best if kernel**2 * size[0] * size[1] > FOURIER_GAIN * cells(best) else None


def _channels_last(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.contiguous(memory_format=torch.channels_last)
