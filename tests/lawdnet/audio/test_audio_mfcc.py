"""lawdnet.audio.mfcc: equal to python_speech_features and to the published golden values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lawdnet.audio import mfcc as module
from lawdnet.audio.mfcc import mfcc

GOLDEN = Path(__file__).resolve().parents[4] / "shared" / "reference" / "golden.npz"
LENGTHS = [1, 2, 399, 400, 401, 560, 561, 16_000, 160 * 960 + 240]


def pcm(samples: int, scale: float = 8000) -> np.ndarray:
    return np.random.default_rng(samples).normal(0, scale, samples).clip(-32768, 32767).astype(np.int16)


def to_float(samples: np.ndarray) -> np.ndarray:
    return (samples / 32768).astype(np.float32)


@pytest.mark.parametrize("samples", LENGTHS)
@pytest.mark.parametrize("coefficients", [13, 26])
def test_it_is_python_speech_features(samples: int, coefficients: int) -> None:
    peer = pytest.importorskip("python_speech_features", reason="python_speech_features is not installed")
    expected = peer.mfcc(pcm(samples), 16_000, numcep=coefficients)
    np.testing.assert_allclose(mfcc(to_float(pcm(samples)), coefficients), expected, atol=1e-10)


def test_it_is_the_published_code() -> None:
    if not GOLDEN.exists():
        pytest.skip(f"{GOLDEN} is not there")
    golden = np.load(GOLDEN)
    np.testing.assert_allclose(mfcc(to_float(golden["mfcc_wave_int16"]), 26), golden["mfcc_26"], atol=1e-10)


def test_blocks_give_the_same_rows_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mfcc(to_float(pcm(20_001)))
    beats: list[None] = []
    monkeypatch.setattr(module, "BLOCK", 7)
    np.testing.assert_allclose(mfcc(to_float(pcm(20_001)), beat=lambda: beats.append(None)), whole, atol=1e-12)
    assert len(beats) == -(-len(whole) // 7)


def test_silence_is_finite_and_empty_audio_has_no_rows() -> None:
    assert np.isfinite(mfcc(np.zeros(5000, np.float32))).all()
    assert mfcc(np.zeros(0, np.float32)).shape == (0, 13)
    with pytest.raises(ValueError, match="mono"):
        mfcc(np.zeros((2, 640), np.float32))


def test_audio_is_rounded_to_16_bits_and_clipped() -> None:
    loud = np.array([1.5, -1.5, 0.25, 0.25 + 0.4 / 32768] * 200, np.float32)
    kept = np.array([32767, -32768, 8192, 8192] * 200) / 32768
    np.testing.assert_array_equal(mfcc(loud), mfcc(kept.astype(np.float32)))
