"""A track on its way to segments: what a cut changes of it, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lawdnet.audio.mel import Mel
from lawdnet.data import segments
from lawdnet.data.config import BuildConfig
from lawdnet.data.segments import video_segments
from lawdnet.data.tally import Tally
from lawdnet.face.track import Track
from lawdnet.landmarks.base import Frames
from lawdnet.landmarks.tracks import cut_in_two
from lawdnet.synthetic import write_talking_head
from lawdnet.types import Face, Float32, Video
from lawdnet.video import probe
from lawdnet.video.reading import decode

FACE = np.stack(np.meshgrid(np.linspace(40, 80, 17), np.linspace(40, 80, 4)), -1).reshape(68, 2).astype(np.float32)


def shaky_track(frames: int, seed: int) -> Track:
    """A trembling face that is now and then away for up to five ticks."""
    rng = np.random.default_rng(seed)
    points_N68x2 = (FACE + rng.normal(0, 2, (frames, 1, 2))).astype(np.float32)
    valid_N = np.ones(frames, bool)
    for start in range(7, frames - 7, 11):
        valid_N[start : start + rng.integers(1, 6)] = False
    points_N68x2[~valid_N] = np.nan
    return Track(start=100, points_N68x2=points_N68x2, valid_N=valid_N)


@pytest.mark.parametrize("smoothing", [0.0, 1.0, 3.0])
def test_a_split_span_is_as_one_that_was_cut_before(smoothing: float) -> None:
    config = BuildConfig(crop_width=80, smoothing=smoothing)
    for place in (1, 5, 18, 60, 61, 62, 63, 64, 119):
        track = shaky_track(120, seed=place)
        span = segments._TrackSpan(0, track, 200, 200, config)
        both = span, span.split(100 + place, 1)
        for got, part in zip(both, cut_in_two(track, 100 + place), strict=True):
            alone = segments._TrackSpan(0, part, 200, 200, config)
            assert (got.start, got.stop) == (alone.start, alone.stop)
            np.testing.assert_array_equal(got.usable_N, alone.usable_N)
            np.testing.assert_array_equal(got.valid_N, alone.valid_N)
            np.testing.assert_allclose(got.matrix_N33, alone.matrix_N33, rtol=1e-5)
            np.testing.assert_allclose(got.points_N68x2, alone.points_N68x2, atol=1e-3)


def test_a_cut_costs_no_more_in_a_long_track(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour of one person with a cut every few seconds is 90 000 ticks and hundreds of cuts."""
    fitted, fit_all = list[int](), segments.fit_all

    def counted(points_N68x2: Float32, width: int) -> Float32:
        fitted.append(len(points_N68x2))
        return fit_all(points_N68x2, width)

    monkeypatch.setattr(segments, "fit_all", counted)
    span = segments._TrackSpan(0, shaky_track(3000, seed=0), 200, 200, BuildConfig(crop_width=80))
    for number in range(1, 10):
        span = span.split(span.start + 150, number)
    assert sum(fitted[1:]) < 9 * 100


class StillFace:
    """Finds one face in every frame that it is shown."""

    name, reads_frames = "still", True
    model_sha256: str | None = None

    def faces(self, video: Video, frames: Frames) -> Iterator[list[Face]]:
        return ([Face(FACE)] for _ in frames)


def test_a_tick_more_than_promised_has_no_audio_and_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mp4"
    write_talking_head(path, identity=1, motion=2, speech=3, seconds=3.0, size=(160, 128))
    video = probe(path)
    assert video.num_frames == 75
    short = replace(video, num_frames=71, shown_T=video.shown_T[:71])

    def one_more(video: Video, *_: object) -> object:
        return (picture for number, picture in enumerate(decode(video.path)) if number < 72)

    for place in ("lawdnet.data.segments.decode_ticks", "lawdnet.landmarks.tracks.decode_ticks"):
        monkeypatch.setattr(place, one_more)
    tally = Tally()
    (segment,) = video_segments(
        short, name="a", split="train", source=StillFace(), extractors={"mel": Mel()},
        config=BuildConfig(crop_width=80), tally=tally,
    )  # fmt: skip
    assert (tally.frames, segment.num_frames, len(segment.features["mel"])) == (72, 63, 63)
