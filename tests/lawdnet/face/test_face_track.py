import numpy as np
import pytest

from lawdnet.face.track import fill_gaps, runs
from lawdnet.types import Landmarks


def face_at(*places: float | None) -> Landmarks:
    """Return one row per position: a face with all its points there; None gives an invalid row of zeros."""
    points = np.array([place or 0 for place in places], np.float32)[:, None, None].repeat(68, 1).repeat(2, 2)
    return Landmarks(points_T68x2=points, valid_T=np.array([p is not None for p in places], bool), source="test")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", []),
        ("000", []),
        ("111", [(0, 3)]),
        ("0110100", [(1, 3), (4, 5)]),
        ("1001", [(0, 1), (3, 4)]),
    ],
)
def test_runs(flags: str, expected: list[tuple[int, int]]) -> None:
    assert runs(np.array([flag == "1" for flag in flags], bool)) == expected


def test_short_gaps_are_bridged_by_a_straight_line() -> None:
    filled = fill_gaps(face_at(10, None, None, 40, None, 60))
    assert filled.valid_T.all()
    np.testing.assert_allclose(filled.points_T68x2[:, 5, 1], [10, 20, 30, 40, 50, 60])


def test_long_gaps_and_open_ends_stay_invalid() -> None:
    filled = fill_gaps(face_at(None, 1, None, None, None, 5, None, None, 8, None), max_gap=2)
    np.testing.assert_array_equal(filled.valid_T, [0, 1, 0, 0, 0, 1, 1, 1, 1, 0])
    assert (filled.points_T68x2[[0, 2, 3, 4, 9]] == 0).all()


def test_rows_that_are_not_finite_count_as_gaps() -> None:
    landmarks = face_at(10, 20, 30, 40)
    landmarks.points_T68x2[1, 3, 0] = np.nan
    landmarks.points_T68x2[3, 0, 0] = np.inf
    filled = fill_gaps(landmarks)
    np.testing.assert_array_equal(filled.valid_T, [1, 1, 1, 0])
    np.testing.assert_allclose(filled.points_T68x2[1], 20)


def test_the_input_is_not_changed_and_nothing_valid_is_no_error() -> None:
    landmarks = face_at(1, None, 3)
    fill_gaps(landmarks)
    assert not landmarks.valid_T[1]
    assert not fill_gaps(face_at(None, None)).valid_T.any()
    assert fill_gaps(face_at()).points_T68x2.shape == (0, 68, 2)
