"""lawdnet.audio.hubert: networks saved by transformers, read by the real loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lawdnet.audio import Hubert, make_extractor
from lawdnet.audio.base import Chunking
from lawdnet.storage import sha256
from tests.support.tiny_networks import need, write_hubert

STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the network, and without transformers there is nothing to test."""
    need("transformers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def noise(frames: int) -> np.ndarray:
    samples = np.random.default_rng(0).normal(size=640 * frames) * (1.2 + np.sin(np.arange(640 * frames) / 9000))
    return (0.05 * samples).astype(np.float32)


def network_input(audio: np.ndarray) -> torch.Tensor:
    """Return the audio as normalised by transformers, padded by 12.5 ms so that row i is centred on sample 320·i."""
    normal = (audio - audio.mean()) / np.sqrt(audio.var() + 1e-7)
    return torch.from_numpy(np.pad(normal, (200, 0))[: len(audio) + 80].astype(np.float32))[None]


@pytest.mark.parametrize(
    ("kind", "more"), [("Hubert", {}), ("Hubert", STABLE), ("Wav2Vec2", {}), ("WavLM", {})], ids=str
)
def test_rows_are_every_second_hidden_state(tmp_path: Path, kind: str, more: dict[str, Any]) -> None:
    model, audio = write_hubert(tmp_path, kind, **more), noise(40)
    with torch.no_grad():
        output = model(network_input(audio), output_hidden_states=True)
    values = Hubert(model=str(tmp_path)).extract(audio)
    assert values.shape == (40, 32)
    np.testing.assert_allclose(values, output.last_hidden_state[0, ::2], atol=1e-4)
    for layer in (1, 2):
        values = Hubert(model=str(tmp_path), layer=layer).extract(audio)
        np.testing.assert_allclose(values, output.hidden_states[layer][0, ::2], atol=1e-4)


def test_the_first_layers_statistics_are_the_whole_files(tmp_path: Path) -> None:
    # Loud at the end only: with statistics of its own, the quiet chunk would be amplified.
    write_hubert(tmp_path)
    audio = noise(200) * np.where(np.arange(640 * 200) < 640 * 150, 0.02, 1).astype(np.float32)
    whole, chunks = Hubert(model=str(tmp_path), layer=1), Hubert(model=str(tmp_path), layer=1)
    chunks.chunking = Chunking(rows=60, context=15)
    difference = chunks.extract(audio) - whole.extract(audio)
    assert np.sqrt((difference**2).mean() / whole.extract(audio).var(axis=0).mean()) < 0.02


@pytest.mark.parametrize("asked", [True, False])
def test_normalisation_is_the_preprocessors_choice(tmp_path: Path, asked: bool) -> None:
    write_hubert(tmp_path, "WavLM", **STABLE)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": asked}))
    extractor, audio = Hubert(model=str(tmp_path)), noise(20)
    same = np.allclose(extractor.extract(audio), extractor.extract(3 * audio + 0.2), atol=1e-3)
    assert same == asked


def test_a_folder_is_found_by_its_name_or_the_hubs(tmp_path: Path) -> None:
    write_hubert(tmp_path / "hubert-base-ls960")
    for options in ({"weights_dir": tmp_path}, {"weights_dir": str(tmp_path), "model": "hubert-base-ls960"}):
        extractor = make_extractor("hubert", **options)
        assert extractor.model_sha256 == sha256(tmp_path / "hubert-base-ls960" / "model.safetensors")
        assert extractor.feature_dim == 32


def test_a_bin_of_tensors_is_read_and_one_that_runs_code_is_not(tmp_path: Path) -> None:
    model = write_hubert(tmp_path)
    expected = Hubert(model=str(tmp_path)).extract(noise(10))
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    np.testing.assert_allclose(Hubert(model=str(tmp_path)).extract(noise(10)), expected, atol=1e-5)
    torch.save(model.state_dict() | {"run": Trap(tmp_path / "trap")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be loaded"):
        Hubert(model=str(tmp_path)).extract(noise(10))
    assert not (tmp_path / "trap").exists()


class Trap:
    """Pickles as a call that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_what_is_missing_or_wrong_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=r"facebook/hubert-none: .*not found in .*published at https://huggingface.co/facebook"
    ):
        Hubert(model="facebook/hubert-none", weights_dir=tmp_path)
    model = write_hubert(tmp_path)
    with pytest.raises(ValueError, match="layer: 4, expected 1 … 3"):
        Hubert(model=str(tmp_path), layer=4)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no weights next to config\.json"):
        Hubert(model=str(tmp_path))
    state = model.state_dict()
    state.pop("encoder.layers.1.attention.k_proj.weight")
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"1 weights are missing, the first is encoder.layers.1.attention.k_proj"):
        Hubert(model=str(tmp_path)).extract(noise(4))
    for changed, said in (({"model_type": "bert"}, "type 'bert'"), ({"conv_stride": [5, 2, 2, 2, 2, 2, 3]}, "480")):
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / "config.json").write_text(json.dumps(config | changed))
        with pytest.raises(ValueError, match=said):
            Hubert(model=str(tmp_path / "other"))
    (tmp_path / "other" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: damaged"):
        Hubert(model=str(tmp_path / "other"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"transformers is not installed; .*-e '\.\[hubert\]'"):
        Hubert()
