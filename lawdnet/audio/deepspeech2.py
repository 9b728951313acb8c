"""DeepSpeech 2 as trained by SeanNaren's deepspeech.pytorch: needs no TensorFlow and runs on every GPU.

Shape letters: F frames of the spectrogram (100 Hz), Q frequencies, R rows at 50 Hz, B chunks, L rows of a chunk.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from lawdnet.audio.base import Chunking, check_mono, in_chunks
from lawdnet.models.device import pick_device
from lawdnet.networks import Network
from lawdnet.storage import Location, files_sha256
from lawdnet.types import FPS, Beat, Float32, no_beat
from lawdnet.weights import find_weights, weights_folders

if TYPE_CHECKING:
    from lawdnet.audio.deepspeech2_model import DeepSpeech2Model

WINDOW, STEP = 320, 160
BLOCK = 3000
"""Frames of the spectrogram (30 s) processed at a time, to bound memory."""
LEAST_DEVIATION = 1e-6
"""Lower bound, because silence has deviation 0, by which the published code divides; 16-bit noise of ±1 has 3e-4."""
FILE = "librispeech_pretrained_v3.ckpt"
RENAMED = "LibriSpeech_Pretrained_v3.ckpt"
"""File name used by LawDNet 2024."""
PUBLISHED = "it is published at https://github.com/SeanNaren/deepspeech.pytorch/releases/tag/V3.0"


class DeepSpeech2:
    """Computes the outputs of DeepSpeech 2 (deepspeech.pytorch 3) before the softmax: 29 characters, English.

    The network gets the logarithm (log1p) of the magnitudes in a 20 ms Hamming window every 10 ms, normalised to mean 0
    and deviation 1 over the whole file; every second row of its 50 Hz output is kept. Row t is centred on 40·t ms.

    Audio of more than 30 s goes through the network in chunks of 30 s that overlap by 8 s, normalised with the
    statistics of the whole file. The LSTMs run in both directions from end to end, so a row differs from whole-file
    processing by what they still remember after 4 s.

    Args:
        file: name of the Lightning checkpoint; nothing that it pickles is executed.
        batch: chunks at once.
        weights_dir: the folder searched first for the checkpoint (`find_weights`).
        device: auto, cpu or cuda.

    Raises:
        ValueError: the file is missing.
    """

    name = "deepspeech2"
    feature_dim = 29
    frame_shift = 1 / FPS

    def __init__(
        self, *, file: str = FILE, batch: int = 4, weights_dir: Location | None = None, device: str = "auto"
    ) -> None:
        if file == FILE and any((folder / RENAMED).exists() for folder in weights_folders(weights_dir)):
            file = RENAMED
        self.path = find_weights(file, weights_dir)
        self.model_sha256: str | None = files_sha256([self.path])
        self.device = device
        self.chunking = Chunking(rows=1500, context=200, batch=batch)
        self.calls = 1
        self.networks = {"speech": Network(lambda input_BFQ: self._network.run(input_BFQ), batch)}

    def extract(self, audio: Float32, beat: Beat = no_beat) -> Float32:
        """Return ceil(R/2)×29 rows at 25 Hz for 16 kHz mono audio in [-1, 1], with R = ceil((1 + samples // 160) / 2).

        Raises:
            ValueError: the audio is not mono, or the file is not a checkpoint of DeepSpeech 2.
        """
        check_mono(audio)
        if len(audio) == 0:
            return np.empty((0, self.feature_dim), np.float32)
        frames = 1 + len(audio) // STEP
        mean, deviation = _statistics(audio, frames, beat)

        def run(starts: list[int], length: int) -> Float32:
            chunks = [_spectrogram(audio, 2 * start, min(2 * (start + length), frames)) for start in starts]
            input_BFQ = np.zeros((len(chunks), 2 * length, chunks[0].shape[1]), np.float32)
            for normalised_FQ, chunk_FQ in zip(input_BFQ, chunks, strict=True):
                # The zeros that remain past the end are those with which the first convolution would pad.
                normalised_FQ[: len(chunk_FQ)] = (chunk_FQ - mean) / deviation
            return np.asarray(self.networks["speech"].compute(input_BFQ))

        return in_chunks(run, -(-frames // 2), self.feature_dim, self.chunking, beat, self.calls)[::2].copy()

    @cached_property
    def _network(self) -> DeepSpeech2Model:
        from lawdnet.audio.deepspeech2_model import load_deepspeech2

        model = load_deepspeech2(self.path, pick_device(self.device))
        if model.classes != self.feature_dim:
            raise ValueError(f"{self.path}: the network has {model.classes} characters, expected {self.feature_dim}")
        return model


def _spectrogram(audio: Float32, start: int, stop: int) -> Float32:
    """Return frames start … stop as F×Q; frame f is centred on sample 160·f, and the audio is mirrored beyond its ends.

    This equals log1p(|librosa.stft(audio, n_fft=320, hop_length=160, window="hamming")|) of librosa 0.8, with which the
    network was trained; later versions pad with zeros.
    """
    period = max(1, 2 * (len(audio) - 1))
    index = np.arange(start * STEP - WINDOW // 2, (stop - 1) * STEP + WINDOW // 2) % period
    mirrored = audio[np.minimum(index, period - index)]
    hamming = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    windows = np.lib.stride_tricks.sliding_window_view(mirrored, WINDOW)[::STEP]
    return np.log1p(np.abs(np.fft.rfft(windows * hamming, axis=1))).astype(np.float32)


def _statistics(audio: Float32, frames: int, beat: Beat) -> tuple[float, float]:
    """Return mean and (unbiased) deviation of the whole spectrogram."""
    total = 0.0
    squares = 0.0
    for start in range(0, frames, BLOCK):
        block = _spectrogram(audio, start, min(start + BLOCK, frames)).astype(np.float64)
        total += float(block.sum())
        squares += float((block**2).sum())
        beat()
    count = frames * (WINDOW // 2 + 1)
    mean = total / count
    variance = max(0.0, squares - count * mean**2) / (count - 1)
    return mean, max(float(np.sqrt(variance)), LEAST_DEVIATION)
