"""Old files: read without executing them, mapped to clean networks, written back as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lawdnet.models.discriminator import Discriminator, DiscriminatorConfig
from lawdnet.models.generator import Generator, GeneratorConfig
from lawdnet.models.legacy import (
    dead_tensors,
    discriminator_from_legacy,
    discriminator_to_legacy,
    generator_from_legacy,
    generator_to_legacy,
    read_legacy,
    syncnet_from_legacy,
    syncnet_to_legacy,
)
from lawdnet.models.syncnet import SyncNet, SyncNetConfig
from tests.support.published_goldens import needs_goldens, published_shapes, published_state

TINY = GeneratorConfig(audio_dim=7, base_channels=4, key_points=3, warp_layout="lawdnet2024")


def shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


@needs_goldens
def test_written_states_have_the_published_names_and_shapes() -> None:
    assert shapes(generator_to_legacy(Generator())) == published_shapes("generator")
    assert shapes(discriminator_to_legacy(Discriminator())) == published_shapes("discriminator")
    assert shapes(syncnet_to_legacy(SyncNet())) == published_shapes("syncnet")


@needs_goldens
def test_published_generator_comes_back_bit_for_bit() -> None:
    state = published_state("generator")
    back = generator_to_legacy(generator_from_legacy(state), dead_tensors(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_small_networks_round_trip_with_their_sizes() -> None:
    generator = Generator(TINY)
    back = generator_from_legacy(generator_to_legacy(generator))
    assert back.config == TINY
    clip = Discriminator(DiscriminatorConfig(in_channels=15, blocks=3, expansion=4, max_channels=16))
    assert discriminator_from_legacy(discriminator_to_legacy(clip)).config == clip.config
    syncnet = SyncNet(SyncNetConfig(audio_dim=7, base_channels=4, face_px=64))
    assert syncnet_from_legacy(syncnet_to_legacy(syncnet)).config == syncnet.config
    for name, value in generator.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name


def test_generator_has_no_dead_parameters() -> None:
    state = generator_to_legacy(Generator(TINY))
    alive = sum(value.numel() for name, value in state.items() if name not in dead_tensors(state))
    assert sum(parameter.numel() for parameter in Generator(TINY).parameters()) == alive


def test_reads_files_from_several_gpus(tmp_path: Path) -> None:
    state = generator_to_legacy(Generator(TINY))
    path = tmp_path / "netG_model_epoch_3.pth"
    content = {
        "epoch": 3,
        "state_dict": {"net_g": {f"module.{name}": value for name, value in state.items()}, "net_dI": {}},
        "optimizer": {"net_g": {"state": {}, "param_groups": []}},
    }
    torch.save(content, path)
    networks = read_legacy(path)
    assert networks.keys() == {"net_g", "net_dI"}
    assert networks["net_g"].keys() == state.keys()


class Mischief:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("mischief"),)


def test_refuses_to_execute_a_file(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": {"net_g": Mischief()}}, path)
    with pytest.raises(ValueError, match="plain containers"):
        read_legacy(path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_foreign_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"foreign\.pth: not a checkpoint"):
        read_legacy(path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"state_dict": {}}, {"state_dict": {"weight": torch.zeros(1)}}])
def test_other_checkpoints_are_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match="not a LawDNet 2024 checkpoint"):
        read_legacy(path)


def test_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_legacy(tmp_path / "absent.pth")


def test_wrong_states_name_the_tensor() -> None:
    state = generator_to_legacy(Generator(TINY))
    short = {name: value for name, value in state.items() if name != "out_conv.4.bias"}
    with pytest.raises(ValueError, match=r"out_conv\.4\.bias: missing"):
        generator_from_legacy(short)
    with pytest.raises(ValueError, match="extra: unknown"):
        generator_from_legacy(state | {"extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"out_conv\.4\.bias: shape \(4,\), expected \(3,\)"):
        generator_from_legacy(state | {"out_conv.4.bias": torch.zeros(4)})
    with pytest.raises(ValueError, match="missing"):
        generator_from_legacy({})
    with pytest.raises(ValueError, match="not a discriminator"):
        discriminator_from_legacy({})
