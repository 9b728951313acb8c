"""Every network on a device gives what it gives on a CPU: exactly rounded, and in the number formats of training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lawdnet.face.geometry import stage_size
from lawdnet.models.discriminator import Discriminator, DiscriminatorConfig
from lawdnet.models.generator import Generator, GeneratorConfig
from lawdnet.models.perceptual import VGG19Features
from lawdnet.models.syncnet import SyncNet, SyncNetConfig
from lawdnet.models.warp import LocalAffineWarp
from lawdnet.training.precision import Precision, compile_in_place

DIM = 6
HEIGHT, WIDTH = stage_size(64)


def generator() -> tuple[nn.Module, list[Tensor]]:
    network = Generator(GeneratorConfig(audio_dim=DIM, base_channels=8, key_points=3, warp_grid=10))
    nn.init.normal_(network.warp.similarity.weight, std=0.05)  # or nothing would move
    return network, [torch.rand(2, 3, HEIGHT, WIDTH), torch.rand(2, 15, HEIGHT, WIDTH), torch.randn(2, DIM, 5)]


def warp() -> tuple[nn.Module, list[Tensor]]:
    network = LocalAffineWarp(8, 16, 3, 10, "correct")
    nn.init.normal_(network.similarity.weight, std=0.05)
    return network, [torch.rand(2, 8, 26, 20), torch.randn(2, 16)]


def discriminator() -> tuple[nn.Module, list[Tensor]]:
    config = DiscriminatorConfig(in_channels=3, blocks=3, expansion=4, max_channels=8)
    return Discriminator(config), [torch.rand(2, 3, HEIGHT, WIDTH)]


def syncnet() -> tuple[nn.Module, list[Tensor]]:
    config = SyncNetConfig(audio_dim=DIM, base_channels=4, face_px=32, motion=True, head="cosine")
    return SyncNet(config), [torch.rand(2, 15, 32, 32), torch.randn(2, DIM, 9)]


def vgg19() -> tuple[nn.Module, list[Tensor]]:
    return VGG19Features(), [torch.rand(1, 3, 32, 32)]


NETWORKS: dict[str, Callable[[], tuple[nn.Module, list[Tensor]]]] = {
    "generator": generator,
    "warp": warp,
    "discriminator": discriminator,
    "syncnet": syncnet,
    "vgg19": vgg19,
}
# distance of the outputs and of the gradients, as a share of their norm
TOLERANCES = {"fp32": (1e-4, 5e-3), "tf32": (1e-2, 5e-2), "bf16": (3e-2, 0.1), "fp16": (5e-3, 0.05)}


def passed(network: nn.Module, inputs: list[Tensor], precision: Precision) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs of a network on a device, and the gradients at its inputs and parameters, on the CPU."""
    precision.place(network)
    placed = [value.to(precision.device).requires_grad_() for value in inputs]
    with precision.autocast():
        outputs = network(*placed)
    outputs = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
    slopes = [torch.linspace(-1, 1, value.shape[-1], device=value.device) for value in outputs]
    torch.stack([(value.float() * slope).sum() for value, slope in zip(outputs, slopes, strict=True)]).sum().backward()
    parameters = [p.grad for p in network.parameters() if p.grad is not None]
    gradients = [value.grad for value in placed if value.grad is not None] + parameters
    return [value.detach().float().cpu() for value in outputs], [value.float().cpu() for value in gradients]


def distance(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The distance of all together, as a share of their norm."""

    def norm(values: list[Tensor]) -> float:
        return float(torch.stack([value.norm() for value in values]).norm())

    return norm([a - b for a, b in zip(found, wanted, strict=True)]) / norm(wanted)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision", TOLERANCES)
def test_a_network_is_the_same_everywhere(name: str, precision: str, channels_last: bool, device: torch.device) -> None:
    torch.manual_seed(0)
    network, inputs = NETWORKS[name]()
    start = {key: value.clone() for key, value in network.state_dict().items()}
    wanted = passed(network, inputs, Precision("fp32", torch.device("cpu")))
    again, _ = NETWORKS[name]()
    again.load_state_dict(start)
    for parameter in again.parameters():
        parameter.requires_grad_(name != "vgg19")
    found = passed(again, inputs, Precision(precision, device, channels_last=channels_last))
    of_outputs, of_gradients = TOLERANCES[precision]
    assert distance(found[0], wanted[0]) < of_outputs
    assert distance(found[1], wanted[1]) < of_gradients


def test_a_difference_is_seen(device: torch.device) -> None:
    """Else the test above could not fail."""
    torch.manual_seed(0)
    network, inputs = generator()
    wanted = passed(network, inputs, Precision("fp32", device))
    found = passed(generator()[0], inputs, Precision("fp32", device))
    assert distance(found[0], wanted[0]) > TOLERANCES["bf16"][0]


def test_a_compiled_warp_is_the_same(device: torch.device) -> None:
    """With the compiler that training uses; where there is none the test says so."""
    torch.manual_seed(0)
    network, inputs = warp()
    wanted = passed(network, inputs, Precision("fp32", device))
    told: list[str] = []
    network.zero_grad()
    compile_in_place(network, told.append, "inductor" if device.type == "cuda" else "aot_eager")
    found = passed(network, inputs, Precision("fp32", device))
    assert not told, "it ran uncompiled"
    assert distance(found[0], wanted[0]) < 1e-4
    assert distance(found[1], wanted[1]) < 1e-3
