"""The convolution blocks that all networks share, and checks of configurations and shapes.

Padding keeps the size (stride 1) or halves it, rounding up (stride 2). No block normalises, so a sample does not depend
on its batch; the published networks have BatchNorm tensors, but never use them.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

LEAKY_SLOPE = 0.2


class ConvReLU1d(nn.Conv1d):
    """A convolution over time, then ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, T) to (B, outputs, ceil(T / stride))."""
        return F.relu(super().forward(x))


class ConvReLU2d(nn.Conv2d):
    """A convolution over an image, then ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, ceil(H / stride), ceil(W / stride))."""
        return F.relu(super().forward(x))


class UpConvReLU2d(ConvReLU2d):
    """Doubles the size by repeating pixels, then a convolution and ReLU.

    A 3×3 kernel over repeated pixels covers only 2×2 different ones, so both operations are one transposed convolution
    with stride 2, whose 4×4 kernel sums the weights of equal pixels: less than half the work.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, 2H, 2W)."""
        return F.relu(self.doubled(x))

    def doubled(self, x: Tensor) -> Tensor:
        """Return the same before the ReLU."""
        flipped = F.pad(self.weight.flip(2, 3), (1, 1, 1, 1))
        kernel = F.avg_pool2d(flipped, 2, stride=1, divisor_override=1).transpose(0, 1)
        return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)


class ConvReLUPool2d(ConvReLU2d):
    """A convolution over an image, ReLU, then 2×2 average pooling."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H // 2, W // 2)."""
        return F.avg_pool2d(super().forward(x), 2)


class ConvLeakyReLU2d(nn.Conv2d):
    """A convolution over an image without padding, then leaky ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H - kernel + 1, W - kernel + 1)."""
        return F.leaky_relu(super().forward(x), LEAKY_SLOPE)


class Residual(nn.Module):
    """Computes x + conv(relu(conv(x))) over time (`dims=1`) or an image (`dims=2`).

    With `relu_first`, as in the sync network, the first convolution gets relu(x).
    """

    def __init__(self, channels: int, dims: int = 2, *, relu_first: bool = False) -> None:
        super().__init__()
        conv = nn.Conv1d if dims == 1 else nn.Conv2d
        self.conv1 = conv(channels, channels, 3, padding=1)
        self.conv2 = conv(channels, channels, 3, padding=1)
        self.relu_first = relu_first

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape; dimension 1 of x has `channels` entries."""
        branch = self.conv1(F.relu(x) if self.relu_first else x)
        return cast("Tensor", x + self.conv2(F.relu(branch)))


def init_he(network: nn.Module) -> None:
    """Initialise weights so that the signal keeps its size through ReLU layers (He et al. 2015), and biases to zero.

    PyTorch's default shrinks the signal by about √3 per layer. Without normalisation, almost nothing of the audio would
    reach the end of a network this deep, and training would take long to make use of it.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def check_at_least(config: object, **minima: int) -> None:
    """Raise ValueError naming the first field of `config` that is not a whole number ≥ its minimum."""
    for name, minimum in minima.items():
        value = getattr(config, name)
        if type(value) is not int or value < minimum:
            raise ValueError(f"{type(config).__name__}.{name}: {value!r}, expected a whole number ≥ {minimum}")


def check_shape(name: str, tensor: Tensor, *shape: int | None) -> None:
    """Raise ValueError naming the argument unless its shape is (batch, *shape); None allows any size."""
    sizes = tuple(tensor.shape[1:])
    if len(sizes) != len(shape) or any(want not in (None, got) for want, got in zip(shape, sizes, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: shape {tuple(tensor.shape)}, expected (batch, {wanted})")
