"""lawdnet.audio.deepspeech2: the spectrogram, the network, and a checkpoint that must not run."""

from __future__ import annotations

import enum
import functools
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lawdnet.audio import DeepSpeech2
from lawdnet.audio.deepspeech2 import FILE, RENAMED, _spectrogram
from lawdnet.audio.deepspeech2_model import DeepSpeech2Model, load_deepspeech2, read_tensors
from tests.support.tiny_networks import deepspeech2_state, tiny, write_checkpoint

CPU = torch.device("cpu")


def noise(samples: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).normal(size=samples)).astype(np.float32)


@pytest.mark.parametrize("samples", [161, 640, 4799, 4800])
def test_the_spectrogram_is_librosas(samples: int) -> None:
    librosa = pytest.importorskip("librosa", reason="librosa is not installed")
    # Padded here as in librosa 0.8: 0.11 mirrors no more than the last window, and is one sample off at the end.
    padded = np.pad(noise(samples), 160, "reflect")
    stft = librosa.stft(padded, n_fft=320, hop_length=160, window="hamming", center=False)
    expected = np.log1p(np.abs(stft)).T
    frames = 1 + samples // 160
    np.testing.assert_allclose(_spectrogram(noise(samples), 0, frames), expected, atol=1e-5)
    np.testing.assert_allclose(_spectrogram(noise(samples), 1, frames), expected[1:], atol=1e-5)


def forward(state: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
    """Run DeepSpeech 2, written with functions on the published parameter names: 1×1×161×F to R×29."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.batch_norm(x, *(state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")))

    for number, (stride, padding) in enumerate([((2, 2), (20, 5)), ((2, 1), (10, 5))]):
        name = f"conv.seq_module.{3 * number}"
        x = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride, padding)
        x = norm(x, f"conv.seq_module.{3 * number + 1}").clamp(0, 20)
    x = x.reshape(x.shape[1] * x.shape[2], -1).T
    for layer in range(3):
        x = norm(x, f"rnns.{layer}.batch_norm.module") if layer else x
        lstm = torch.nn.LSTM(x.shape[1], 16, bidirectional=True)
        lstm.load_state_dict({key: state[f"rnns.{layer}.rnn.{key}"] for key in lstm.state_dict()})
        both = lstm(x[:, None])[0][:, 0]
        x = both[:, :16] + both[:, 16:]
    return norm(x, "fc.0.module.0") @ state["fc.0.module.1.weight"].T


@pytest.mark.parametrize("samples", [640, 6400, 6560])
def test_features_are_every_second_row_before_the_softmax(tmp_path: Path, samples: int) -> None:
    values = tiny("deepspeech2", tmp_path).extract(noise(samples))
    spectrum = torch.from_numpy(_spectrogram(noise(samples), 0, 1 + samples // 160))
    spectrum = (spectrum - spectrum.mean()) / spectrum.std()
    with torch.no_grad():
        expected = forward(deepspeech2_state(), spectrum.T[None, None])[::2].numpy()
    np.testing.assert_allclose(values, expected, atol=1e-4)


def test_the_published_sizes_are_the_defaults() -> None:
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in DeepSpeech2Model().state_dict().items()}
    assert shapes["rnns.0.rnn.weight_ih_l0"] == (4096, 1312)
    assert shapes["rnns.4.rnn.weight_hh_l0_reverse"] == (4096, 1024)
    assert shapes["rnns.1.batch_norm.module.running_mean"] == (1024,)
    assert shapes["fc.0.module.1.weight"] == (29, 1024)
    assert "rnns.0.batch_norm.module.weight" not in shapes
    assert "fc.0.module.1.bias" not in shapes


class Window(enum.Enum):
    HAMMING = "hamming"


class Touch:
    """Pickles as a call that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,), {"state": 1}, iter([1, 2]), iter([("key", "value")])


class Listed(list):
    """Pickles as an object to which items are appended."""


def hyper_parameters(trap: Path) -> dict[str, Any]:
    """Return what Lightning pickles, and worse."""
    gone = types.ModuleType("deepspeech_pytorch_gone")
    gone.Config = type("Config", (), {"__module__": gone.__name__})
    sys.modules[gone.__name__] = gone
    config = gone.Config()
    config.window, config.listed = Window.HAMMING, Listed([1, 2])
    calls = [Touch(trap), functools.partial(Path.touch, trap), getattr, print]
    return {"hyper_parameters": {"model_cfg": config, "labels": ["a", "b"], "calls": calls}}


@pytest.mark.parametrize("legacy", [False, True])
def test_what_a_checkpoint_pickles_never_runs(tmp_path: Path, legacy: bool) -> None:
    trap, path = tmp_path / "trap", tmp_path / FILE
    content = {"state_dict": deepspeech2_state(), **hyper_parameters(trap)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    del sys.modules["deepspeech_pytorch_gone"]
    loaded = read_tensors(path)
    assert not trap.exists()
    assert "deepspeech_pytorch_gone" not in sys.modules
    assert loaded["hyper_parameters"]["labels"] == ["a", "b"]
    assert type(loaded["hyper_parameters"]["calls"][2]) is not type(getattr)
    for key, value in deepspeech2_state().items():
        assert torch.equal(loaded["state_dict"][key], value), key
    assert load_deepspeech2(path, CPU).classes == 29
    assert not trap.exists()


def test_the_malicious_pickle_of_the_test_above_works(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    torch.save(Touch(trap), tmp_path / "file")
    with pytest.raises(AttributeError):  # that of the state, set after the call
        torch.load(tmp_path / "file", weights_only=False)
    assert trap.exists()


def test_a_bare_state_dict_and_the_other_name_will_do(tmp_path: Path) -> None:
    torch.save(deepspeech2_state(), tmp_path / RENAMED)
    assert DeepSpeech2(weights_dir=tmp_path, device="cpu").extract(noise(6400)).shape == (11, 29)


def test_what_is_missing_or_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{FILE}: not found in .*SeanNaren/deepspeech.pytorch/releases"):
        DeepSpeech2(weights_dir=tmp_path)
    path = tmp_path / FILE
    write_checkpoint(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"{FILE}: cannot be read .*damaged"):
        DeepSpeech2(weights_dir=tmp_path, device="cpu").extract(noise(640))
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=rf"{FILE}: cannot be read .*damaged"):
        DeepSpeech2(weights_dir=tmp_path, device="cpu").extract(noise(640))
    one_way = {key: value for key, value in deepspeech2_state().items() if "reverse" not in key}
    for state in (one_way, {"weight": torch.zeros(2)}, {}):
        torch.save({"state_dict": state}, path)
        with pytest.raises(ValueError, match=rf"{FILE}: not a checkpoint of the bidirectional LSTMs"):
            load_deepspeech2(path, CPU)
    torch.save(deepspeech2_state(classes=30), path)
    with pytest.raises(ValueError, match="has 30 characters, expected 29"):
        DeepSpeech2(weights_dir=tmp_path, device="cpu").extract(noise(640))


@pytest.mark.parametrize(("device", "said"), [("cuda", "torch finds no GPU"), ("gpu", "expected auto, cpu or cuda")])
def test_a_device_that_is_not_there_is_named(tmp_path: Path, device: str, said: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ValueError, match=said):
        tiny("deepspeech2", tmp_path, device=device).extract(noise(640))
