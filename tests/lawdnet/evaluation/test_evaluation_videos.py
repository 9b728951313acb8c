"""Sync of whole videos: which stretches are scored, and with which audio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lawdnet.audio import load_audio
from lawdnet.audio.mel import Mel
from lawdnet.evaluation import videos
from lawdnet.evaluation.videos import face_of, sync_of
from lawdnet.landmarks.openface import OpenFace
from lawdnet.synthetic import write_talking_head
from lawdnet.types import Landmarks

FRAMES = 110


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("clip") / "talk.mp4"
    write_talking_head(path, identity=1, motion=2, speech=3, seconds=FRAMES / 25, size=(160, 128))
    return path


@pytest.fixture(scope="module")
def face(clip: Path) -> Landmarks:
    return face_of(clip, OpenFace())


class Recorder:
    """A scorer that notes what it is given; the offset of each stretch is its number."""

    def __init__(self, feature: str | None) -> None:
        self.feature = feature
        self.lengths: list[int] = []
        self.sounds: list[Any] = []

    def __call__(
        self, pictures: Sequence[bytes], points: np.ndarray, features: Mapping[str, np.ndarray], wave: np.ndarray
    ) -> dict[str, float]:
        assert len(pictures) == len(points)
        assert np.ptp(points[:, :, 0].mean(1)) < 20, "in px of an aligned crop the face stays where it is"
        self.lengths.append(len(pictures))
        self.sounds.append(features[self.feature] if self.feature else wave)
        return {"sync_offset": len(self.lengths) - 1.0, "sync_distance": len(pictures), "sync_confidence": 0.5}


def without(face: Landmarks, start: int, stop: int) -> Landmarks:
    points = face.points_T68x2.copy()
    points[start:stop] = np.nan
    return Landmarks(points_T68x2=points, valid_T=np.isfinite(points).all((1, 2)), source="test")


def test_a_face_has_a_row_per_tick(face: Landmarks) -> None:
    assert len(face.valid_T) == FRAMES
    assert face.valid_T.all()


def test_stretches_are_scored_with_their_own_audio(clip: Path, face: Landmarks) -> None:
    judge: Any = Recorder("mel")
    found = sync_of(clip, without(face, 45, 60), judge)
    assert judge.lengths == [45, 50]
    mel_TC = Mel().extract(load_audio(clip, num_frames=FRAMES))
    np.testing.assert_array_equal(judge.sounds[0], mel_TC[:45])
    np.testing.assert_array_equal(judge.sounds[1], mel_TC[60:])
    assert found["sync_distance"] == pytest.approx((45 * 45 + 50 * 50) / 95)
    assert (found["sync_offset"], found["sync_in_time"]) == (0.5, 1)


def test_long_videos_are_scored_in_parts_and_short_rests_left_out(
    clip: Path, face: Landmarks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(videos, "MAX_FRAMES", 40)
    judge: Any = Recorder(None)
    sync_of(clip, face, judge)
    assert judge.lengths == [40, 40], "the last 30 frames are too few to search"
    wave = load_audio(clip, num_frames=FRAMES)
    np.testing.assert_array_equal(judge.sounds[1], wave[40 * 640 : 80 * 640])


def test_too_short_a_face_has_no_sync(clip: Path, face: Landmarks) -> None:
    assert sync_of(clip, without(face, 30, FRAMES), Recorder("mel")) == {}  # type: ignore[arg-type]
