"""Whisper: what a network that was trained to write down speech hears.

Shape letters: T rows at 25 Hz, C feature dimension, B chunks, M mel bands, L spectrogram frames at 100 Hz.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from lawdnet.audio.base import GPU_BATCH, Chunking, check_mono, chunks_at_once, in_chunks
from lawdnet.audio.mel import mel_filters
from lawdnet.models.device import pick_device
from lawdnet.networks import Network
from lawdnet.storage import Location, files_sha256
from lawdnet.types import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, Beat, Float32, no_beat
from lawdnet.weights import find_weights

if TYPE_CHECKING:
    from lawdnet.audio.whisper_model import WhisperEncoder

FILE = "whisper-tiny.en.bin"
WINDOW, HOP = 400, 160
BANDS = 80
STEPS = SAMPLES_PER_FRAME // HOP
"""Spectrogram frames per row."""
LEAST_POWER = 1e-10
RANGE = 8.0
"""Powers of ten between the loudest value of the audio and the floor."""
BLOCK = 6000
"""Spectrogram frames (60 s) processed at a time, to bound memory."""


class Whisper:
    """Computes the hidden states of Whisper's encoder (tiny.en, C = 384). It is not trained on faces, but it knows the
    sounds of speech from many voices: with few speakers in the training data, it says more about a new speaker's mouth
    than mel bands do.

    The encoder's rows of 20 ms are centred on 20·i ms; every second one is kept, so row t is centred on 40·t ms.
    Audio goes through the network in chunks of 16 s that overlap by 4 s; a shorter one is followed by silence.
    Attention sees only its chunk, which is why a row differs from whole-file processing.

    Args:
        layer: take the output of this many transformer layers (with the network's last norm); None takes all.
        batch: chunks at once; None means 8 on a GPU and 1 elsewhere.
        weights_dir: the folder searched first for the weights.
        device: auto, cpu or cuda.

    Raises:
        ValueError: the weights are missing or damaged.
    """

    name = "whisper"
    frame_shift = 1 / FPS

    def __init__(
        self,
        *,
        layer: int | None = None,
        batch: int | None = None,
        weights_dir: Location | None = None,
        device: str = "auto",
    ) -> None:
        from lawdnet.audio.whisper_model import feature_dim

        self.path = find_weights(FILE, weights_dir)
        self.model_sha256: str | None = files_sha256([self.path])
        self.feature_dim = feature_dim(self.path)
        self.layer, self.batch, self.device = layer, batch, device
        self.chunking = Chunking(rows=400, context=50)
        self.calls = 1
        self.networks = {"speech": Network(self._rows, batch or GPU_BATCH)}

    def extract(self, audio: Float32, beat: Beat = no_beat) -> Float32:
        """Return T×C rows at 25 Hz for 16 kHz mono audio in [-1, 1], with T = ceil(samples / 640).

        Raises:
            ValueError: the audio is not mono, or the weights cannot be read.
        """
        check_mono(audio)
        rows = -(-len(audio) // SAMPLES_PER_FRAME)
        if rows == 0:
            return np.empty((0, self.feature_dim), np.float32)
        floor = _loudest(audio, rows * STEPS) - RANGE

        def run(starts: list[int], length: int) -> Float32:
            mel_BML = np.stack(
                [_scaled(log_mel(audio, start * STEPS, self.chunking.rows * STEPS), floor) for start in starts]
            )
            return np.asarray(self.networks["speech"].compute(mel_BML))[:, :length]

        chunking = replace(self.chunking, batch=chunks_at_once(self.batch, self.device))
        return in_chunks(run, rows, self.feature_dim, chunking, beat, self.calls)

    def _rows(self, mel_BML: Float32) -> Float32:
        """Return B×L/4×C: every second row of the encoder."""
        import torch

        rows_BRC = self._network(torch.from_numpy(mel_BML).to(pick_device(self.device)))
        return np.asarray(rows_BRC[:, ::2].cpu().numpy())

    @cached_property
    def _network(self) -> WhisperEncoder:
        from lawdnet.audio.whisper_model import load_encoder

        return load_encoder(self.path, layers=self.layer).to(pick_device(self.device))


def log_mel(audio: Float32, start: int, length: int) -> Float32:
    """Return M×L logarithms to base 10 of mel powers; frame l is centred on sample 160·l, with silence beyond the ends.

    Hann window of 25 ms, 80 bands of equal area up to 8 kHz (Slaney's scale), at least 1e-10: Whisper's own input
    before scaling.
    """
    first = start * HOP - WINDOW // 2
    samples = np.zeros((length - 1) * HOP + WINDOW)
    inside = audio[max(0, first) : max(0, first + len(samples))]
    at = max(0, -first)
    samples[at : at + len(inside)] = inside
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    power_LF = np.abs(np.fft.rfft(frames * hann, axis=1)) ** 2
    filters_MF = mel_filters(BANDS, lowest=0.0, highest=SAMPLE_RATE / 2, window=WINDOW)
    return np.log10(np.maximum(filters_MF @ power_LF.T, LEAST_POWER)).astype(np.float32)


def _scaled(level_ML: Float32, floor: float) -> Float32:
    return np.asarray((np.maximum(level_ML, np.float32(floor)) + 4) / 4, np.float32)


def _loudest(audio: Float32, frames: int) -> float:
    """Return the largest value of `log_mel` over the whole audio, so that chunks are scaled as the whole would be."""
    blocks = range(0, frames, BLOCK)
    return max(float(log_mel(audio, start, min(BLOCK, frames - start)).max()) for start in blocks)
