"""Where networks run, and how images get there.

torch is imported on use: builds with features such as mel import this file and never need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lawdnet.types import UInt8


def pick_device(name: str) -> torch.device:
    """Return the device to run on; `auto` is the first GPU where there is one (Ray shows each actor only its own).

    Args:
        name: auto, or a device of torch such as cpu, cuda or cuda:1.

    Raises:
        ValueError: torch knows no such device, or finds no such GPU.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: {name!r} cannot be used here; expected auto, cpu or cuda") from None
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"device: {name!r} cannot be used here; torch finds {count or 'no'} GPU")
    return device


def images_to_tensor(images_NHW3: UInt8, device: torch.device) -> Tensor:
    """Return uint8 images as an N×3×H×W float32 tensor in [0, 1] on the device."""
    import torch

    return torch.from_numpy(images_NHW3).to(device).permute(0, 3, 1, 2).float() / 255
