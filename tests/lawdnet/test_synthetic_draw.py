"""Drawn heads: landmarks match the image, poses stay inside, seeds determine everything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lawdnet.face.align import fit_all
from lawdnet.face.geometry import crop_height
from lawdnet.synthetic import Identity, Pose, TalkingHead, make_identity, make_motion
from lawdnet.synthetic.draw import EYE_WHITE, MOUTH_INTERIOR
from lawdnet.synthetic.shape import curve
from lawdnet.types import Float32, UInt8

POSES = [Pose(), Pose(shift=(0.5, -0.3), scale=1.07), Pose(shift=(-0.37, 0.8), scale=0.93, yaw=0.1, pitch=-0.06)]


def plain(seed: int) -> Identity:
    """Return a person without anything that hides an outline."""
    return replace(make_identity(seed), beard="none", glasses=False, hair_style="bald")


def share_of(frame: UInt8, inside: tuple[int, ...], outside: tuple[int, ...]) -> Float32:
    """Return the fraction of each px that shows the first of two flat colours."""
    a, b = np.array(outside, float), np.array(inside, float)
    return np.clip((frame - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1).astype(np.float32)


def column_at(values_HW: Float32, x: float) -> Float32:
    left = int(np.floor(x))
    share = x - left
    return (1 - share) * values_HW[:, left] + share * values_HW[:, left + 1]


@pytest.mark.parametrize("pose", POSES)
@pytest.mark.parametrize("seed", [0, 5, 8])
def test_inner_lip_points_lie_on_the_edge_of_the_opening(seed: int, pose: Pose) -> None:
    who = plain(seed)
    for opening in (0.4, 0.7, 1.0):
        frame, points = TalkingHead(who, flat=True).draw(pose, opening, 0.0)
        (x, top), bottom = points[62], points[66, 1]
        column = column_at(share_of(frame, MOUTH_INTERIOR, who.lip), float(x))
        middle = round((top + bottom) / 2)
        seen_top = middle + 0.5 - column[round(points[51, 1]) + 1 : middle + 1].sum()
        seen_bottom = middle + 0.5 + column[middle + 1 : round(points[57, 1]) - 1].sum()
        assert abs(seen_top - top) < 0.25
        assert abs(seen_bottom - bottom) < 0.25


@pytest.mark.parametrize("pose", POSES)
def test_lower_lip_point_lies_between_lip_and_skin(pose: Pose) -> None:
    who = plain(3)
    frame, points = TalkingHead(who, flat=True).draw(pose, 0.8, 0.0)
    column = column_at(share_of(frame, who.lip, who.skin), float(points[57, 0]))
    start = round((points[66, 1] + points[57, 1]) / 2)
    seen = start - 0.5 + column[start : round(points[57, 1]) + 5].sum()
    assert abs(seen - points[57, 1]) < 0.3


@pytest.mark.parametrize("pose", POSES)
def test_chin_point_lies_between_face_and_neck(pose: Pose) -> None:
    who = replace(plain(1), skin=(200, 160, 140))
    frame, points = TalkingHead(who, flat=True).draw(pose, 0.5, 0.0)
    column = column_at(frame[..., 0].astype(np.float32), float(points[8, 0]))
    start = round(points[8, 1]) - 6
    neck = column[round(points[8, 1]) + 4]
    seen = start - 0.5 + ((column[start : start + 10] - neck) / (200 - neck)).sum()
    assert abs(seen - points[8, 1]) < 0.3


def test_eye_corners_bound_the_white_of_the_eye() -> None:
    frame, points = TalkingHead(replace(plain(2), skin=(90, 60, 50)), (640, 512), flat=True).draw(Pose(), 0.0, 0.0)
    white = np.abs(frame.astype(int) - EYE_WHITE).sum(-1) < 60
    for left, right in ((36, 39), (42, 45)):
        low, high = points[left : right + 1].min(0) - 4, points[left : right + 1].max(0) + 4
        inside = white[int(low[1]) : int(high[1]) + 1, int(low[0]) : int(high[0]) + 1]
        columns = np.flatnonzero(inside.any(0)) + int(low[0])
        assert 0 < columns[0] - points[left, 0] < 6
        assert 0 < points[right, 0] - columns[-1] < 6


def test_shut_lips_coincide_and_show_no_opening() -> None:
    frame, points = TalkingHead(plain(4), flat=True).draw(Pose(), 0.0, 0.3)
    np.testing.assert_array_equal(points[[61, 62, 63]], points[[67, 66, 65]])
    (left, top), (right, bottom) = points[48:60].min(0).astype(int), points[48:60].max(0).astype(int)
    assert (np.abs(frame[top:bottom, left:right].astype(int) - MOUTH_INTERIOR).sum(-1) > 40).all()


def test_opening_parts_the_lips_and_drops_the_jaw_only() -> None:
    head = TalkingHead(plain(4))
    shut, wide = (head.draw(Pose(), opening, 0.0)[1] for opening in (0.0, 1.0))
    moved = np.abs(wide - shut).max(1)
    assert moved[8] > 5
    assert moved[57] > 10
    assert moved[17:48].max() == 0


def test_a_blink_shuts_the_eyes_only() -> None:
    head = TalkingHead(plain(4))
    open_eyes, shut_eyes = (head.draw(Pose(blink=blink), 0.3, 0.0)[1] for blink in (0.0, 1.0))
    np.testing.assert_allclose(shut_eyes[[37, 38]], shut_eyes[[41, 40]], atol=1e-3)
    others = [*range(36), *range(48, 68)]
    np.testing.assert_array_equal(open_eyes[others], shut_eyes[others])


@pytest.mark.parametrize("size", [(320, 256), (256, 256), (360, 288), (288, 512)])
def test_the_aligned_crop_stays_in_the_frame(size: tuple[int, int]) -> None:
    height, width = size
    corners = np.array([(x, y, 1) for x in (-0.5, 79.5) for y in (-0.5, crop_height(80) - 0.5)])
    for seed in range(6):
        head = TalkingHead(make_identity(seed), size)
        for pose in make_motion(seed, 250)[::25]:
            points = head.draw(pose, 0.5, 0.0)[1]
            in_frame = corners @ np.linalg.inv(fit_all(points[None], 80)[0]).T
            assert (in_frame[:, :2] > -0.03 * height).all()
            assert (in_frame[:, :2] < np.array([width, height]) + 0.03 * height).all()


def test_seeds_are_independent_of_each_other() -> None:
    """Speech moves the mouth and the jaw, and nothing well above the tip of the nose."""
    head, pose = TalkingHead(make_identity(7)), make_motion(9, 20)[13]
    (one, points), (two, _) = head.draw(pose, 0.1, 0.0), head.draw(pose, 0.9, 0.5)
    brim = int(points[30, 1])
    np.testing.assert_array_equal(one[: brim - 10], two[: brim - 10])
    assert np.abs(one.astype(int) - two).max() > 60


def test_same_seed_same_image() -> None:
    frames = [TalkingHead(make_identity(seed)).draw(make_motion(2, 5)[4], 0.5, 0.0)[0] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(frames[0], frames[1])
    assert (frames[0] != frames[2]).mean() > 0.5


def test_people_differ() -> None:
    people = [make_identity(seed) for seed in range(30)]
    assert len({who.hair_style for who in people}) >= 4
    assert len({who.beard for who in people}) >= 3
    assert np.std([sum(who.skin) / 3 for who in people]) > 20


def test_motion_is_smooth_and_moves() -> None:
    for seed in range(5):
        poses = make_motion(seed, 500)
        roll = np.rad2deg([pose.roll for pose in poses])
        scale = np.array([pose.scale for pose in poses])
        assert 0.5 < np.abs(roll).max() <= 10
        assert np.abs(np.diff(roll)).max() < 1.5
        assert 0.9 <= scale.min() < scale.max() <= 1.1
        assert max(pose.blink for pose in poses) == 1


def test_a_curve_passes_through_its_points() -> None:
    points = np.array([(0, 0), (2, 1), (3, -1), (5, 0.5)])
    np.testing.assert_allclose(curve(points)[::6], points, atol=1e-12)
    np.testing.assert_allclose(curve(points, closed=True)[::6], points, atol=1e-12)


@pytest.mark.parametrize(("opening", "spread"), [(-0.1, 0.0), (1.1, 0.0), (0.5, 1.5), (float("nan"), 0.0)])
def test_impossible_mouths_are_refused(opening: float, spread: float) -> None:
    with pytest.raises(ValueError, match="expected 0 … 1"):
        TalkingHead(make_identity(0)).draw(Pose(), opening, spread)
