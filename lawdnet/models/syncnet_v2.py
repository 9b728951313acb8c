"""SyncNet v2 (Chung & Zisserman, "Out of time", 2016): the network that the metrics LSE-C and LSE-D are based on.

Module names are those of the published file `syncnet_v2.model`, so that it loads unchanged.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from lawdnet.models.layers import check_shape


class SyncNetV2(nn.Module):
    """Embeds a mouth and audio in 1024 values each, which are near each other if the two are in sync."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_conv2d(1, 64, 3, padding=1),
            nn.MaxPool2d(1),
            *_conv2d(64, 192, 3, padding=1),
            nn.MaxPool2d(3, (1, 2)),
            *_conv2d(192, 384, 3, padding=1),
            *_conv2d(384, 256, 3, padding=1),
            *_conv2d(256, 256, 3, padding=1),
            nn.MaxPool2d(3, 2),
            *_conv2d(256, 512, (5, 4), padding=0),
        )
        self.netfcaud = _head()
        self.netfclip = _head()
        self.netcnnlip = nn.Sequential(
            *_conv3d(3, 96, (5, 7, 7), stride=2, padding=0),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_conv3d(96, 256, (1, 5, 5), stride=2, padding=1),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            *_conv3d(256, 256, (1, 3, 3), stride=1, padding=1),
            *_conv3d(256, 256, (1, 3, 3), stride=1, padding=1),
            *_conv3d(256, 256, (1, 3, 3), stride=1, padding=1),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_conv3d(256, 512, (1, 6, 6), stride=1, padding=0),
        )

    def embed_lip(self, faces: Tensor) -> Tensor:
        """Return B×1024 for B×3×5×224×224 faces in 0 … 255 at 25 Hz, **BGR** as read by its authors' OpenCV."""
        check_shape("faces", faces, 3, 5, 224, 224)
        return cast("Tensor", self.netfclip(self.netcnnlip(faces).flatten(1)))

    def embed_audio(self, mfcc: Tensor) -> Tensor:
        """Return B×1024 for B×1×13×20: 13 MFCC of 20 windows at 100 Hz, the 0.2 s of five frames."""
        check_shape("mfcc", mfcc, 1, 13, 20)
        return cast("Tensor", self.netfcaud(self.netcnnaud(mfcc).flatten(1)))

    @classmethod
    def from_file(cls, path: Path) -> SyncNetV2:
        """Load the weights of `syncnet_v2.model`; the network is in eval mode.

        Raises:
            ValueError: the file is missing or holds something else.
        """
        if not path.is_file():
            raise ValueError(f"{path}: no such file; expected the published syncnet_v2.model")
        network = cls()
        try:
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # a foreign file can provoke any
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"{path}: not the weights of syncnet_v2.model ({reason})") from error
        return network.eval()


def _conv2d(inputs: int, outputs: int, kernel: int | tuple[int, int], padding: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, kernel, padding=padding), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


def _conv3d(
    inputs: int, outputs: int, kernel: tuple[int, int, int], stride: int, padding: int
) -> tuple[nn.Module, ...]:
    """Return a block whose stride and padding apply within a frame, not over time."""
    conv = nn.Conv3d(inputs, outputs, kernel, (1, stride, stride), (0, padding, padding))
    return conv, nn.BatchNorm3d(outputs), nn.ReLU(inplace=True)


def _head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024))
