"""lawdnet.audio.base: the registry, and feature rows on the video's clock."""

from __future__ import annotations

import numpy as np
import pytest

from lawdnet.audio import Mel, fit_to_video, make_extractor, windows
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
    with pytest.raises(ValueError, match=r"unknown audio features 'mell': choose from .*mel"):
        make_extractor("mell")
