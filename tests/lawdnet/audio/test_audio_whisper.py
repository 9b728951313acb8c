"""lawdnet.audio.whisper: the spectrogram, the network, and files that are none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lawdnet.audio import Whisper
from lawdnet.audio.whisper import FILE, log_mel
from lawdnet.audio.whisper_model import feature_dim, load_encoder
from lawdnet.weights import find_local
from tests.support.tiny_networks import need, whisper_variables, write_whisper


def noise(samples: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).normal(size=samples)).astype(np.float32)


@pytest.mark.parametrize("start", [0, 7])
def test_the_spectrogram_is_that_of_whispers_own_feature_extractor(start: int) -> None:
    need("transformers")
    from transformers import WhisperFeatureExtractor

    audio = noise(480_000)
    given = WhisperFeatureExtractor()(audio, sampling_rate=16_000, return_tensors="np").input_features[0]
    level_ML = log_mel(audio, start, 3000 - start)
    scaled_ML = (np.maximum(level_ML, level_ML.max() - 8) + 4) / 4
    inside = slice(2, -2)  # it mirrors the audio at its ends, here there is silence
    np.testing.assert_allclose(scaled_ML[:, inside], given[:, start:][:, inside], atol=2e-3)


def test_the_network_is_that_of_transformers(tmp_path: Path) -> None:
    need("transformers")
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    sizes = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 128}
    theirs = WhisperEncoder(WhisperConfig(**sizes, max_source_positions=50)).eval()
    variables = whisper_variables(rows=50)
    theirs.load_state_dict(as_transformers(variables))
    write_whisper(tmp_path / FILE, variables)
    mel_BML = torch.randn(2, 80, 100, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(mel_BML, output_hidden_states=True)
    ours = load_encoder(tmp_path / FILE)(mel_BML)
    torch.testing.assert_close(ours, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
    first = load_encoder(tmp_path / FILE, layers=1)(mel_BML)
    torch.testing.assert_close(first, theirs.layer_norm(expected.hidden_states[1]), atol=1e-5, rtol=1e-5)


def as_transformers(variables: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the same weights under the names of transformers."""
    state = {"embed_positions.weight": variables["encoder/position_encodings/encodings"]}
    words = {"gamma": "weight", "beta": "bias", "self_attention/linear_1": "self_attn.out_proj"}
    words |= {"self_attention/layer_norm": "self_attn_layer_norm", "ffn/layer_norm": "final_layer_norm"}
    words |= {"ffn/linear_0": "fc1", "ffn/linear_1": "fc2"}
    for name, values in variables.items():
        name = name.removeprefix("encoder/")
        if "self_attention/linear_0" in name:
            layer, _, kind = name.split("/", 1)[0].replace("layer_", "layers."), None, name.rsplit("/", 1)[1]
            for part, rows in zip("qkv", np.split(values, 3), strict=True):
                if (part, kind) != ("k", "bias"):  # it has none there; a key's bias changes nothing in a softmax
                    state[f"{layer}.self_attn.{part}_proj.{kind}"] = rows
        elif not name.startswith(("position", "num_heads")):
            for old, new in words.items():
                name = name.replace(old, new)
            state[re.sub(r"^layer_(\d)", r"layers.\1", name).replace("/", ".")] = values
    return {name: torch.from_numpy(values) for name, values in state.items()}


def test_rows_are_every_second_state_of_a_chunk(tmp_path: Path) -> None:
    write_whisper(tmp_path / FILE, whisper_variables())
    extractor, audio = Whisper(weights_dir=tmp_path), noise(40 * 640)
    level_ML = log_mel(audio, 0, 1600)
    scaled_ML = (np.maximum(level_ML, level_ML.max() - 8) + 4) / 4
    expected = load_encoder(tmp_path / FILE)(torch.from_numpy(scaled_ML[None]))[0, :80:2]
    np.testing.assert_allclose(extractor.extract(audio), expected, atol=1e-5)


def test_half_precision_files_are_read(tmp_path: Path) -> None:
    half = {name: v.astype(np.float16) if v.dtype == np.float32 else v for name, v in whisper_variables().items()}
    write_whisper(tmp_path / FILE, half)
    assert next(load_encoder(tmp_path / FILE).parameters()).dtype == torch.float32
    assert Whisper(weights_dir=tmp_path).extract(noise(6400)).shape == (10, 32)


def test_a_file_that_is_no_network_says_so(tmp_path: Path) -> None:
    path = tmp_path / FILE
    write_whisper(path, whisper_variables())
    good = path.read_bytes()
    no_layers = {name: v for name, v in whisper_variables().items() if "layer_1/ffn/linear_0/bias" not in name}
    for data in (good[:10], good[: len(good) // 2], b"PK" + good[2:], good.replace(b"WhisperSpec", b"MistralSpec")):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="not a network of CTranslate2, or damaged"):
            load_encoder(path)
    write_whisper(path, no_layers)
    with pytest.raises(ValueError, match="not a Whisper network"):
        load_encoder(path)
    write_whisper(path, {})
    with pytest.raises(ValueError, match="not a Whisper network"):
        feature_dim(path)
    path.write_bytes(good)
    with pytest.raises(ValueError, match=r"layer: 3, expected 1 … 2"):
        load_encoder(path, layers=3)


def test_the_published_network_hears_speech_apart_from_silence() -> None:
    if find_local(FILE) is None:
        pytest.skip(f"{FILE} is not here; fetch it with: lawdnet weights whisper_tiny_en")
    extractor = Whisper()
    assert extractor.feature_dim == 384
    values = extractor.extract(np.concatenate([np.zeros(32_000, np.float32), noise(32_000)]))
    assert values.shape == (100, 384)
    assert np.abs(values[60:90].mean(0) - values[10:40].mean(0)).max() > 1
