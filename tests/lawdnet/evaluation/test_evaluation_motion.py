"""Metrics of the mouth's motion from landmarks: of made landmarks, and of drawn heads with a made landmarker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lawdnet.data.manifest import Dataset
from lawdnet.data.segment_list import SegmentRef
from lawdnet.evaluation.choices import SAME, choice_sums, level_score
from lawdnet.evaluation.landmarks import (
    FETCH,
    LandmarksByRow,
    MeshLandmarker,
    find_bundle,
    scale_points,
)
from lawdnet.evaluation.motion import REFERENCE_WIDTH, Heard, motion_metrics, motion_sums
from lawdnet.evaluation.plan import foreign_segments
from lawdnet.evaluation.speech import PAUSE, quiet
from lawdnet.evaluation.validation import merge, metrics, plan, validate
from lawdnet.face.lips import lip_gap
from lawdnet.face.points import INNER_LIP_LOWER, INNER_LIP_UPPER, MOUTH, OUTER_EYE_CORNERS
from lawdnet.types import Float32, Landmarks
from tests.support.drawn_datasets import WIDTH, drawn_dataset, drawn_segment
from tests.support.fake_landmarker import FakeLandmarker

SEEN: dict[str, Any] = {"mouth_px": 32, "audio": "mel", "stored_width": WIDTH}
SHARED = Path(__file__).resolve().parents[3].parent / "shared"
EYES = 80.0
"""Eye distance of the made faces, in px."""
T = 60


def face(gap_T: Float32, lost: slice = slice(0)) -> Landmarks:
    """Faces whose lips are `gap_T` eye distances apart."""
    points = np.random.default_rng(0).uniform(100, 150, (1, 68, 2)).repeat(len(gap_T), 0).astype(np.float32)
    points[:, OUTER_EYE_CORNERS] = [(60, 100), (60 + EYES, 100)]
    x = np.linspace(80, 120, 5)
    points[:, INNER_LIP_UPPER] = np.stack([x, np.full(5, 180.0)], 1)
    points[:, INNER_LIP_LOWER] = points[:, INNER_LIP_UPPER]
    points[:, INNER_LIP_LOWER[1:-1], 1] += EYES * gap_T[:, None]
    valid_T = np.ones(len(gap_T), bool)
    valid_T[lost] = False
    points[~valid_T] = np.nan
    return Landmarks(points_T68x2=points, valid_T=valid_T, source="made")


def moving(seed: int = 0, frames: int = T) -> Float32:
    steps = np.random.default_rng(seed).normal(size=frames + 8)
    return (0.2 + 0.05 * np.convolve(steps, np.ones(9) / 3, "valid")).astype(np.float32)


def heard(quiet_T: np.ndarray | None = None, level: Float32 | None = None) -> Heard:
    silence = np.zeros(T, bool) if quiet_T is None else quiet_T
    return Heard(quiet_T=silence, level_A=np.empty(0, np.float32) if level is None else level, start=0, seed=(1,))


def measured(generated: Landmarks, truth: Landmarks | None = None, what: Heard | None = None) -> dict[str, float]:
    true = truth or face(moving())
    return motion_metrics(motion_sums({"": generated, "truth_": true}, true.points_T68x2, what or heard()))


def test_a_perfect_mouth_has_the_best_values() -> None:
    gap = moving()
    found = measured(face(gap), face(gap))
    assert found["opening_correlation"] == found["truth_opening_correlation"] == pytest.approx(1)
    assert (found["lmd"], found["lmd_eye"], found["landmarks_found"]) == (0, 0, 1)
    assert found["articulation"] == pytest.approx(1)
    assert found["landmark_jitter"] == found["truth_landmark_jitter"] > 0
    assert "truth_lmd" not in found


def test_half_the_movement_is_half_the_articulation_and_the_same_correlation() -> None:
    gap = moving()
    found = measured(face(0.5 * gap), face(gap))
    assert found["articulation"] == pytest.approx(0.5, rel=1e-4)
    assert found["opening_correlation"] == pytest.approx(1, abs=1e-5)


def test_a_distance_is_in_px_of_the_stated_crop_and_in_eye_distances() -> None:
    truth = face(moving())
    points = truth.points_T68x2.copy()
    points[:, MOUTH] += (3, 4)
    found = measured(Landmarks(points_T68x2=points, valid_T=truth.valid_T, source="made"), truth)
    assert found["lmd"] == pytest.approx(5, rel=1e-5)
    assert found["lmd_eye"] == pytest.approx(5 / EYES, rel=1e-5)


def test_jitter_is_the_root_mean_square_of_second_differences() -> None:
    still = face(np.full(T, 0.2, np.float32))
    points = still.points_T68x2.copy()
    points[::2, MOUTH, 0] += 1  # 1 0 1 0 …: second differences are ±2
    found = measured(Landmarks(points_T68x2=points, valid_T=still.valid_T, source="made"), still)
    assert found["landmark_jitter"] == pytest.approx(2, rel=1e-5)
    assert found["truth_landmark_jitter"] == 0


def test_a_lost_face_counts_and_is_not_dropped() -> None:
    gap = moving()
    found = measured(face(gap, lost=slice(0, 30)), face(gap))
    assert found["landmarks_found"] == 0.5
    assert found["truth_landmarks_found"] == 1
    assert found["opening_correlation"] < 0.9, "half of the truth's movement is not followed"
    assert found["lmd"] == 0, "only known where the face was found"
    never = measured(face(gap, lost=slice(None)), face(gap))
    assert (never["landmarks_found"], never["opening_correlation"]) == (0, 0)
    assert "lmd" not in never


def test_nothing_is_said_about_faces_that_the_network_does_not_see() -> None:
    gap = moving()
    assert measured(face(gap), face(gap, lost=slice(0, 31))) == {}
    assert motion_metrics({}) == {}


def test_the_opening_in_silence_is_that_of_silent_frames() -> None:
    gap = moving()
    silent = np.zeros(T, bool)
    silent[10:20] = True
    gap[silent] = 0.1
    found = measured(face(gap), face(np.where(silent, 0, gap).astype(np.float32)), heard(silent))
    assert found["silence_opening"] == pytest.approx(0.1, rel=1e-4)
    assert found["truth_silence_opening"] == 0
    assert "silence_opening" not in measured(face(gap))


def test_segments_have_means_of_their_own_and_sums_add_up() -> None:
    parts = []
    for seed, offset in ((1, 0.0), (2, 5.0)):
        truth = face(moving(seed))
        parts.append(motion_sums({"": face(moving(seed) + offset), "truth_": truth}, truth.points_T68x2, heard()))
    assert motion_metrics(merge(parts))["opening_correlation"] == pytest.approx(1, abs=1e-4)


# The floor: the gap against the level


def test_a_mouth_that_follows_the_level_chooses_its_own_audio() -> None:
    level = moving(3, T + 40)
    gap = level[:T].copy()
    found = measured(face(gap), face(moving(4)), heard(level=level))
    assert [found[f"opening_level_{span}"] for span in (9, 25, 50)] == [pytest.approx(1, abs=0.05)] * 3
    assert 0.2 < found["truth_opening_level_9"] < 0.8, "this one moves as it likes"


def test_a_choice_has_other_audio_at_least_five_frames_away() -> None:
    asked: list[tuple[int, int, int]] = []

    def score(mouth: int, audio: int, length: int) -> float:
        asked.append((mouth, audio, length))
        return -abs(mouth + 7 - audio)

    sums = choice_sums("x_", score, None, mouths=30, audio=60, start=7, seed=(0,))
    own, other = asked[::2], asked[1::2]
    assert all(audio == mouth + 7 for mouth, audio, _ in own)
    assert min(abs(audio - mouth - 7) for mouth, audio, _ in other) >= 5
    assert max(audio + length for _, audio, length in other) <= 60
    assert sums == {"x_shifted_9_choices": 22, "x_shifted_9_right": 22, "x_shifted_25_choices": 6,
                    "x_shifted_25_right": 6}  # fmt: skip


def test_equal_scores_are_no_choice_and_a_lost_mouth_is_wrong() -> None:
    assert (
        choice_sums("", lambda *_: 1 + SAME / 2, lambda *_: 1, mouths=9, audio=30, start=0, others=9, seed=(0,)) == {}
    )
    gap = np.full(30, np.nan, np.float32)
    sums = choice_sums("", level_score(gap, moving()), None, mouths=30, audio=60, start=0, seed=(0,))
    assert sums["shifted_9_choices"] == 22
    assert sums["shifted_9_right"] == 0


def test_foreign_audio_is_of_another_video_whatever_the_number_of_workers() -> None:
    refs = [SegmentRef(f"{v}-{i}", v, "val", 54, "", i) for v, n in (("a", 2), ("b", 1), ("c", 1)) for i in range(n)]
    found = foreign_segments(refs)
    assert [found[ref.segment_id].video_id for ref in refs] == ["b", "b", "c", "a"]
    assert foreign_segments(refs[:2]) == {}


# Silence


def test_a_pause_is_far_below_the_speech_of_its_recording_and_lasts() -> None:
    def mel(level_db: np.ndarray) -> Float32:
        rows = np.full((len(level_db), 320), -1, np.float32)
        rows[:, 7] = (level_db + 100) / 40 - 1
        return rows

    loud = np.full(60, -30.0)
    loud[20:30] = -66  # above the absolute limit, but far below the speech
    loud[40 : 40 + PAUSE - 1] = -66
    assert np.flatnonzero(quiet(mel(loud))).tolist() == list(range(20, 30))
    assert not quiet(mel(np.full(60, -60.0))).any(), "an even noise is no pause"
    assert quiet(mel(np.full(60, -80.0))).all()


# In a validation, with drawn heads


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    videos = {f"val_{n}": [drawn_segment(f"val_{n}", n)] for n in range(2)}
    return drawn_dataset(tmp_path_factory.mktemp("motion") / "d", videos)


class Deaf(nn.Module):
    """Shows the first reference, whatever is said."""

    def forward(self, source: Tensor, reference: Tensor, audio: Tensor) -> Tensor:
        return reference[:, :3]


def test_a_deaf_generator_is_the_baseline(dataset: Dataset) -> None:
    refs, landmarker = plan(dataset.segments()), FakeLandmarker()
    found = metrics(validate(Deaf(), refs, **SEEN, landmarks=LandmarksByRow(landmarker)))
    names = ("opening_correlation", "articulation", "lmd", "lmd_eye", "landmark_jitter", "landmarks_found",
             "opening_level_9", "opening_level_25", "silence_opening")  # fmt: skip
    for name in names:
        assert found[name] == pytest.approx(found[f"baseline_{name}"], rel=1e-6)
    assert abs(found["opening_correlation"]) < 0.5
    assert found["truth_opening_correlation"] > 0.95
    assert found["truth_opening_level_9"] > 0.6
    assert found["lmd"] > 0


def test_the_truth_is_looked_at_once(dataset: Dataset) -> None:
    refs, landmarker = plan(dataset.segments()), FakeLandmarker()
    landmarks = LandmarksByRow(landmarker)
    first = validate(Deaf(), refs, **SEEN, landmarks=landmarks)
    assert landmarker.frames == 3 * 2 * 45
    assert validate(Deaf(), refs, **SEEN, landmarks=landmarks) == first
    assert landmarker.frames == 3 * 2 * 45 + 2 * 45
    other = validate(Deaf(), refs, **SEEN, landmarks=landmarks, seed=1)
    assert landmarker.frames == 2 * 3 * 2 * 45 + 2 * 45
    assert other != first


def test_two_workers_measure_what_one_does(dataset: Dataset) -> None:
    whole = metrics(validate(Deaf(), plan(dataset.segments()), **SEEN, landmarks=LandmarksByRow(FakeLandmarker())))
    parts = [
        validate(Deaf(), plan(dataset.segments(), rank, 2), **SEEN, landmarks=LandmarksByRow(FakeLandmarker()))
        for rank in range(2)
    ]
    assert metrics(merge(parts)) == pytest.approx(whole, rel=1e-9)


def test_points_keep_their_place_in_a_crop_of_another_width() -> None:
    points = np.array([[[-0.5, -0.5], [79.5, 103.5], [10, 20]]], np.float32)
    np.testing.assert_allclose(
        scale_points(points, 80, REFERENCE_WIDTH), [[[-0.5, -0.5], [255.5, 332.3], [33.1, 65.1]]], rtol=1e-6
    )


# With the real network


def test_without_the_network_the_error_says_which_command_fetches_it() -> None:
    with pytest.raises(ValueError, match=FETCH):
        find_bundle()


@pytest.fixture(scope="module")
def real_landmarker() -> MeshLandmarker:
    """The published network, from shared/ beside the checkout."""
    if not (SHARED / "weights" / "face_landmarker.task").is_file():
        pytest.skip("needs ../shared/weights/face_landmarker.task")
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    return MeshLandmarker(find_bundle(SHARED / "weights"))


@pytest.mark.parametrize("width", [40, 80])
def test_the_real_network_sees_how_far_a_drawn_mouth_is_open(real_landmarker: MeshLandmarker, width: int) -> None:
    from lawdnet.data.sampling import decode_jpeg

    segment = drawn_segment("val", 1)
    frames = np.stack([decode_jpeg(d, width * 13 // 10, width, stored_width=WIDTH) for d in segment.frames_jpeg])
    around = scale_points(segment.landmarks_T68x2, WIDTH, width)
    found = real_landmarker.find(frames, around)
    assert found.valid_T.all()
    assert np.corrcoef(lip_gap(found.points_T68x2), lip_gap(around))[0, 1] > 0.95
    again = real_landmarker.find(frames, around[::-1])
    np.testing.assert_array_equal(found.points_T68x2, again.points_T68x2)


def test_the_real_network_finds_no_face_in_noise(real_landmarker: MeshLandmarker) -> None:
    torch.manual_seed(0)
    noise = (255 * torch.rand(3, 104, 80, 3)).numpy().astype(np.uint8)
    segment = drawn_segment("val", 1)
    found = real_landmarker.find(noise, segment.landmarks_T68x2[:3])
    assert not found.valid_T.any()
    assert np.isnan(found.points_T68x2).all()
