"""Shapes, gradients, configurations and clear errors of the generator, discriminator and sync network."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from lawdnet.models.discriminator import Discriminator, DiscriminatorConfig
from lawdnet.models.generator import Generator, GeneratorConfig
from lawdnet.models.layers import UpConvReLU2d
from lawdnet.models.syncnet import SyncNet, SyncNetConfig

TINY = GeneratorConfig(audio_dim=7, base_channels=4)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def generator_inputs(mouth: int, batch: int = 2, audio_dim: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    height, width = 13 * mouth // 8, 5 * mouth // 4
    return (
        torch.rand(batch, 3, height, width),
        torch.rand(batch, 15, height, width),
        torch.randn(batch, audio_dim, 5),
    )


def train_two_steps(network: nn.Module, *inputs: Tensor) -> None:
    """Leaves the gradients of the second step: in the first the warp's zero head hides what is before it."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(2):
        optimiser.zero_grad()
        (network(*inputs) - 0.3).square().mean().backward()
        optimiser.step()


def assert_all_learn(network: nn.Module) -> None:
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("mouth", [32, 64, 96])
def test_generator_keeps_the_size_and_stays_in_range(mouth: int) -> None:
    inputs = generator_inputs(mouth, batch=1)
    drawn = Generator(TINY)(*inputs)
    assert drawn.shape == inputs[0].shape
    assert drawn.min() >= 0
    assert drawn.max() <= 1


def test_every_parameter_of_every_network_learns() -> None:
    generator = Generator(GeneratorConfig(audio_dim=7, base_channels=8))
    train_two_steps(generator, *generator_inputs(32))
    assert_all_learn(generator)
    discriminator = Discriminator(DiscriminatorConfig(blocks=3, expansion=4))
    train_two_steps(discriminator, torch.rand(2, 3, 52, 40))
    assert_all_learn(discriminator)
    syncnet = SyncNet(SyncNetConfig(audio_dim=7, base_channels=8, face_px=64))
    train_two_steps(syncnet, torch.rand(2, 15, 64, 64), torch.randn(2, 7, 9))
    assert_all_learn(syncnet)


def test_new_networks_hear() -> None:
    """With PyTorch's own start the code would differ by 1e-3 of its size between two sounds."""
    source, reference, audio = generator_inputs(32)
    codes: list[Tensor] = []
    generator = Generator(TINY)
    generator.attention.register_forward_hook(lambda _module, _inputs, code: codes.append(code))
    generator(source[:1].expand_as(source), reference[:1].expand_as(reference), audio)
    assert codes[0].std(0).mean() > 0.05 * codes[0].abs().mean()


def test_sample_does_not_depend_on_its_batch() -> None:
    generator, inputs = Generator(TINY), generator_inputs(32)
    together = generator(*inputs)
    alone = generator(*(value[1:] for value in inputs))
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=0)


def test_doubling_is_repeating_pixels_and_a_convolution() -> None:
    layer = UpConvReLU2d(5, 4).double()
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64, requires_grad=True)
    repeated = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
    direct = nn.functional.conv2d(repeated, layer.weight, layer.bias, padding=1).relu()
    made = layer(x)
    torch.testing.assert_close(made, direct)
    upstream, wanted = torch.randn_like(made), (x, layer.weight, layer.bias)
    grads = (torch.autograd.grad(out, wanted, upstream) for out in (made, direct))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_generator_under_autocast_and_channels_last_agrees() -> None:
    generator, inputs = Generator(TINY), generator_inputs(32)
    expected = generator(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        half = generator(*inputs)
    torch.testing.assert_close(half.float(), expected, atol=0.1, rtol=0)
    last = generator.to(memory_format=torch.channels_last)(
        *(value.to(memory_format=torch.channels_last) for value in inputs[:2]), inputs[2]
    )
    torch.testing.assert_close(last, expected, atol=1e-4, rtol=0)


def test_discriminator_says_its_smallest_image() -> None:
    for blocks, smallest in ((1, 4), (2, 11), (3, 25), (4, 53)):
        config = DiscriminatorConfig(blocks=blocks, expansion=2)
        assert config.min_px == smallest
        network = Discriminator(config)
        assert network(torch.rand(1, 3, smallest, smallest)).shape == (1, 1, 1, 1)
        with pytest.raises(ValueError, match=f"need {smallest} px"):
            network(torch.rand(1, 3, smallest, smallest - 1))


def test_clip_discriminator_takes_five_frames() -> None:
    network = Discriminator(DiscriminatorConfig(in_channels=15, expansion=2))
    assert network(torch.rand(1, 15, 104, 80)).shape == (1, 1, 7, 4)


@pytest.mark.parametrize(("face_px", "score_px"), [(32, 8), (64, 8), (96, 6), (128, 8), (256, 8)])
def test_syncnet_ends_at_about_8x8(face_px: int, score_px: int) -> None:
    network = SyncNet(SyncNetConfig(audio_dim=3, base_channels=2, face_px=face_px))
    assert network(torch.rand(1, 15, face_px, face_px), torch.rand(1, 3, 9)).shape == (1, 1, score_px, score_px)


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (GeneratorConfig, "audio_dim", 0),
        (GeneratorConfig, "base_channels", 2.5),
        (GeneratorConfig, "warp_grid", 1),
        (GeneratorConfig, "warp_layout", "scrambled"),
        (DiscriminatorConfig, "blocks", 0),
        (DiscriminatorConfig, "expansion", True),
        (SyncNetConfig, "face_px", 16),
    ],
)
def test_configurations_name_the_wrong_field(config: type, field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{config.__name__}.{field}: "):
        config(**{field: value})


def test_a_normalised_generator_neither_loses_its_images_nor_saturates_its_warp() -> None:
    """However small the images' feature has become, and however large the code."""
    torch.manual_seed(0)
    generator = Generator(dataclasses.replace(TINY, normalise=True))
    with torch.no_grad():
        generator.pair_encoder[-1].weight.mul_(1e-3)
        generator.attention.code.weight.mul_(1e3)
    image_BC86, audio = 1e-3 * torch.rand(4, 2 * TINY.base_channels, 8, 6), torch.randn(4, TINY.audio_dim, 5)
    code_BD = generator.code(image_BC86, audio)
    torch.testing.assert_close(code_BD.mean(1), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(code_BD.std(1, correction=0), torch.ones(4), atol=1e-3, rtol=0)
    assert (code_BD - generator.code(image_BC86.flip(0), audio)).abs().max() > 0.1
    published = Generator(TINY)
    published.load_state_dict(generator.state_dict())  # it has no weights of its own
    assert published.code(image_BC86, audio).max() > 100


@pytest.mark.parametrize("argument", ["masked_source", "reference", "audio"])
def test_generator_names_the_wrong_argument(argument: str) -> None:
    names = ("masked_source", "reference", "audio")
    inputs = dict(zip(names, generator_inputs(32), strict=True))
    inputs[argument] = inputs[argument][..., :-2]
    with pytest.raises(ValueError, match=f"^{argument}: "):
        Generator(TINY)(*inputs.values())


def test_syncnet_names_the_wrong_argument() -> None:
    network = SyncNet(SyncNetConfig(audio_dim=3, base_channels=2, face_px=64))
    with pytest.raises(ValueError, match=r"faces: .*expected \(batch, 15, 64, 64\)"):
        network(torch.rand(1, 15, 128, 128), torch.rand(1, 3, 9))
    with pytest.raises(ValueError, match=r"audio: .*expected \(batch, 3, 9\)"):
        network(torch.rand(1, 15, 64, 64), torch.rand(1, 3, 5))
