"""Silero VAD 6.2 (Silero Team 2024), a small network that tells speech from other audio, in numpy.

The package silero-vad needs torch to run the same network; its weights are in the table of `lawdnet.weights`.

Shape letters: K windows of 32 ms, S samples, C channels, L positions in a window, D = 128 numbers of the state.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import numpy as np

from lawdnet.audio.base import check_mono
from lawdnet.storage import Location
from lawdnet.types import SAMPLES_PER_FRAME, Beat, Float32, no_beat
from lawdnet.weights import find_local, find_weights

FILE = "silero_vad_16k.safetensors"
WINDOW, CONTEXT = 512, 64
"""Samples of a window, and those before it that the network sees as well."""
FOURIER, STRIDE = 256, 128
BLOCK = 1000
"""Windows (32 s) of which everything but the state is computed at a time."""
SIZES = {"stft_conv.weight": (258, 1, 256), "conv1.weight": (128, 129, 3), "lstm_cell.weight_hh": (512, 128)}
"""What the file must hold, among others."""


class Silero:
    """Gives every frame of a video the probability that somebody speaks.

    Args:
        weights_dir: searched first for the weights.

    Raises:
        ValueError: the weights are missing or something else.
    """

    def __init__(self, weights_dir: Location | None = None) -> None:
        self.file = find_weights(FILE, weights_dir)
        self._weights  # noqa: B018 a wrong file is refused before the work

    @staticmethod
    def is_here(weights_dir: Location | None = None) -> bool:
        """Whether the weights are on this machine."""
        return find_local(FILE, weights_dir) is not None

    def __call__(self, audio: Float32, num_frames: int, beat: Beat = no_beat) -> Float32:
        """Return T probabilities, at the middle of each frame of the 25 fps clock, for 16 kHz mono audio in [-1, 1]."""
        check_mono(audio)
        probability_K = self.windows(audio, beat)
        if not len(probability_K):
            return np.zeros(num_frames, np.float32)
        middle_T = (np.arange(num_frames) + 0.5) * SAMPLES_PER_FRAME
        middle_K = (np.arange(len(probability_K)) + 0.5) * WINDOW
        return np.interp(middle_T, middle_K, probability_K).astype(np.float32)

    def windows(self, audio: Float32, beat: Beat = no_beat) -> Float32:
        """Return K probabilities, one for each 512 samples; the last window is filled up with silence."""
        count = -(-len(audio) // WINDOW)
        out_K = np.empty(count, np.float32)
        state = np.zeros((2, self._weights["lstm_cell.weight_hh"].shape[1]), np.float32)
        for start in range(0, count, BLOCK):
            stop = min(count, start + BLOCK)
            samples_S = np.zeros(CONTEXT + (stop - start) * WINDOW, np.float32)
            first = start * WINDOW - CONTEXT
            inside_S = audio[max(0, first) : stop * WINDOW]
            at = max(0, -first)
            samples_S[at : at + len(inside_S)] = inside_S
            seen_KS = np.lib.stride_tricks.sliding_window_view(samples_S, CONTEXT + WINDOW)[::WINDOW]
            out_K[start:stop], state = self._decode(self._encode(seen_KS), state)
            beat()
        return out_K

    def _encode(self, seen_KS: Float32) -> Float32:
        """Return what the network's convolutions make of each window: K×D."""
        padded_KS = np.pad(seen_KS, ((0, 0), (0, 64)), "reflect")
        parts_KLC = _convolve(padded_KS[:, None], self._weights["stft_conv.weight"], stride=STRIDE).swapaxes(1, 2)
        half = FOURIER // 2 + 1
        x_KCL = np.hypot(parts_KLC[..., :half], parts_KLC[..., half:]).swapaxes(1, 2)
        for number, stride in ((1, 1), (2, 2), (3, 2), (4, 1)):
            padded = np.pad(x_KCL, ((0, 0), (0, 0), (1, 1)))
            convolved = _convolve(padded, self._weights[f"conv{number}.weight"], stride=stride)
            x_KCL = np.maximum(convolved + self._weights[f"conv{number}.bias"][:, None], 0)
        return x_KCL[..., 0]

    def _decode(self, x_KD: Float32, state_2D: Float32) -> tuple[Float32, Float32]:
        """Return K probabilities, and the state of the LSTM after the last window."""
        w = self._weights
        bias = w["lstm_cell.bias_ih"] + w["lstm_cell.bias_hh"]
        inputs_KD4 = x_KD @ w["lstm_cell.weight_ih"].T + bias
        hidden_D, cell_D = state_2D
        hidden_KD = np.empty_like(x_KD)
        for number, inputs in enumerate(inputs_KD4):
            enter, forget, new, leave = np.split(inputs + w["lstm_cell.weight_hh"] @ hidden_D, 4)
            cell_D = _sigmoid(forget) * cell_D + _sigmoid(enter) * np.tanh(new)
            hidden_KD[number] = hidden_D = _sigmoid(leave) * np.tanh(cell_D)
        score_K = np.maximum(hidden_KD, 0) @ w["final_conv.weight"][0, :, 0] + w["final_conv.bias"][0]
        return _sigmoid(score_K), np.stack([hidden_D, cell_D])

    @cached_property
    def _weights(self) -> dict[str, Float32]:
        try:
            found = read_safetensors(self.file)
            wrong = [name for name, size in SIZES.items() if found[name].shape != size]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.file}: not the weights of Silero VAD ({error})") from error
        if wrong:
            raise ValueError(f"{self.file}: not the weights of Silero VAD 6.2 for 16 kHz ({wrong[0]})")
        return found


def read_safetensors(file: Path) -> dict[str, Float32]:
    """Read the float32 tensors of a safetensors file, whose layout is 8 bytes of length, JSON, and raw numbers.

    Raises:
        ValueError, KeyError, TypeError: it is not one.
    """
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    about = json.loads(content[8 : 8 + length])
    found = {}
    for name, entry in about.items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            found[name] = np.frombuffer(content[begin:end], "<f4").reshape(entry["shape"])
    return found


def _convolve(x_KCL: Float32, weight_OC3: Float32, *, stride: int) -> Float32:
    width = weight_OC3.shape[2]
    windows = np.lib.stride_tricks.sliding_window_view(x_KCL, width, axis=2)[:, :, ::stride]  # K×C×L×width
    return np.tensordot(windows, weight_OC3, ([1, 3], [1, 2])).swapaxes(1, 2)


def _sigmoid(x: Float32) -> Float32:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)), np.float32)
