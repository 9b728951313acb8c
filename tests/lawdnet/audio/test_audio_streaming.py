"""lawdnet.audio.streaming: audio that comes in pieces gives what the whole gives."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from lawdnet.audio import Mel, frame_features, windows
from lawdnet.audio.streaming import WINDOWED, Reach, StreamingFeatures, StreamingResampler, StreamingWindows
from lawdnet.types import Float32
from tests.support.live_heads import noise
from tests.support.tiny_networks import tiny


def pieces(audio: Float32, seed: int, largest: int = 3000) -> list[Float32]:
    """Cut at random places, sometimes into nothing."""
    rng = np.random.default_rng(seed)
    cuts = np.cumsum(rng.integers(0, largest, size=2 * len(audio) // largest + 20))
    return np.split(audio, cuts[cuts < len(audio)])


@pytest.mark.parametrize("hops", ["stack", "mean"])
@pytest.mark.parametrize("frames", [0.2, 1, 2.5, 40, 101.3])
@pytest.mark.parametrize("seed", range(4))
def test_mel_rows_equal_those_of_the_whole(hops: str, frames: float, seed: int) -> None:
    mel, audio = Mel(hops=hops), noise(frames)
    stream = StreamingFeatures(mel)
    for _ in range(2):  # the second waveform knows nothing of the first
        rows = [stream.push(piece) for piece in pieces(audio, seed)] + [stream.finish()]
        np.testing.assert_allclose(np.concatenate(rows), mel.extract(audio), atol=1e-5)


def test_a_mel_row_leaves_as_soon_as_its_frame_is_over() -> None:
    stream = StreamingFeatures(Mel())
    audio = noise(10)
    assert [len(stream.push(audio[start : start + 320])) for start in range(0, 3200, 320)] == [0, 1] * 5
    assert stream.look_ahead == 1 / 25
    assert len(stream.push(audio[3200:3839])) == 0
    assert len(stream.finish()) == 1


def test_held_audio_is_bounded() -> None:
    stream = StreamingFeatures(Mel())
    for _ in range(100):
        stream.push(noise(5))
    assert len(stream._held) < 3 * 640


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 30])
@pytest.mark.parametrize("seed", range(3))
def test_windows_equal_those_of_the_whole(rows: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(rows, 7)).astype(np.float32)
    stream = StreamingWindows()
    *early, last = pieces(values, seed, largest=4)
    made = [stream.push(part) for part in early] + [stream.finish(last)]
    np.testing.assert_array_equal(np.concatenate(made), windows(values))
    assert len(StreamingWindows().push(values)) == max(0, rows - 2)


@pytest.mark.parametrize("name", ["deepspeech", "deepspeech2", "hubert"])
def test_other_extractors_hear_a_window(name: str, tmp_path: Path) -> None:
    extractor = tiny(name, tmp_path)
    audio = noise(240)
    whole = frame_features(extractor, audio, 240)
    stream = StreamingFeatures(extractor)
    counts = []
    rows = []
    for piece in np.split(audio, 240):
        rows.append(stream.push(piece))
        counts.append(len(rows[-1]))
    rows.append(stream.finish())
    made = np.concatenate(rows)
    assert made.shape == whole.shape
    assert set(counts) == {0, WINDOWED.block}
    first = next(number for number, count in enumerate(counts, 1) if count)
    assert first / 25 == pytest.approx(stream.look_ahead)
    error_TC = (made - whole) / np.sqrt(whole.var(axis=0).mean())  # in deviations of the feature over time
    assert np.sqrt((error_TC[WINDOWED.before :] ** 2).mean()) < 0.1
    assert np.sqrt((error_TC**2).mean()) < 0.25  # before, the statistics of the window change quickly
    shifted = [np.abs(np.roll(made, by, 0)[10:-10] - whole[10:-10]).mean() for by in (-1, 0, 1)]
    assert np.argmin(shifted) == 1


def test_a_reach_that_is_not_possible_is_refused() -> None:
    with pytest.raises(ValueError, match="after and block at least 1"):
        Reach(before=0, after=0)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 24000, 44100, 48000])
def test_ten_minutes_of_another_rate_do_not_drift(rate: int) -> None:
    marks = [0.5, 300.0, 599.5]
    audio = np.zeros(600 * rate, np.float32)
    for at in marks:
        place = np.arange(round((at - 0.01) * rate), round((at + 0.01) * rate))
        audio[place] = 0.8 * np.exp(-(((place / rate - at) / 1e-3) ** 2))
    stream = StreamingResampler(rate)
    made = np.concatenate([stream.push(piece) for piece in pieces(audio, 0, largest=rate)] + [stream.finish()])
    assert len(made) == 600 * 16_000
    for at in marks:
        near = np.arange(round((at - 0.02) * 16_000), round((at + 0.02) * 16_000))
        assert abs(np.average(near, weights=made[near].clip(0)) - at * 16_000) < 0.1


@pytest.mark.parametrize("samples", [1, 7, 441, 960, 44_099, 44_100, 44_101])
def test_the_number_of_samples_is_exact(samples: int) -> None:
    stream = StreamingResampler(44_100)
    for _ in range(2):
        made = [stream.push(piece) for piece in pieces(noise(100, rate=44_100)[:samples], 3)] + [stream.finish()]
        assert len(np.concatenate(made)) == -(-samples * 16_000 // 44_100)
    assert len(stream.finish()) == 0


def test_a_sine_keeps_its_pitch_and_the_same_rate_is_not_touched() -> None:
    time = np.arange(48_000) / 48_000
    sine = (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    stream = StreamingResampler(48_000)
    made = np.concatenate([*itertools.chain(stream.push(p) for p in pieces(sine, 1)), stream.finish()])
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(made[100:-100], expected[100:-100], atol=2e-3)
    same = StreamingResampler(16_000)
    assert same.push(sine) is sine
    assert len(same.finish()) == 0
