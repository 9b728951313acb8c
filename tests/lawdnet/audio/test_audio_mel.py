"""lawdnet.audio.mel: the filters, the frame clock, the scale, and blocks."""

from __future__ import annotations

import numpy as np
import pytest

from lawdnet.audio import Mel, mel
from lawdnet.audio.mel import mel_filters


def speech_like(samples: int) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 0.1, samples)
    return (noise * np.sin(np.arange(samples) / 3000) ** 2).astype(np.float32)


@pytest.mark.parametrize(("hops", "dim"), [("stack", 320), ("mean", 80)])
@pytest.mark.parametrize(("samples", "rows"), [(0, 0), (1, 1), (640, 1), (641, 2), (16_000, 25)])
def test_one_row_per_frame(hops: str, dim: int, samples: int, rows: int) -> None:
    extractor = Mel(hops=hops)
    values = extractor.extract(speech_like(samples))
    assert values.shape == (rows, dim) == (rows, extractor.feature_dim)
    assert values.dtype == np.float32


def test_silence_is_minus_one_and_the_loudest_is_about_one() -> None:
    assert (Mel().extract(np.zeros(6400, np.float32)) == -1).all()
    loud = np.random.default_rng(0).uniform(-1, 1, 64_000).astype(np.float32)
    assert 0.5 < Mel().extract(loud).max() < 1.3


def test_a_click_shows_in_the_hop_that_is_centred_on_it() -> None:
    for hop in range(40, 48):
        audio = np.zeros(16_000, np.float32)
        audio[hop * 160 - 240] = 1
        level = Mel().extract(audio).reshape(-1, 80).mean(axis=1)
        assert level.argmax() == hop  # hop h of the whole file is centred at 160·h - 240


def test_mean_is_the_average_of_the_stacked_hops() -> None:
    audio = speech_like(20_000)
    stacked = Mel().extract(audio).reshape(-1, 4, 80)
    np.testing.assert_allclose(Mel(hops="mean").extract(audio), stacked.mean(axis=1), atol=1e-6)


def test_windows_and_blocks_give_the_same_rows_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    audio = speech_like(640 * 620)
    whole = Mel().extract(audio)
    part = Mel().extract(audio[640 * 100 : 640 * 300])
    np.testing.assert_array_equal(part[2:-2], whole[102:298])
    monkeypatch.setattr(mel, "BLOCK", 7)
    np.testing.assert_array_equal(Mel().extract(audio), whole)


def test_a_tone_is_loudest_in_its_band() -> None:
    centres = (mel_filters() * np.fft.rfftfreq(800, 1 / 16_000)).sum(1) / mel_filters().sum(1)
    for hz in (220, 1000, 3500):
        audio = (0.5 * np.sin(2 * np.pi * hz * np.arange(16_000) / 16_000)).astype(np.float32)
        band = Mel(hops="mean").extract(audio)[10].argmax()
        assert abs(band - np.abs(centres - hz).argmin()) <= 1


def test_filters_are_slaneys() -> None:
    filters = mel_filters()
    assert filters.shape == (80, 401)
    hz = np.fft.rfftfreq(800, 1 / 16_000)
    assert (filters[:, (hz < 55) | (hz > 7600)] == 0).all()
    assert (filters.sum(1) > 0).all()
    # Wide filters have unit area over Hz (bins are 20 Hz apart).
    np.testing.assert_allclose(filters[40:].sum(1) * 20, 1, atol=0.03)
    # Below 1 kHz bands are equally wide: the scale is linear there.
    peaks = hz[filters.argmax(1)]
    assert np.ptp(np.diff(peaks[:15])) <= 20
    # values of librosa: 1000 Hz is 15 mel, 6400 Hz is 42 mel.
    assert mel._hz_to_mel(1000) == pytest.approx(15)
    assert mel._hz_to_mel(6400) == pytest.approx(42)
    np.testing.assert_allclose(mel._mel_to_hz(np.array([3.0, 42.0])), [200, 6400])


@pytest.mark.parametrize("samples", [640, 16_001])
def test_it_is_librosas_mel_spectrogram_in_decibels(samples: int) -> None:
    librosa = pytest.importorskip("librosa", reason="librosa is not installed")
    audio = speech_like(samples).astype(np.float64)
    rows = -(-samples // 640)
    # Hop h is centred on sample 160·h - 240; librosa centres its frame k on sample 400 + 160·k of what it is given.
    padded = np.concatenate([np.zeros(640), audio, np.zeros(640 * rows + 400 - samples)])
    options = {"sr": 16_000, "n_fft": 800, "hop_length": 160, "window": "hann", "center": False}
    power = librosa.feature.melspectrogram(y=padded, n_mels=80, fmin=55, fmax=7600, **options).T[: 4 * rows] / 200**2
    expected = (10 * np.log10(np.maximum(power, 1e-10)) + 100) / 40 - 1
    np.testing.assert_allclose(mel.Mel().extract(audio).reshape(-1, 80), expected, atol=1e-5)


def test_wrong_use_is_named() -> None:
    with pytest.raises(ValueError, match="hops: 'sum'"):
        Mel(hops="sum")
    with pytest.raises(ValueError, match="mono"):
        Mel().extract(np.zeros((2, 640), np.float32))
