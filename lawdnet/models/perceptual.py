"""VGG19 features for the perceptual loss (Simonyan & Zisserman 2014; slices as in Johnson et al. 2016).

Shape letters: B batch, C channels, H W image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lawdnet.models.layers import check_shape
from lawdnet.storage import Location, local_copy

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
MIN_PX = 16
SLICE_STARTS = (0, 2, 7, 12, 21)
"""Indices in torchvision's `vgg19().features` at which the five slices start; the last ends before index 30."""
_CONVS = {
    0: (3, 64),
    2: (64, 64),
    5: (64, 128),
    7: (128, 128),
    10: (128, 256),
    12: (256, 256),
    14: (256, 256),
    16: (256, 256),
    19: (256, 512),
    21: (512, 512),
    23: (512, 512),
    25: (512, 512),
    28: (512, 512),
}
"""Index in torchvision's `vgg19().features` → channels in and out; a ReLU follows each."""
_POOLS = (4, 9, 18, 27)


class VGG19Features(nn.Module):
    """The first 30 layers of VGG19, frozen, random until a state dict is loaded; names are those of torchvision."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict({str(index): nn.Conv2d(*sizes, 3, padding=1) for index, sizes in _CONVS.items()})
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(IMAGENET_DEVIATION).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    @classmethod
    def from_file(cls, path: Location) -> VGG19Features:
        """Load the weights of torchvision's `vgg19-*.pth` (its classifier is not needed), also from an object store.

        Raises:
            ValueError: the file is missing or holds something else.
        """
        if not path.is_file():
            raise ValueError(f"{path}: no such file; expected torchvision's vgg19-dcbb9e9d.pth")
        network = cls()
        with local_copy(path) as local:
            try:
                state = torch.load(local, map_location="cpu", weights_only=True, mmap=True)
                network.load_state_dict({name: state[name] for name in network.state_dict()})
            except Exception as error:  # a foreign file can provoke any
                reason = str(error).strip().partition("\n")[0]
                raise ValueError(f"{path}: not the weights of torchvision's VGG19 ({reason})") from error
        return network

    def forward(self, image_B3HW: Tensor) -> list[Tensor]:
        """Return relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1 of RGB images in [0, 1], at 1 … 1/16 of the size.

        Gradients reach the image, not the weights.

        Raises:
            ValueError: not three channels, or smaller than 16 px.
        """
        check_shape("image", image_B3HW, 3, None, None)
        if min(image_B3HW.shape[2:]) < MIN_PX:
            raise ValueError(f"image: {image_B3HW.shape[2]}×{image_B3HW.shape[3]} px, expected at least {MIN_PX} px")
        x = (image_B3HW - self.mean) / self.deviation
        features = []
        for index in range(max(_CONVS) + 1):
            if index in SLICE_STARTS[1:]:
                features.append(x)
            if index in _CONVS:
                x = F.relu(self.features[str(index)](x))
            elif index in _POOLS:
                x = F.max_pool2d(x, 2)
        return [*features, x]
