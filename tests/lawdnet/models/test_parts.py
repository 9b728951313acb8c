import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lawdnet.models.layers import ConvReLU2d, UpConvReLU2d
from lawdnet.models.parts import Box, FourierConv, PairwiseConv, Part, conv, conv_relu, up
from lawdnet.models.warp import LocalAffineWarp

BOXES = [Box(0, 13, 0, 9), Box(0, 4, 0, 3), Box(9, 13, 6, 9), Box(4, 9, 3, 4), Box(1, 12, 1, 8), Box(5, 6, 0, 9)]
"""Whole, corners, odd sizes, one px from the border, one row; on maps of 13×9."""


def random_map(channels: int = 4, height: int = 13, width: int = 9) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, channels, height, width, dtype=torch.float64)


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (7, 1), (3, 2)])
def test_a_part_of_a_convolution_is_that_part_of_the_whole(box: Box, kernel: int, stride: int) -> None:
    layer = ConvReLU2d(4, 5, kernel, stride).double()
    image = random_map(height=13 * stride, width=9 * stride)
    whole = layer(image)
    rows, columns = box.slices
    torch.testing.assert_close(conv_relu(Part.whole(image), layer, box).values_BChw, whole[:, :, rows, columns])
    raw = conv(Part.whole(image), layer.weight, layer.bias, box, stride).values_BChw
    assert (raw < 0).any()


@pytest.mark.parametrize("box", [*BOXES, Box(0, 26, 0, 18), Box(21, 26, 13, 18), Box(3, 23, 5, 12)])
def test_a_part_of_a_doubling_is_that_part_of_the_whole(box: Box) -> None:
    layer = UpConvReLU2d(4, 5).double()
    image = random_map()
    rows, columns = box.slices
    made = up(Part.whole(image), layer, box)
    torch.testing.assert_close(made.values_BChw, layer(image)[:, :, rows, columns])
    assert made.size == (26, 18)


def test_parts_of_parts_keep_their_place() -> None:
    """What a layer made for a box is enough for the next layer, and is found where it belongs."""
    first, second = ConvReLU2d(4, 4, 3).double(), ConvReLU2d(4, 4, 5).double()
    image = random_map()
    part = conv_relu(Part.whole(image), first, Box(2, 13, 0, 8))
    made = conv_relu(part, second, Box(4, 13, 0, 6))
    torch.testing.assert_close(made.values_BChw, second(first(image))[:, :, 4:13, 0:6])


@pytest.mark.parametrize("box", [Box(0, 12, 0, 8), Box(0, 4, 2, 8), Box(3, 13, 5, 9)])
def test_four_px_at_once_are_the_same_convolution(box: Box) -> None:
    layer = torch.nn.Conv2d(4, 3, 7, padding=3).double()
    image = random_map()
    rows, columns = box.slices
    torch.testing.assert_close(PairwiseConv(layer)(Part.whole(image), box), layer(image)[:, :, rows, columns])


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (13, 9), (40, 33)])
@pytest.mark.parametrize(("kernel", "side"), [(11, 16), (7, 20), (3, 4)])
def test_fourier_transforms_convolve(size: tuple[int, int], kernel: int, side: int) -> None:
    layer = torch.nn.Conv2d(4, 6, kernel, padding=kernel // 2).double()
    image = random_map(4, *size)
    torch.testing.assert_close(FourierConv(layer, side)(image), layer(image))


@pytest.mark.parametrize("layout", ["correct", "lawdnet2024"])
@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("grid", [5, 24])
def test_a_part_of_a_warp_is_that_part_of_the_whole(layout: str, box: Box, grid: int) -> None:
    warp = LocalAffineWarp(4, 6, 3, grid, layout).double()
    torch.nn.init.normal_(warp.similarity.weight)
    feature, code = random_map(), torch.randn(2, 6, dtype=torch.float64)
    rows, columns = box.slices
    whole = warp(feature, code)
    assert F.mse_loss(whole, feature) > 0.1
    torch.testing.assert_close(warp(feature, code, box), whole[:, :, rows, columns])
