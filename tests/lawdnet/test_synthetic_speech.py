"""Synthesised speech: timing, silence, lip closures, and that the mouth can be heard."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lawdnet.audio.base import windows
from lawdnet.audio.mel import Mel
from lawdnet.face.track import runs
from lawdnet.synthetic import Speech, make_speech
from lawdnet.types import SAMPLES_PER_FRAME

SEEDS = range(20)


@pytest.fixture(scope="module")
def spoken() -> list[Speech]:
    return [make_speech(4, seed) for seed in SEEDS]


@pytest.mark.parametrize(("seconds", "frames"), [(0.04, 1), (1.0, 25), (2.53, 63), (4.0, 100)])
def test_every_frame_has_640_samples(seconds: float, frames: int) -> None:
    speech = make_speech(seconds, 3)
    assert speech.opening_T.shape == speech.spread_T.shape == (frames,)
    assert speech.audio_S.shape == (frames * SAMPLES_PER_FRAME,)
    assert {a.dtype for a in (speech.audio_S, speech.opening_T, speech.spread_T)} == {np.dtype(np.float32)}


def test_values_are_in_range_and_use_it(spoken: list[Speech]) -> None:
    opening, spread, audio = (
        np.concatenate([getattr(speech, name) for speech in spoken]) for name in ("opening_T", "spread_T", "audio_S")
    )
    assert opening.min() == 0
    assert 0.9 < opening.max() <= 1
    assert -1 <= spread.min() < -0.6
    assert 0.6 < spread.max() <= 1
    assert 0.3 < np.abs(audio).max() < 0.95


def test_a_seed_decides_the_audio() -> None:
    first, again, other = make_speech(2, 5), make_speech(2, 5), make_speech(2, 6)
    assert first.audio_S.tobytes() == again.audio_S.tobytes()
    assert not np.array_equal(first.audio_S, other.audio_S)


def test_every_clip_has_silence_with_the_mouth_shut(spoken: list[Speech]) -> None:
    for speech in spoken:
        level_T = np.sqrt(np.square(speech.audio_S.reshape(-1, SAMPLES_PER_FRAME)).mean(1))
        quiet = runs(level_T < 1e-3)
        start, stop = max(quiet, key=lambda run: run[1] - run[0])
        assert stop - start >= 4
        assert speech.opening_T[start + 1 : stop].max() == 0


def test_some_clips_start_silent_and_some_do_not(spoken: list[Speech]) -> None:
    starts = [float(np.abs(speech.audio_S[:2000]).max()) < 0.01 for speech in spoken]
    assert 3 <= sum(starts) <= len(starts) - 3


def test_lips_that_shut_stay_shut_for_two_frames(spoken: list[Speech]) -> None:
    """Only a closure that is cut off by the end of the clip may be shorter."""
    closures = [run for speech in spoken for run in runs(speech.opening_T == 0) if run[0] > 0 and run[1] < 100]
    assert len(closures) > 60
    assert min(stop - start for start, stop in closures) >= 2


def test_lips_close_with_the_voice_on() -> None:
    """An m is audible through shut lips, so the opening is not simply the loudness."""
    speeches = [make_speech(8, seed) for seed in range(3)]
    levels = [np.sqrt(np.square(s.audio_S.reshape(-1, SAMPLES_PER_FRAME)).mean(1)) for s in speeches]
    shut = np.concatenate([level[s.opening_T == 0] for level, s in zip(levels, speeches, strict=True)])
    assert (shut > 0.02).mean() > 0.03


def test_syllables_come_at_a_human_rate() -> None:
    opening_T = np.concatenate([make_speech(8, seed).opening_T for seed in range(5)])
    peaks = np.sum((opening_T[1:-1] > opening_T[:-2]) & (opening_T[1:-1] >= opening_T[2:]))
    assert 2 < peaks / 40 < 5


def _heard(speeches: list[Speech]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rows = [windows(Mel("mean").extract(speech.audio_S)).reshape(len(speech.opening_T), -1) for speech in speeches]
    return np.concatenate(rows), np.concatenate([speech.opening_T for speech in speeches])


def test_opening_can_be_heard_in_other_voices() -> None:
    """Ridge regression on five mel rows, fitted to some speakers and tested on others."""
    x, y = _heard([make_speech(8, seed) for seed in range(100, 120)])
    x_new, y_new = _heard([make_speech(8, seed) for seed in range(200, 206)])
    centre, scale = x.mean(0), x.std(0) + 1e-6
    a = np.column_stack([(x - centre) / scale, np.ones(len(x))])
    weights = np.linalg.solve(a.T @ a + 30 * np.eye(a.shape[1]), a.T @ y)
    guess = np.column_stack([(x_new - centre) / scale, np.ones(len(x_new))]) @ weights
    assert np.corrcoef(guess, y_new)[0, 1] > 0.97


def test_too_short_to_show_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter than one frame"):
        make_speech(0.01, 0)
