"""Mel-frequency cepstral coefficients as `python_speech_features` computes them, which published networks expect.

Shape letters: R rows at 100 Hz, F frequencies of the spectrum, M mel filters.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from lawdnet.audio.base import check_mono
from lawdnet.types import SAMPLE_RATE, Beat, Float32, no_beat

WINDOW, STEP = 400, 160
FFT = 512
FILTERS = 26
PRE_EMPHASIS = 0.97
LIFTER = 22
BLOCK = 3000
"""Rows (30 s) processed at a time, to bound memory."""

Float64 = NDArray[np.float64]
_TINY = float(np.finfo(np.float64).eps)


def mfcc(audio: Float32, coefficients: int = 13, beat: Beat = no_beat) -> Float64:
    """Return the MFCC of audio, which is first rounded to 16 bits as in the published files.

    25 ms rectangular windows every 10 ms, pre-emphasis 0.97, 512-point FFT, 26 mel filters from 0 to 8 kHz, orthonormal
    DCT-II, lifter 22, the logarithm of the energy as coefficient 0. The result equals that of `mfcc` in
    python_speech_features 0.6 (J. Lyons et al., doi 10.5281/zenodo.3607820) with its defaults.

    Args:
        audio: 16 kHz mono in [-1, 1].
        coefficients: values per row, at most 26.
        beat: called after every block.

    Returns:
        R×coefficients; row i covers samples 160·i … 160·i + 400, so it is centred on 12.5 ms + 10 ms·i. R is
        1 + ceil((samples - 400) / 160), at least 1; 0 if there are no samples.

    Raises:
        ValueError: the audio is not mono.
    """
    check_mono(audio)
    rows = 1 + max(0, -(-(len(audio) - WINDOW) // STEP)) if len(audio) else 0
    out_RC = np.empty((rows, coefficients))
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        out_RC[start : start + count] = _block(audio, start, count, coefficients)
        beat()
    return out_RC


def _block(audio: Float32, start: int, count: int, coefficients: int) -> Float64:
    """Return rows start … start + count - 1."""
    windows = np.lib.stride_tricks.sliding_window_view(_emphasised(audio, start, count), WINDOW)[::STEP]
    power_RF = np.abs(np.fft.rfft(windows, FFT)) ** 2 / FFT
    energy_R = power_RF.sum(1)
    level_RM = np.log(_not_zero(power_RF @ _filters().T))
    out_RC = level_RM @ _cosines(coefficients)
    out_RC[:, 0] = np.log(_not_zero(energy_R))
    return np.asarray(out_RC)


def _emphasised(audio: Float32, start: int, count: int) -> Float64:
    """Return the samples of rows start … start + count - 1 after pre-emphasis, silent past the end."""
    first = start * STEP
    part = audio[max(0, first - 1) : first + (count - 1) * STEP + WINDOW]
    samples = np.round(part.astype(np.float64) * 32768).clip(-32768, 32767)
    past = np.concatenate([[0.0], samples[:-1]])
    emphasised = (samples - PRE_EMPHASIS * past)[min(1, first) :]
    return np.pad(emphasised, (0, (count - 1) * STEP + WINDOW - len(emphasised)))


def _not_zero(values: Float64) -> Float64:
    """Replace 0 by the float64 epsilon, so that the logarithm is finite."""
    return np.where(values == 0, _TINY, values)


@cache
def _filters() -> Float64:
    """Return M×F triangular filters, equally spaced on the HTK mel scale, with corners rounded to FFT bins."""
    highest = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    hz = 700 * (10 ** (np.linspace(0, highest, FILTERS + 2) / 2595) - 1)
    corners = np.floor((FFT + 1) * hz / SAMPLE_RATE)
    bins_F = np.arange(FFT // 2 + 1)
    low, top, high = (corners[k : k + FILTERS, None] for k in range(3))
    rising = (bins_F - low) / (top - low)
    falling = (high - bins_F) / (high - top)
    return np.where(bins_F < top, rising, falling).clip(min=0)


@cache
def _cosines(coefficients: int) -> Float64:
    """Return M×coefficients: the orthonormal DCT-II times the lifter 1 + 11·sin(π·n/22)."""
    assert 1 <= coefficients <= FILTERS, coefficients
    n = np.arange(coefficients)
    cosines = np.cos(np.pi * (np.arange(FILTERS)[:, None] + 0.5) * n / FILTERS) * np.sqrt(2 / FILTERS)
    cosines[:, 0] /= np.sqrt(2)
    return cosines * (1 + LIFTER / 2 * np.sin(np.pi * n / LIFTER))
