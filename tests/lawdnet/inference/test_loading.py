"""What an engine accepts as a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lawdnet.audio import make_extractor
from lawdnet.inference import loading
from lawdnet.inference.engine import Engine
from lawdnet.models.generator import Generator, GeneratorConfig
from lawdnet.models.legacy import generator_to_legacy
from tests.support.listening import MOUTH_PX, save_listening


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("run")
    save_listening(root / "frame_64" / "epoch_0001")
    return root


@pytest.mark.parametrize("part", ["", "frame_64", "frame_64/epoch_0001"])
def test_a_checkpoint_is_a_run_a_stage_or_an_epoch(run: Path, part: str) -> None:
    assert Engine(run / part, device="cpu").mouth_px == MOUTH_PX


def test_bad_checkpoints_and_devices_are_clear(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such run or checkpoint"):
        Engine(tmp_path / "nowhere", device="cpu")
    with pytest.raises(ValueError, match="cannot be used here"):
        Engine(run, device="tpu9")
    with pytest.raises(ValueError, match="batch_size"):
        Engine(run, device="cpu", batch_size=0)
    with pytest.raises(ValueError, match="leave it out"):
        Engine(run, device="cpu", mouth_px=64)
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match="not a checkpoint"):
        Engine(tmp_path / "text.pth", device="cpu")


def test_another_feature_size_than_the_network_hears_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "make_extractor", lambda name: make_extractor("mel", hops="mean"))
    with pytest.raises(ValueError, match=r"needs 320 mel values per frame, not 80"):
        Engine(run, device="cpu")


@pytest.mark.parametrize(("networks", "mouth_px"), [(("net_g",), 256), (("net_g", "net_dV"), 288)])
def test_published_files_tell_their_size_by_what_they_hold(
    tmp_path: Path, networks: tuple[str, ...], mouth_px: int
) -> None:
    generator = Generator(GeneratorConfig(audio_dim=320, base_channels=8, warp_layout="lawdnet2024"))
    state = generator_to_legacy(generator)
    torch.save({"epoch": 1, "state_dict": dict.fromkeys(networks, state)}, tmp_path / "old.pth")
    engine = Engine(tmp_path / "old.pth", device="cpu", audio_feature="mel")
    assert (engine.mouth_px, engine.crop_width) == (mouth_px, mouth_px * 5 // 4)
    assert Engine(tmp_path / "old.pth", device="cpu", audio_feature="mel", mouth_px=64).mouth_px == 64


def test_a_published_file_without_a_generator_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"net": {"weight": torch.zeros(1)}}}, tmp_path / "sync.pth")
    with pytest.raises(ValueError, match="no generator"):
        Engine(tmp_path / "sync.pth", device="cpu")
