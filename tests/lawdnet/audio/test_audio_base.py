"""lawdnet.audio.base: the registry, and feature rows on the video's clock."""

from __future__ import annotations

import numpy as np
import pytest

from lawdnet.audio import EXTRACTORS, Mel, extractor_options, fit_to_video, frame_features, make_extractor, windows
from lawdnet.audio.base import Chunking, in_chunks
from lawdnet.types import Rejected, RejectReason


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)


def test_rows_at_25_hz_pass_unchanged() -> None:
    np.testing.assert_array_equal(fit_to_video(rows(40), 0.04, 40), rows(40))


@pytest.mark.parametrize(("frame_shift", "step"), [(0.02, 2), (0.01, 4), (0.005, 8)])
def test_faster_rows_are_taken_at_frame_times(frame_shift: float, step: int) -> None:
    np.testing.assert_array_equal(fit_to_video(rows(800), frame_shift, 800 // step), rows(800)[::step])


def test_rows_between_frames_are_interpolated() -> None:
    ramp = np.arange(0, 3, 1 / 30, dtype=np.float32)[:, None]  # row values are their times in s
    fitted = fit_to_video(ramp, 1 / 30, 75)
    np.testing.assert_allclose(fitted[:, 0], np.arange(75) / 25, atol=1e-5)
    assert fitted.dtype == np.float32


@pytest.mark.parametrize(("count", "fits"), [(47, False), (48, True), (50, True), (52, True), (53, False)])
def test_lengths_off_by_more_than_the_tolerance_are_rejected(count: int, fits: bool) -> None:
    if fits:
        fitted = fit_to_video(rows(count), 0.04, 50)
        assert fitted.shape == (50, 3)
        np.testing.assert_array_equal(fitted[: min(count, 50)], rows(count)[:50])
        np.testing.assert_array_equal(fitted[count:], np.repeat(rows(count)[-1:], max(0, 50 - count), 0))
        return
    with pytest.raises(Rejected, match=rf"{count} feature rows cover {count}\.0 frames, the video has 50") as caught:
        fit_to_video(rows(count), 0.04, 50)
    assert caught.value.reason is RejectReason.FEATURE_LENGTH


def test_no_rows_are_rejected_and_broken_ones_refused() -> None:
    with pytest.raises(Rejected, match="0 feature rows"):
        fit_to_video(rows(0), 0.04, 1)
    with pytest.raises(ValueError, match="finite"):
        fit_to_video(np.full((5, 2), np.nan, np.float32), 0.04, 5)


def test_windows_repeat_the_ends() -> None:
    values = rows(6)
    found = windows(values)
    assert found.shape == (6, 3, 5)
    np.testing.assert_array_equal(found[3], values[1:6].T)
    np.testing.assert_array_equal(found[0], values[[0, 0, 0, 1, 2]].T)
    np.testing.assert_array_equal(found[5], values[[3, 4, 5, 5, 5]].T)
    assert windows(values[:1], radius=4).shape == (1, 3, 9)
    with pytest.raises(ValueError, match="no feature rows"):
        windows(values[:0])


def test_extractors_are_made_by_name() -> None:
    extractor = make_extractor("mel", hops="mean")
    assert isinstance(extractor, Mel)
    assert extractor.feature_dim == 80
    with pytest.raises(ValueError, match=r"unknown audio features 'mell'; choose from .*mel"):
        make_extractor("mell")


def test_options_are_checked_by_name() -> None:
    assert extractor_options("mel") == {"hops": "stack"}
    assert set(EXTRACTORS) == {"mel", "deepspeech", "deepspeech2", "hubert", "whisper"}
    for name in set(EXTRACTORS) - {"mel"}:
        assert {"weights_dir": None, "device": "auto"}.items() <= extractor_options(name).items()
    assert extractor_options("hubert")["layer"] is None
    with pytest.raises(ValueError, match="hubert has no option 'layers'; choose from model, layer, batch, weights_dir"):
        make_extractor("hubert", layers=9)
    with pytest.raises(ValueError, match="unknown audio features 'mell'"):
        extractor_options("mell")


def test_frame_features_are_the_extractors_rows_on_the_videos_clock() -> None:
    audio = np.random.default_rng(0).normal(0, 0.1, 640 * 60).astype(np.float32)
    beats: list[None] = []
    values = frame_features(make_extractor("mel"), audio, 61, beat=lambda: beats.append(None))
    np.testing.assert_array_equal(values[:60], Mel().extract(audio))
    np.testing.assert_array_equal(values[60], values[59])
    assert len(beats) == 1


def test_rows_on_the_clock_are_not_copied() -> None:
    values = rows(50)
    assert np.shares_memory(fit_to_video(values, 0.04, 50), values)


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 16, 17, 22, 23, 100])
@pytest.mark.parametrize("batch", [1, 3])
def test_chunks_are_put_together_without_their_ends(count: int, batch: int) -> None:
    chunking = Chunking(rows=10, context=2, batch=batch)
    calls: list[int] = []

    def run(starts: list[int], length: int) -> np.ndarray:
        calls.append(len(starts))
        chunk = np.array(starts)[:, None] + np.arange(length)
        at_start, at_end = chunk[:, :1] > 0, chunk[:, -1:] < count - 1
        chunk[:, :2] = np.where(at_start, -1, chunk[:, :2])
        chunk[:, -2:] = np.where(at_end, -1, chunk[:, -2:])
        return chunk[..., None].astype(np.float32)

    beats: list[None] = []
    out = in_chunks(run, count, 1, chunking, lambda: beats.append(None))
    np.testing.assert_array_equal(out[:, 0], np.arange(count))
    assert len(beats) == len(calls)
    assert max(calls, default=0) <= batch


def test_chunks_must_have_a_middle() -> None:
    with pytest.raises(ValueError, match="chunks of 20 rows with a context of 10"):
        Chunking(rows=20, context=10)
