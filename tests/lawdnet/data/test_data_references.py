import numpy as np
import pytest

from lawdnet.data.references import STILL, diverse, looks, resting_start
from lawdnet.types import CLIP_FRAMES, NUM_REFERENCES


def face(gap: float = 0.0, wide: float = 40.0, turn: float = 0.0, scale: float = 1.0) -> np.ndarray:
    points = np.zeros((68, 2), np.float32)
    points[[0, 16, 36, 45]] = [(0, 50), (100, 50), (20, 40), (80, 40)]
    points[30] = (50 + turn, 60)
    points[[48, 54]] = [(50 - wide / 2, 80), (50 + wide / 2, 80)]
    points[[62, 66]] = [(50, 80), (50, 80 + gap)]
    return points * scale


def test_a_look_is_mouth_and_pose_whatever_the_size() -> None:
    faces = np.stack([face(), face(gap=30), face(wide=60), face(turn=-15), face(gap=30, scale=3)])
    wanted = [[0, 2 / 3, 0], [0.5, 2 / 3, 0], [0, 1, 0], [0, 2 / 3, -0.25], [0.5, 2 / 3, 0]]
    np.testing.assert_allclose(looks(faces), wanted, atol=1e-6)


def test_a_face_without_size_gives_numbers() -> None:
    assert np.isfinite(looks(np.zeros((9, 68, 2), np.float32))).all()


@pytest.fixture
def segment() -> tuple[np.ndarray, np.ndarray]:
    """Eight clips of one look each, evenly spread; the second half of every clip is blurred."""
    look_TL = np.repeat(np.linspace(0, 1, 8), CLIP_FRAMES)[:, None] * [1.0, 0.0, 0.0]
    bytes_T = np.tile([900] * 5 + [500] * 4, 8)
    return look_TL.astype(np.float32), bytes_T.astype(np.int32)


def test_diverse_references_are_five_other_clips_and_sharp(segment: tuple[np.ndarray, np.ndarray]) -> None:
    for seed in range(50):
        clip = seed % 8
        chosen = diverse(np.random.default_rng(seed), clip, *segment)
        clips = {frame // CLIP_FRAMES for frame in chosen}
        assert len(clips) == NUM_REFERENCES
        assert clip not in clips
        assert all(frame % CLIP_FRAMES < 5 for frame in chosen)


def test_they_spread_wider_than_chance() -> None:
    def closest(clips: np.ndarray) -> int:
        return int(np.diff(np.sort(clips)).min())

    def span(clips: np.ndarray) -> int:
        return int(np.ptp(clips))

    look_TL = np.repeat(np.arange(24.0), CLIP_FRAMES)[:, None].astype(np.float32)
    bytes_T = np.full(24 * CLIP_FRAMES, 900, np.int32)
    rng = np.random.default_rng(0)
    drawn = [rng.choice(24, NUM_REFERENCES, False) for _ in range(50)]
    chosen = [np.array(diverse(np.random.default_rng(seed), 3, look_TL, bytes_T)) // CLIP_FRAMES for seed in range(50)]
    assert min(map(closest, chosen)) >= 3 > np.mean([*map(closest, drawn)])
    assert min(map(span, chosen)) >= 18 > np.mean([*map(span, drawn)])


def test_the_same_seed_chooses_the_same_and_seeds_differ(segment: tuple[np.ndarray, np.ndarray]) -> None:
    chosen = [diverse(np.random.default_rng(seed), 0, *segment) for seed in (*range(20), *range(20))]
    assert chosen[:20] == chosen[20:]
    assert len(set(chosen[:20])) > 5


def test_a_mouth_at_rest_is_found_and_only_where_the_shown_one_speaks() -> None:
    gap_T = np.full(54, 0.3, np.float32)
    gap_T[30:41] = 0.02
    starts = np.arange(5, 54 - CLIP_FRAMES + 1, dtype=np.int32)
    found = resting_start(gap_T, 0, starts)
    assert found in (30, 31, 32)
    assert resting_start(gap_T, 30, np.arange(20, dtype=np.int32)) is None, "the shown mouth is the still one"
    assert resting_start(gap_T, 0, np.arange(20, dtype=np.int32)) is None, "all others speak as well"
    gap_T[30:41] = 0.31 * STILL
    assert resting_start(gap_T, 0, starts) is None
    gap_T[30:41] = 0.29 * STILL
    assert resting_start(gap_T, 0, starts) is not None
