"""Files written for the published code: what they hold, what they say of themselves, and fine-tuning from them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from lawdnet.inference.loading import open_generator
from lawdnet.models.discriminator import Discriminator, DiscriminatorConfig
from lawdnet.models.export import incompatibilities, options, to_legacy
from lawdnet.models.generator import Generator, GeneratorConfig
from lawdnet.models.legacy import (
    discriminator_from_legacy,
    discriminator_to_legacy,
    generator_to_legacy,
    load_legacy_generator,
    read_legacy,
    start_from_legacy,
    syncnet_from_legacy,
)
from lawdnet.models.syncnet import SyncNet, SyncNetConfig
from tests.support.published_goldens import needs_goldens, published_shapes
from tests.support.tiny_checkpoints import checkpoint

TINY = GeneratorConfig(audio_dim=7, base_channels=4, key_points=3, warp_grid=9)
CRITIC = DiscriminatorConfig(in_channels=15, blocks=3, expansion=4, max_channels=16)


def moving(config: GeneratorConfig) -> Generator:
    """A generator whose warp does something, as a new one's does not."""
    torch.manual_seed(1)
    generator = Generator(config)
    torch.nn.init.normal_(generator.warp.similarity.weight)
    return generator.eval()


def inputs() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(2)
    return torch.rand(2, 3, 52, 40), torch.rand(2, 15, 52, 40), torch.randn(2, 7, 5)


@torch.inference_mode()
def same(first: Generator, second: Generator) -> bool:
    return torch.equal(first(*inputs()), second(*inputs()))


def written(folder: Path, out: Path, **options: Any) -> Path:
    torch.save(to_legacy(folder, **options), out)
    return out


@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize(("layout", "normalise"), [("correct", True), ("correct", False), ("lawdnet2024", False)])
def test_a_written_file_comes_back_bit_for_bit(tmp_path: Path, prefix: str, layout: str, normalise: bool) -> None:
    generator = moving(dataclasses.replace(TINY, warp_layout=layout, normalise=normalise))
    folder = checkpoint(tmp_path / "epoch_0012", generator=generator)
    path = written(folder, tmp_path / "netG_model_epoch_12.pth", prefix=prefix)
    back, meta = load_legacy_generator(path)
    assert back.config == generator.config
    assert same(back, generator)
    assert (meta["mouth_px"], meta["crop_width"], meta["audio_feature"]) == (96, 200, "mel")
    opened, known = open_generator(path)
    assert same(opened, generator)
    assert known["features"] == {"mel": {"dim": 7}}
    names = torch.load(path, weights_only=True)["state_dict"]["net_g"]
    assert all(name.startswith(prefix) for name in names)
    assert "source_in_conv.0.conv.weight" in {name[len(prefix) :] for name in names}


def test_the_layouts_are_no_two_names_of_one_thing() -> None:
    state = moving(TINY).state_dict()
    scrambled = Generator(dataclasses.replace(TINY, warp_layout="lawdnet2024")).eval()
    scrambled.load_state_dict(state)
    assert not same(scrambled, moving(TINY))


def test_a_file_holds_what_the_published_code_resumes_from(tmp_path: Path) -> None:
    networks = {"generator": moving(TINY), "clip_discriminator": Discriminator(CRITIC)}
    image = Discriminator(dataclasses.replace(CRITIC, in_channels=3))
    content = to_legacy(checkpoint(tmp_path / "c", **networks, image_discriminator=image))
    assert content["epoch"] == 13, "the published code saves the next epoch"
    assert content["state_dict"].keys() == content["optimizer"].keys() == {"net_g", "net_dI", "net_dV"}
    path = tmp_path / "f.pth"
    torch.save(content, path)
    states = read_legacy(path)
    assert discriminator_from_legacy(states["net_dV"]).config == CRITIC
    assert torch.equal(states["net_dI"]["conv.weight"], image.score.weight)
    parameters = [name for name in states["net_g"] if "running" not in name and "num_batches" not in name]
    assert len(content["optimizer"]["net_g"]["param_groups"][0]["params"]) == len(parameters)


@needs_goldens
def test_full_size_files_have_the_published_names_and_shapes(tmp_path: Path) -> None:
    generator = Generator(GeneratorConfig(warp_layout="lawdnet2024"))
    folder = checkpoint(tmp_path / "c", generator=generator)
    assert incompatibilities(folder) == []
    assert options(folder) == []
    state = to_legacy(folder, prefix="")["state_dict"]["net_g"]
    assert {name: tuple(value.shape) for name, value in state.items()} == published_shapes("generator")


def test_what_the_published_code_cannot_use_is_said(tmp_path: Path) -> None:
    found = incompatibilities(checkpoint(tmp_path / "c", generator=Generator(TINY)))
    assert len(found) == 3
    for text, part in zip(found, ("scrambles it", "7 values of mel", "4 channels"), strict=True):
        assert part in text
    assert options(tmp_path / "c") == ["--num_kpoints 3", "--coarse_grid_size 9"]


def test_sync_networks_are_written_where_the_published_code_has_their_head(tmp_path: Path) -> None:
    merge = SyncNet(SyncNetConfig(audio_dim=7, base_channels=4, face_px=64))
    path = written(checkpoint(tmp_path / "m", "syncnet", syncnet=merge), tmp_path / "s.pth", prefix="")
    back = syncnet_from_legacy(read_legacy(path)["net"])
    assert all(torch.equal(value, merge.state_dict()[name]) for name, value in back.state_dict().items())
    cosine = SyncNet(SyncNetConfig(audio_dim=7, base_channels=4, face_px=64, head="cosine"))
    with pytest.raises(ValueError, match="'cosine' head"):
        to_legacy(checkpoint(tmp_path / "c", "syncnet", syncnet=cosine))


def published_file(path: Path, config: GeneratorConfig, critic: DiscriminatorConfig | None = None) -> Generator:
    """A file as the published code writes it, which says nothing of itself."""
    generator = moving(config)
    states = {"net_g": generator_to_legacy(generator)}
    if critic:
        states["net_dI"] = discriminator_to_legacy(Discriminator(critic))
    torch.save({"epoch": 2, "state_dict": states}, path)
    return generator


def test_a_published_file_is_read_with_the_published_warp(tmp_path: Path) -> None:
    config = GeneratorConfig(audio_dim=7, base_channels=4, warp_layout="lawdnet2024")
    generator = published_file(tmp_path / "old.pth", config)
    back, meta = load_legacy_generator(tmp_path / "old.pth")
    assert same(back, generator)
    assert (meta["mouth_px"], meta["crop_width"], meta["audio_feature"]) == (256, 320, "deepspeech")
    told = open_generator(tmp_path / "old.pth", mouth_px=64, audio_feature="mel")[1]
    assert (told["mouth_px"], told["crop_width"], told["audio_feature"]) == (64, 80, "mel")


def test_fine_tuning_starts_from_an_old_file(tmp_path: Path) -> None:
    config = GeneratorConfig(audio_dim=7, base_channels=4, warp_layout="lawdnet2024")
    critic = dataclasses.replace(CRITIC, in_channels=3)
    theirs = published_file(tmp_path / "old.pth", config, critic)
    networks = {"generator": Generator(config), "image_discriminator": Discriminator(critic)}
    before = networks["image_discriminator"].score.weight.clone()
    assert start_from_legacy(tmp_path / "old.pth", networks) == ["generator", "image_discriminator"]
    assert same(networks["generator"].eval(), theirs)
    assert not torch.equal(networks["image_discriminator"].score.weight, before)
    other = {"generator": Generator(config), "image_discriminator": Discriminator(CRITIC)}
    assert start_from_legacy(tmp_path / "old.pth", other) == ["generator"]


def test_fine_tuning_refuses_another_generator(tmp_path: Path) -> None:
    published_file(tmp_path / "old.pth", GeneratorConfig(audio_dim=7, base_channels=4, warp_layout="lawdnet2024"))
    ours = {"generator": Generator(GeneratorConfig(audio_dim=320, base_channels=4))}
    with pytest.raises(
        ValueError, match=r"old\.pth.*audio_dim 7 \(this run 320\), warp_layout lawdnet2024 \(this run correct"
    ):
        start_from_legacy(tmp_path / "old.pth", ours)


def test_a_file_without_a_generator_says_what_it_holds(tmp_path: Path) -> None:
    torch.save({"state_dict": {"net": {"a": torch.zeros(1)}}}, tmp_path / "sync.pth")
    with pytest.raises(ValueError, match="holds net but no generator"):
        load_legacy_generator(tmp_path / "sync.pth")
