import numpy as np
import pytest

from lawdnet.face.lips import lip_gap


def face() -> np.ndarray:
    points = np.zeros((68, 2))
    points[36], points[45] = (-50, 0), (50, 0)
    points[[61, 62, 63]] = [(-10, 60), (0, 60), (10, 60)]
    points[[67, 66, 65]] = [(-10, 80), (0, 90), (10, 85)]
    return points


def test_the_gap_is_in_eye_distances_whatever_the_pose() -> None:
    angle, scale = 0.4, 3.0
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned = face() @ turn.T + np.array([200, 90])
    assert lip_gap(np.stack([face(), turned]).astype(np.float32)) == pytest.approx([0.25, 0.25], abs=1e-6)


def test_shut_lips_have_no_gap_and_unknown_ones_are_nan() -> None:
    shut, unknown = face(), face()
    shut[[67, 66, 65]] = shut[[61, 62, 63]]
    unknown[62] = np.nan
    gaps = lip_gap(np.stack([shut, unknown, np.zeros((68, 2))]).astype(np.float32))
    assert gaps[0] == 0
    assert np.isnan(gaps[1:]).all()
    assert lip_gap(np.zeros((0, 68, 2), np.float32)).shape == (0,)
