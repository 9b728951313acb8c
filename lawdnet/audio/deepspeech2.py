"""DeepSpeech 2 of SeanNaren's deepspeech.pytorch: a feature that needs no TensorFlow and runs on every GPU.

Shape letters: F frames of the spectrogram (100 Hz), Q frequencies, R rows at 50 Hz, B pieces, L rows of one.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lawdnet.audio.base import Pieces, check_mono, in_pieces
from lawdnet.models.device import pick_device
from lawdnet.storage import files_sha256
from lawdnet.types import FPS, Beat, Float32, no_beat
from lawdnet.weights import find_weights, weights_folders

if TYPE_CHECKING:
    from lawdnet.audio.deepspeech2_model import DeepSpeech2Model

WINDOW, STEP = 320, 160
BLOCK = 3000
"""Frames of the spectrogram (30 s) measured at a time, which bounds the memory."""
LEAST_DEVIATION = 1e-6
"""The published code divides silence by its deviation, which is 0; one 16-bit step of noise has 3e-4."""
FILE = "librispeech_pretrained_v3.ckpt"
RENAMED = "LibriSpeech_Pretrained_v3.ckpt"
"""The name that LawDNet 2024 gave it."""
PUBLISHED = "it is published at https://github.com/SeanNaren/deepspeech.pytorch/releases/tag/V3.0"


class DeepSpeech2:
    """Values before the softmax of DeepSpeech 2 (deepspeech.pytorch 3): 29 characters, English speech.

    The logarithm (log1p) of the magnitudes of a 20 ms Hamming window every 10 ms, normalised to mean 0 and deviation
    1 over the whole file; every second row of the network's 50 Hz output is kept. Row t is centred on 40·t ms.

    Sound of more than 30 s goes through the network in pieces of 30 s that overlap by 8 s, normalised by the whole
    file's statistics. The LSTMs run in both directions from end to end, so a row differs from whole-file processing
    by what they still remember after 4 s.

    Args:
        file: name of the Lightning checkpoint; it is read without executing what it pickles.
        batch: pieces at once.
        weights_dir: where the checkpoint is looked for first (`find_weights`).
        device: auto, cpu or cuda.

    Raises:
        ValueError: the file is not there.
    """

    name = "deepspeech2"
    feature_dim = 29
    frame_shift = 1 / FPS

    def __init__(
        self, *, file: str = FILE, batch: int = 4, weights_dir: Path | None = None, device: str = "auto"
    ) -> None:
        if file == FILE and any((folder / RENAMED).exists() for folder in weights_folders(weights_dir)):
            file = RENAMED
        self.path = find_weights(file, weights_dir, hint=PUBLISHED)
        self.model_sha256: str | None = files_sha256([self.path])
        self.device = device
        self.pieces = Pieces(rows=1500, context=200, batch=batch)

    def extract(self, wave: Float32, beat: Beat = no_beat) -> Float32:
        """A 16 kHz mono wave in [-1, 1] as ceil(R/2)×29 rows at 25 Hz, R = ceil((1 + samples // 160) / 2).

        Raises:
            ValueError: the wave is not mono, or the file is not DeepSpeech 2's checkpoint.
        """
        check_mono(wave)
        if len(wave) == 0:
            return np.empty((0, self.feature_dim), np.float32)
        frames = 1 + len(wave) // STEP
        mean, deviation = _statistics(wave, frames, beat)

        def run(starts: list[int], length: int) -> Float32:
            parts = [_spectrogram(wave, 2 * start, min(2 * (start + length), frames)) for start in starts]
            input_BFQ = np.zeros((len(parts), 2 * length, parts[0].shape[1]), np.float32)
            for normalised_FQ, part_FQ in zip(input_BFQ, parts, strict=True):
                # What is left of the zeros past the end is what the first convolution would pad with.
                normalised_FQ[: len(part_FQ)] = (part_FQ - mean) / deviation
            return self._network.run(input_BFQ)

        return in_pieces(run, -(-frames // 2), self.feature_dim, self.pieces, beat)[::2].copy()

    @cached_property
    def _network(self) -> DeepSpeech2Model:
        from lawdnet.audio.deepspeech2_model import load_deepspeech2

        model = load_deepspeech2(self.path, pick_device(self.device))
        if model.classes != self.feature_dim:
            raise ValueError(f"{self.path}: the network knows {model.classes} characters, expected {self.feature_dim}")
        return model


def _spectrogram(wave: Float32, start: int, stop: int) -> Float32:
    """Frames start … stop as F×Q: frame f is centred on sample 160·f, and the wave is mirrored beyond its ends.

    That is log1p(|librosa.stft(wave, n_fft=320, hop_length=160, window="hamming")|) of librosa 0.8, with which the
    network was trained; later ones pad with zeros.
    """
    period = max(1, 2 * (len(wave) - 1))
    at = np.arange(start * STEP - WINDOW // 2, (stop - 1) * STEP + WINDOW // 2) % period
    mirrored = wave[np.minimum(at, period - at)]
    hamming = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    windows = np.lib.stride_tricks.sliding_window_view(mirrored, WINDOW)[::STEP]
    return np.log1p(np.abs(np.fft.rfft(windows * hamming, axis=1))).astype(np.float32)


def _statistics(wave: Float32, frames: int, beat: Beat) -> tuple[float, float]:
    """Mean and (unbiased) deviation of the whole spectrogram."""
    total, squares = 0.0, 0.0
    for start in range(0, frames, BLOCK):
        block = _spectrogram(wave, start, min(start + BLOCK, frames)).astype(np.float64)
        total, squares = total + float(block.sum()), squares + float((block**2).sum())
        beat()
    count = frames * (WINDOW // 2 + 1)
    mean = total / count
    variance = max(0.0, squares - count * mean**2) / (count - 1)
    return mean, max(float(np.sqrt(variance)), LEAST_DEVIATION)
