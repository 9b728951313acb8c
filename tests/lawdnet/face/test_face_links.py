"""Linking faces to tracks, choosing among them, and smoothing."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from lawdnet.face.track import Track, bridge, choose, face_rank, iou, link, smooth
from lawdnet.types import Face

SHAPE = np.stack([np.arange(68) % 9 / 8, np.arange(68) % 11 / 10], 1).astype(np.float32)


def face(x: float, y: float = 50, size: float = 40, score: float = 1) -> Face:
    """Return a square face around (x, y)."""
    return Face(((SHAPE - 0.5) * size + (x, y)).astype(np.float32), score)


def spans(tracks: Sequence[Track]) -> list[tuple[int, int]]:
    return [(track.start, track.stop) for track in tracks]


def track(start: int, stop: int, size: float) -> Track:
    return link([[] for _ in range(start)] + [[face(100, size=size)] for _ in range(start, stop)])[0]


def test_two_people_who_move_stay_two_tracks_in_whatever_order_they_come() -> None:
    faces_T = [[face(100 + 3 * t), face(300 - 2 * t, size=30)][:: -1 if t % 2 else 1] for t in range(40)]
    large, small = link(faces_T)
    assert spans([large, small]) == [(0, 40), (0, 40)]
    np.testing.assert_allclose(
        large.points_N68x2[:, :, 0].mean(1), 100 + 3 * np.arange(40) - 20 + 40 * SHAPE[:, 0].mean(), rtol=1e-4
    )
    assert large.valid_N.all()
    assert np.ptp(small.points_N68x2[7], axis=0).max() == pytest.approx(30)


def test_a_track_ends_at_a_shot_although_the_face_stays() -> None:
    assert spans(link([[face(100)]] * 30, shots=[0, 10, 25])) == [(0, 10), (10, 25), (25, 30)]


@pytest.mark.parametrize(("missing", "expected"), [(3, [(0, 23)]), (4, [(0, 10), (14, 24)])])
def test_a_face_may_be_away_for_max_gap_ticks(missing: int, expected: list[tuple[int, int]]) -> None:
    tracks = link([*[[face(100)]] * 10, *[[]] * missing, *[[face(102)]] * 10], max_gap=3)
    assert spans(tracks) == expected
    assert np.isnan(tracks[0].points_N68x2[~tracks[0].valid_N]).all()
    assert tracks[0].valid_N.sum() == (20 if len(tracks) == 1 else 10)


def test_a_face_elsewhere_for_one_tick_leaves_the_track_whole() -> None:
    faces_T = [[face(100)] for _ in range(20)]
    faces_T[9] = [face(500, 300)]
    main, stray = link(faces_T)
    assert spans([main, stray]) == [(0, 20), (9, 10)]
    assert np.flatnonzero(~main.valid_N).tolist() == [9]
    whole = bridge(main)
    assert whole.valid_N.all()
    np.testing.assert_allclose(whole.points_N68x2[9], face(100).points_68x2)
    assert spans(choose([main, stray], "largest")) == [(0, 20)]


def test_the_best_overlap_wins_not_the_first() -> None:
    """The face at 108 fits the track at 110 better, although the track at 100 would accept it, too."""
    left, right = link([[face(100), face(132)], [face(112), face(133)], [face(120)]], max_gap=0)
    assert spans([left, right]) == [(0, 2), (0, 3)] or spans([left, right]) == [(0, 3), (0, 2)]
    last = next(t for t in (left, right) if t.stop == 3)
    assert last.points_N68x2[0].mean() == pytest.approx(face(100).points_68x2.mean())


def test_of_two_faces_that_overlap_one_track_only_one_continues_it() -> None:
    tracks = link([[face(100)], [face(92), face(107)], [face(92), face(107)]])
    assert sorted(spans(tracks)) == [(0, 3), (1, 3)]
    assert all(track.valid_N.all() for track in tracks)


def test_a_face_found_twice_counts_once_and_the_more_confident_one_stays() -> None:
    (only,) = link([[face(101, score=0.4), face(100, score=0.9)]] * 5)
    np.testing.assert_array_equal(only.points_N68x2[3], face(100).points_68x2)


def test_a_jump_begins_a_new_track() -> None:
    assert spans(link([[face(100)]] * 5 + [[face(140)]] * 5)) == [(0, 5), (5, 10)]
    assert spans(link([[face(100)]] * 5 + [[face(115)]] * 5, min_iou=0.5)) == [(0, 5), (5, 10)]
    assert spans(link([[face(100)]] * 5 + [[face(115)]] * 5, min_iou=0.3)) == [(0, 10)]


def test_nothing_gives_nothing() -> None:
    assert link([]) == link([[], [], []]) == []
    assert choose([], "largest") == choose([], "3") == choose([], "all") == []


@pytest.mark.parametrize("shots", [[], [3], [0, 5, 5], [0, 7, 2]])
def test_shots_must_rise_from_zero(shots: list[int]) -> None:
    with pytest.raises(ValueError, match="shots"):
        link([[face(1)]], shots)


def test_the_largest_person_is_chosen_over_time_and_the_second_is_who_is_left() -> None:
    tall, small, later, brief = track(0, 50, 40), track(0, 90, 30), track(60, 100, 20), track(20, 25, 60)
    for tracks in itertools.permutations([tall, small, later, brief]):
        # 40²·50 = 80 000 < 30²·90 = 81 000
        assert spans(choose(tracks, "largest")) == [(0, 90)]
        assert choose(tracks, "0") == choose(tracks, "largest")
        assert choose(tracks, "1") == [tall, later]
        assert choose(tracks, "2") == [brief]
        assert choose(tracks, "3") == []
        assert choose(tracks, "all") == choose(tracks, "sync") == list(tracks)


def test_tracks_that_follow_each_other_are_all_chosen() -> None:
    tracks = [track(0, 10, 40), track(10, 30, 40), track(30, 31, 20)]
    assert choose(tracks, "largest") == tracks


def test_missing_ticks_do_not_count_as_area() -> None:
    gap = link([[face(1)], [], [], [face(1)]])[0]
    assert gap.area == pytest.approx(2 * np.prod(40 * np.ptp(SHAPE, axis=0)))


@pytest.mark.parametrize("words", ["biggest", "-1", "1.5", "", "²"])
def test_what_face_may_be(words: str) -> None:
    with pytest.raises(ValueError, match=r"largest.*all.*sync"):
        face_rank(words)


def test_overlap_of_boxes() -> None:
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert iou((0, 0, 1, 1), (1, 0, 2, 1)) == iou((0, 0, 1, 1), (5, 5, 6, 6)) == iou((1, 1, 1, 1), (1, 1, 1, 1)) == 0
    assert iou((0, 0, 4, 2), (0, 0, 4, 2)) == 1


def test_smoothing_is_a_gaussian_with_zero_phase() -> None:
    points = np.random.default_rng(0).normal(100, 5, (60, 68, 2)).astype(np.float32)
    expected = gaussian_filter1d(points.astype(np.float64), 2, axis=0, mode="constant", truncate=4)
    expected /= gaussian_filter1d(np.ones(60), 2, mode="constant", truncate=4)[:, None, None]
    np.testing.assert_allclose(smooth(points, 2), expected, rtol=1e-5)
    np.testing.assert_allclose(smooth(points, 2)[::-1], smooth(points[::-1], 2), rtol=1e-6)
    assert smooth(points, 2).dtype == np.float32


def test_smoothing_keeps_a_still_face_a_steady_move_and_missing_ticks() -> None:
    still = np.broadcast_to(face(100).points_68x2, (30, 68, 2)).copy()
    np.testing.assert_allclose(smooth(still, 3), still, rtol=1e-6)
    moving = still + np.arange(30, dtype=np.float32)[:, None, None]
    np.testing.assert_allclose(smooth(moving, 1.5)[6:-6], moving[6:-6], rtol=1e-5)
    still[4:9] = np.nan
    smoothed = smooth(still, 3)
    assert np.isnan(smoothed[4:9]).all()
    np.testing.assert_allclose(smoothed[[3, 9]], still[[3, 9]], rtol=1e-6)


def test_smoothing_is_off_at_zero_and_takes_the_shortest_tracks() -> None:
    points = np.random.default_rng(1).normal(size=(3, 68, 2)).astype(np.float32)
    assert smooth(points, 0) is points
    assert smooth(points[:1], 5).shape == (1, 68, 2)
    np.testing.assert_allclose(smooth(points, 50), np.broadcast_to(points.mean(0), points.shape), atol=2e-3)
    assert np.isnan(smooth(np.full((4, 68, 2), np.nan, np.float32), 1)).all()


def test_bridging_leaves_long_gaps_and_the_track_itself() -> None:
    gap = link([[face(100)], *[[]] * 4, [face(105)], [], [face(107)]])[0]
    assert bridge(gap, 4).valid_N.all()
    short = bridge(gap, 2)
    assert short.valid_N.tolist() == [True, False, False, False, False, True, True, True]
    assert gap.valid_N.sum() == 3
    np.testing.assert_allclose(bridge(gap, 4).points_N68x2[2], face(102).points_68x2, rtol=1e-5)


def test_tracks_by_the_thousand_are_chosen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour of false detections: the work grows with their number, not with its square."""
    looked_at = 0

    def stop(track: Track) -> int:
        nonlocal looked_at
        looked_at += 1
        return track.start + len(track.valid_N)

    starts = np.random.default_rng(0).permutation(3000) * 2
    face = np.tile(np.array([[0, 0], [9, 9]], np.float32), (3, 34, 1))
    many = [Track(start=int(start), points_N68x2=face, valid_N=np.ones(3, bool)) for start in starts]
    monkeypatch.setattr(Track, "stop", property(stop))
    chosen = choose(many, "largest")
    assert [track.start for track in chosen] == list(range(0, 6000, 4))
    assert looked_at < 10 * len(many)
