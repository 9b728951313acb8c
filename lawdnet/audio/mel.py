"""Log-mel energies: features that need no trained network and suit every language.

Shape letters: T video frames, C feature dimension, F frequencies of the spectrum, M mel bands.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lawdnet.audio.base import check_mono
from lawdnet.types import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, Beat, Float32, no_beat

BANDS = 80
WINDOW = 800
HOP = 160
HOPS = SAMPLES_PER_FRAME // HOP
LOWEST_HZ, HIGHEST_HZ = 55.0, 7600.0
FLOOR_DB, TOP_DB = -100.0, -20.0
"""Band levels that map to -1 and 1 (see `Mel`)."""
BLOCK = 250
"""Video frames (10 s) processed at a time, to bound memory."""


class Mel:
    """Computes 80 log-mel bands (55–7600 Hz, 50 ms Hann window) at 100 Hz, four hops per video frame.

    Frame t joins the hops centred on samples 640·t + (-240, -80, 80, 240); audio is silent beyond its ends. Band powers
    (a full-scale sine has 1 before the filters) become dB; -100 dB and below map to -1, and -20 dB (the loudest speech)
    maps to 1. No statistics of the file are used, so part of a file gives the same rows as the whole.

    Args:
        hops: `stack` joins the four hops of a frame (C = 320, oldest first), `mean` averages them (C = 80).

    Raises:
        ValueError: hops has another value.
    """

    name = "mel"
    frame_shift = 1 / FPS
    model_sha256: str | None = None

    def __init__(self, hops: Literal["stack", "mean"] = "stack") -> None:
        if hops not in ("stack", "mean"):
            raise ValueError(f"hops: {hops!r}, expected 'stack' or 'mean'")
        self.hops = hops
        self.feature_dim = BANDS * HOPS if hops == "stack" else BANDS

    def extract(self, audio: Float32, beat: Beat = no_beat) -> Float32:
        """Return T×C rows at 25 Hz for 16 kHz mono audio in [-1, 1], with T = ceil(samples / 640)."""
        check_mono(audio)
        out_TC = np.empty((-(-len(audio) // SAMPLES_PER_FRAME), self.feature_dim), np.float32)
        for start in range(0, len(out_TC), BLOCK):
            block_TC = out_TC[start : start + BLOCK]
            block_TC[:] = self._block(audio, start, len(block_TC))
            beat()
        return out_TC

    def _block(self, audio: Float32, start: int, count: int) -> Float32:
        """Return rows start … start + count - 1."""
        first = start * SAMPLES_PER_FRAME - 3 * HOP // 2 - WINDOW // 2
        length = (count * HOPS - 1) * HOP + WINDOW
        padded = np.zeros(length)
        inside = audio[max(0, first) : max(0, first + length)]
        at = max(0, -first)
        padded[at : at + len(inside)] = inside
        windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
        # A Hann window of N points sums to N/2, so a full-scale sine peaks at N/4.
        power_HF = np.abs(np.fft.rfft(windows * _hann(), axis=1) / (WINDOW / 4)) ** 2
        level_HM = 10 * np.log10(np.maximum(power_HF @ mel_filters().T, 10 ** (FLOOR_DB / 10)))
        scaled_HM = 2 * (level_HM - FLOOR_DB) / (TOP_DB - FLOOR_DB) - 1
        hops_T4M = scaled_HM.reshape(count, HOPS, BANDS)
        joined = hops_T4M.reshape(count, -1) if self.hops == "stack" else hops_T4M.mean(axis=1)
        return joined.astype(np.float32)


@cache
def _hann() -> NDArray[np.float64]:
    """Return the periodic Hann window."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)


@cache
def mel_filters() -> NDArray[np.float64]:
    """Return the M×F filters of the feature `mel`."""
    return triangles(WINDOW, LOWEST_HZ, HIGHEST_HZ)


def triangles(window: int, lowest_hz: float, highest_hz: float) -> NDArray[np.float64]:
    """Return 80×F triangular filters of equal area on Slaney's mel scale, the default of `librosa.filters.mel`.

    Source: M. Slaney, Auditory Toolbox (1998): linear below 1 kHz (66⅔ Hz per mel), logarithmic above (27 mels for
    a factor of 6.4); the height of a filter is 2 / its width in Hz.
    """
    edges = _mel_to_hz(np.linspace(_hz_to_mel(lowest_hz), _hz_to_mel(highest_hz), BANDS + 2))
    hz_F = np.fft.rfftfreq(window, 1 / SAMPLE_RATE)
    rising = (hz_F - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - hz_F) / np.diff(edges)[1:, None]
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]


def _hz_to_mel(hz: float) -> float:
    return hz * 3 / 200 if hz < 1000 else 15 + math.log(hz / 1000) * 27 / math.log(6.4)


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * math.log(6.4) / 27))
