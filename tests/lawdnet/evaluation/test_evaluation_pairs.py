"""How the mouth moves in a generated video beside the real one, with a made landmarker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lawdnet.evaluation.appearance import Appearance
from lawdnet.evaluation.pairs import TOGETHER, compare_faces, compare_landmarks
from lawdnet.evaluation.videos import face_of
from lawdnet.landmarks import source_for
from lawdnet.synthetic import write_talking_head
from lawdnet.types import Float32, Landmarks, UInt8
from lawdnet.video import decode, write_video
from tests.support.fake_landmarker import FakeLandmarker

SECONDS = 4.4


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of one drawn head that says different things, and a silent copy of the first."""
    folder: Path = tmp_path_factory.mktemp("pairs")
    for speech, name in enumerate(("real", "other")):
        path = folder / f"{name}.mp4"
        write_talking_head(path, identity=1, motion=2, speech=3 + speech, seconds=SECONDS, size=(160, 128))
    write_video(folder / "silent.mp4", [frame for _, frame in decode(folder / "real.mp4")])
    return folder


def landmarks(path: Path) -> Landmarks:
    return face_of(path, source_for(path, "openface"))


def test_a_video_beside_itself(clips: Path) -> None:
    real, landmarker = clips / "real.mp4", FakeLandmarker()
    found = compare_faces(real, real, landmarks(real), landmarker, Appearance())
    assert landmarker.frames == 2 * round(25 * SECONDS) > 2 * TOGETHER
    assert found["opening_correlation"] == pytest.approx(1)
    assert found["truth_opening_correlation"] > 0.95
    assert (found["lmd"], found["landmarks_found"]) == (0, 1)
    assert found["articulation"] == pytest.approx(1)
    assert found["opening_level_25"] == found["truth_opening_level_25"] > 0.8


def test_other_words_do_not_follow_the_truth_but_their_own_audio(clips: Path) -> None:
    found = compare_faces(
        clips / "real.mp4", clips / "other.mp4", landmarks(clips / "real.mp4"), FakeLandmarker(), Appearance()
    )
    assert found["opening_correlation"] < 0.7
    assert found["lmd"] > 0.5
    assert found["opening_level_25"] > 0.8 > found["truth_opening_level_25"]


def test_without_audio_or_a_landmarker_the_rest_is_measured(clips: Path) -> None:
    true = landmarks(clips / "real.mp4")
    silent = compare_faces(clips / "real.mp4", clips / "silent.mp4", true, FakeLandmarker(), Appearance())
    assert silent["opening_correlation"] > 0.9
    assert not [name for name in silent if "level" in name or "silence" in name]
    assert compare_faces(clips / "real.mp4", clips / "silent.mp4", true, None, Appearance()) == {}


def test_frames_without_a_face_are_not_looked_at_and_count_as_not_found(clips: Path) -> None:
    true = landmarks(clips / "real.mp4")
    hidden = true.points_T68x2.copy()
    hidden[20:60] = np.nan
    valid_T = np.asarray(np.isfinite(hidden).all((1, 2)))
    landmarker = FakeLandmarker()
    partly = Landmarks(points_T68x2=hidden, valid_T=valid_T, source="openface")
    found = compare_faces(clips / "real.mp4", clips / "real.mp4", partly, landmarker, Appearance())
    assert landmarker.frames == 2 * int(valid_T.sum())
    assert found["landmarks_found"] == pytest.approx(valid_T.mean())


def test_landmarks_of_one_source_can_be_compared_without_the_network(clips: Path) -> None:
    true, made = landmarks(clips / "real.mp4"), landmarks(clips / "other.mp4")
    found = compare_landmarks(clips / "other.mp4", true, made)
    assert found["opening_correlation"] < 0.7
    assert found["lmd"] > 0.5
    same = compare_landmarks(clips / "real.mp4", true, true)
    assert (same["lmd"], same["opening_correlation"]) == (0, pytest.approx(1))


def test_the_appearance_sees_aligned_crops(clips: Path) -> None:
    class Seen(Appearance):
        def add(  # type: ignore[override]
            self, row: str, true_THW3: UInt8, shown_THW3: UInt8, points_T68x2: Float32
        ) -> None:
            shapes.append((row, true_THW3.shape, shown_THW3.shape, points_T68x2.shape))
            assert np.abs(points_T68x2.mean((0, 1)) - (128, 166)).max() < 25

    shapes: list[tuple[object, ...]] = []
    compare_faces(clips / "real.mp4", clips / "other.mp4", landmarks(clips / "real.mp4"), None, Seen())
    assert shapes[0] == ("", (TOGETHER, 333, 256, 3), (TOGETHER, 333, 256, 3), (TOGETHER, 68, 2))
