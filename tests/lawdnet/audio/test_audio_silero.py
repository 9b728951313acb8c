"""Silero VAD in numpy: the numbers of torch's layers, blocks of long audio, real speech, and wrong files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lawdnet.audio import load_audio, silero
from lawdnet.audio.silero import FILE, WINDOW, Silero
from tests.support.real_weights import people, real_weights

SHAPES = {
    "stft_conv.weight": (258, 1, 256), "conv1.weight": (128, 129, 3), "conv1.bias": (128,),
    "conv2.weight": (64, 128, 3), "conv2.bias": (64,), "conv3.weight": (64, 64, 3), "conv3.bias": (64,),
    "conv4.weight": (128, 64, 3), "conv4.bias": (128,), "lstm_cell.weight_ih": (512, 128),
    "lstm_cell.weight_hh": (512, 128), "lstm_cell.bias_ih": (512,), "lstm_cell.bias_hh": (512,),
    "final_conv.weight": (1, 128, 1), "final_conv.bias": (1,),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random weights, as the package safetensors writes them."""
    safetensors = pytest.importorskip("safetensors.numpy", reason="needs safetensors: pip install -e '.[hubert]'")
    rng = np.random.default_rng(0)
    scale = {name: 3 / np.sqrt(np.prod(shape[1:]) or 1) for name, shape in SHAPES.items()}
    tensors = {name: (scale[name] * rng.normal(size=shape)).astype(np.float32) for name, shape in SHAPES.items()}
    path: Path = tmp_path_factory.mktemp("silero")
    safetensors.save_file(tensors, path / FILE, metadata={"format": "pt"})
    return path


def by_torch(path: Path, audio: np.ndarray) -> np.ndarray:
    """The network as the package has it, window by window."""
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file

    w = load_file(path)
    cell = torch.nn.LSTMCell(128, 128)
    cell.load_state_dict({name.removeprefix("lstm_cell."): w[name] for name in w if name.startswith("lstm_cell.")})
    samples = F.pad(torch.from_numpy(audio), (64, -len(audio) % WINDOW))
    state, out = None, []
    for start in range(64, len(samples), WINDOW):
        x = F.pad(samples[None, None, start - 64 : start + WINDOW], (0, 64), "reflect")
        x = F.conv1d(x, w["stft_conv.weight"], stride=128)
        x = (x[:, :129] ** 2 + x[:, 129:] ** 2).sqrt()
        for number, stride in ((1, 1), (2, 2), (3, 2), (4, 1)):
            x = F.conv1d(x, w[f"conv{number}.weight"], w[f"conv{number}.bias"], stride=stride, padding=1).relu()
        state = cell(x[..., 0], state)
        out.append(F.conv1d(state[0][..., None].relu(), w["final_conv.weight"], w["final_conv.bias"]).sigmoid().item())
    return np.array(out)


def noise(samples: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(1).normal(size=samples)).astype(np.float32)


@pytest.mark.parametrize("block", [3, 1000])
def test_the_numbers_are_those_of_torch(folder: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silero, "BLOCK", block)
    audio = noise(20 * WINDOW + 100)
    expected = by_torch(folder / FILE, audio)
    assert expected.std() > 0.05, "else nothing is compared"
    np.testing.assert_allclose(Silero(folder).windows(audio), expected, atol=1e-4)


def test_every_frame_gets_a_probability(folder: Path) -> None:
    network = Silero(folder)
    for frames in (0, 1, 54, 55):
        found_T = network(noise(640 * frames), frames)
        assert found_T.shape == (frames,)
        assert ((found_T >= 0) & (found_T <= 1)).all()
    with pytest.raises(ValueError, match="mono"):
        network(np.zeros((2, 640), np.float32), 1)


@pytest.mark.parametrize("content", [b"x" * 4, b"<html></html>", b"\x02" + bytes(7) + b"{}", b"\xff" * 40])
def test_a_file_that_is_something_else_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{FILE}: "):
        Silero(tmp_path)


def test_a_file_that_was_cut_off_is_named(folder: Path, tmp_path: Path) -> None:
    content = (folder / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"{FILE}: not the weights of Silero VAD"):
        Silero(tmp_path)


def test_real_speech_is_told_from_other_audio() -> None:
    network = Silero(real_weights("silero_vad"))
    (clip,) = people("p05")
    speech = load_audio(clip)[: 10 * 16_000]
    frames = len(speech) // 640
    assert (network(speech, frames) > 0.5).mean() > 0.9
    beeps = np.sin(2 * np.pi * 440 * np.arange(len(speech)) / 16_000) * 0.3
    for other in (0 * speech, noise(len(speech)), beeps.astype(np.float32)):
        assert (network(other, frames) > 0.5).mean() < 0.1
    both = np.concatenate([speech, 0 * speech])
    assert (network(both, 2 * frames)[frames + 25 :] > 0.5).mean() < 0.05, "its state forgets"
