"""The perceptual features: slices, normalisation, freezing, and files that are not VGG19."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lawdnet.models.perceptual import VGG19Features


@pytest.fixture(scope="module")
def network() -> VGG19Features:
    torch.manual_seed(0)
    return VGG19Features()


def torchvision_layers(network: VGG19Features) -> nn.Sequential:
    """`vgg19().features[:30]` as torchvision builds it (configuration E), with the same weights."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512):
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    sequence = nn.Sequential(*layers)
    sequence.load_state_dict(network.features.state_dict())
    return sequence


def test_slices_end_where_torchvisions_layers_do(network: VGG19Features) -> None:
    image = torch.rand(1, 3, 40, 32)
    layers = torchvision_layers(network)
    assert len(layers) == 30
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normal = ((image.movedim(1, -1) - mean) / deviation).movedim(-1, 1)
    for got, end in zip(network(image), (2, 7, 12, 21, 30), strict=True):
        torch.testing.assert_close(got, layers[:end](normal), atol=1e-4, rtol=1e-4)


def test_gradient_reaches_the_image_only(network: VGG19Features) -> None:
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    sum(feature.mean() for feature in network(image)).backward()
    assert image.grad is not None
    assert image.grad.any()
    assert not any(parameter.requires_grad for parameter in network.parameters())


def write(path: Path, state: dict[str, Tensor]) -> Path:
    torch.save(state, path)
    return path


def test_reads_torchvisions_file(network: VGG19Features, tmp_path: Path) -> None:
    state = network.state_dict() | {"classifier.0.weight": torch.zeros(2), "features.30.weight": torch.zeros(2)}
    read = VGG19Features.from_file(write(tmp_path / "vgg19.pth", state))
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in read.state_dict().items())


def test_missing_and_foreign_files_are_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.pth: no such file"):
        VGG19Features.from_file(tmp_path / "absent.pth")
    with pytest.raises(ValueError, match=r"other\.pth: not the weights of torchvision's VGG19"):
        VGG19Features.from_file(write(tmp_path / "other.pth", {"weight": torch.zeros(1)}))


def test_small_or_grey_images_are_refused(network: VGG19Features) -> None:
    with pytest.raises(ValueError, match="at least 16 px"):
        network(torch.rand(1, 3, 8, 16))
    with pytest.raises(ValueError, match="image: shape"):
        network(torch.rand(1, 1, 16, 16))
