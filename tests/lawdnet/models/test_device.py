"""lawdnet.models.device: choosing where networks run, and images on the way there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lawdnet.models.device import images_to_tensor, pick_device


def test_auto_is_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ValueError, match=r"device: 'cuda:1' cannot be used here; torch finds 1 GPU"):
        pick_device("cuda:1")


def test_images_become_channels_first_in_0_to_1() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    tensor = images_to_tensor(images, torch.device("cpu"))
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.numpy(), images.transpose(0, 3, 1, 2).astype(np.float32) / 255)
