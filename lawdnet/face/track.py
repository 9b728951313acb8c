"""Who is who: faces of single pictures linked to tracks, tracks chosen, gaps bridged, jitter smoothed.

Shape letters: T ticks of a video, N ticks of one track; boxes are x0 y0 x1 y1 in px.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from lawdnet.types import NUM_LANDMARKS, Bool, Face, Float32, Landmarks

SAME_FACE_IOU = 0.6
"""Two boxes of one picture that share more than this are one face found twice."""
KERNEL_SIGMAS = 4
"""Where the smoothing kernel is cut off; what lies beyond weighs 0.006 %."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Track:
    """One person's face over consecutive ticks of one shot."""

    start: int
    """First tick."""
    points_N68x2: Float32
    """In px of the picture; NaN where the face was not found."""
    valid_N: Bool
    """False where the face was not found; the first and the last tick always have it."""

    @property
    def stop(self) -> int:
        """The tick after the last."""
        return self.start + len(self.valid_N)

    @property
    def area(self) -> float:
        """Area of the boxes around the points, in px, summed over the ticks that have a face."""
        return float(np.ptp(self.points_N68x2[self.valid_N], axis=1).prod(1, dtype=np.float64).sum())


class _Open:
    """A track that still grows."""

    def __init__(self) -> None:
        self.ticks: list[int] = []
        self.points: list[Float32] = []
        self.box: Box = (0.0, 0.0, 0.0, 0.0)

    def add(self, tick: int, points_68x2: Float32, box: Box) -> None:
        self.ticks.append(tick)
        self.points.append(points_68x2)
        self.box = box

    def close(self) -> Track:
        place = np.array(self.ticks) - self.ticks[0]
        points_N68x2 = np.full((place[-1] + 1, NUM_LANDMARKS, 2), np.nan, np.float32)
        points_N68x2[place] = np.stack(self.points)
        valid_N = np.zeros(len(points_N68x2), bool)
        valid_N[place] = True
        return Track(start=self.ticks[0], points_N68x2=points_N68x2, valid_N=valid_N)


def link(
    faces_T: Sequence[Sequence[Face]], shots: Sequence[int] = (0,), *, min_iou: float = 0.3, max_gap: int = 5
) -> list[Track]:
    """Tracks of the faces that overlap from tick to tick; none crosses the border of a shot.

    At each tick the pair of track and face that overlap most is joined first. A face that no track claims begins a
    track of its own, so a false one elsewhere in the picture leaves the others as they are.

    Args:
        faces_T: the faces of every tick.
        shots: first tick of every shot, rising, the first 0.
        min_iou: least intersection over union of a face's box with the last box of its track.
        max_gap: a track ends after more than this many ticks without its face.

    Returns:
        Tracks by their first tick; those that begin together with the larger first.

    Raises:
        ValueError: `shots` does not rise from 0.
    """
    if not shots or shots[0] != 0 or any(a >= b for a, b in pairwise(shots)):
        raise ValueError(f"shots: {list(shots)[:5]}… are not first ticks that rise from 0")
    done: list[_Open] = []
    growing: list[_Open] = []
    first_ticks = set(shots)
    for tick, faces in enumerate(faces_T):
        kept = [] if tick in first_ticks else [t for t in growing if tick - t.ticks[-1] <= max_gap + 1]
        done += [track for track in growing if track not in kept]
        growing = _extend(kept, tick, faces, min_iou)
    return sorted((track.close() for track in done + growing), key=lambda track: (track.start, -track.area))


def _extend(tracks: list[_Open], tick: int, faces: Sequence[Face], min_iou: float) -> list[_Open]:
    """Adds one tick's faces, and returns the tracks with those that begin."""
    found = _distinct(faces)
    overlaps = [(iou(track.box, box), t, f) for t, track in enumerate(tracks) for f, (_, box) in enumerate(found)]
    track_of: dict[int, int] = {}
    for overlap, t, f in sorted(overlaps, key=lambda pair: (-pair[0], *pair[1:])):
        if overlap >= min_iou and f not in track_of and t not in track_of.values():
            track_of[f] = t
    tracks = list(tracks)
    for f, (points_68x2, box) in enumerate(found):
        if f not in track_of:
            track_of[f] = len(tracks)
            tracks.append(_Open())
        tracks[track_of[f]].add(tick, points_68x2, box)
    return tracks


def _distinct(faces: Sequence[Face]) -> list[tuple[Float32, Box]]:
    """Points and boxes of a picture's faces, each face once: finders at times see one twice."""
    found: list[tuple[Float32, Box]] = []
    for face in sorted(faces, key=lambda face: -face.score):
        # detectors' boxes wander with the source; those around the points are the same for all
        (x0, y0), (x1, y1) = face.points_68x2.min(0).tolist(), face.points_68x2.max(0).tolist()
        if all(iou((x0, y0, x1, y1), box) <= SAME_FACE_IOU for _, box in found):
            found.append((face.points_68x2, (x0, y0, x1, y1)))
    return found


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes; 0 where both are empty."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def face_rank(face: str) -> int | None:
    """What the option `face` asks for: how many larger people to pass over, or None for everyone.

    Raises:
        ValueError: it is neither `largest`, `all`, `sync` nor a whole number from 0.
    """
    if face in ("all", "sync"):
        return None
    if face == "largest":
        return 0
    if not face.isdecimal():
        raise ValueError(f"face: {face!r}; choose largest, all, sync or a number (0 is the largest face)")
    return int(face)


def one_face(face: str) -> None:
    """The option `face` asks for one person throughout.

    Raises:
        ValueError: it does not.
    """
    if face != "largest" and not face.isdecimal():
        raise ValueError(f"face: {face!r}; one person is shown: largest, or a number (0 is the largest face)")


def choose(tracks: Sequence[Track], face: str) -> list[Track]:
    """The tracks of the person that is wanted.

    Args:
        tracks: of one video, as `link` gives them.
        face: `largest`: of tracks that overlap in time the one with the greatest area × time stays; a number k: the
            same after those of the k larger people are taken away; `all` and `sync` (decided later, by scores): all.

    Returns:
        By first tick.

    Raises:
        ValueError: as `face_rank`.
    """
    rank, left = face_rank(face), sorted(tracks, key=lambda track: (-track.area, track.start))
    if rank is None:
        return list(tracks)
    for _ in range(rank):
        larger = set(_side_by_side(left))
        left = [track for track in left if track not in larger]
    return _side_by_side(left)


def _side_by_side(tracks: Sequence[Track]) -> list[Track]:
    """Tracks by first tick, without those that overlap an earlier one of the list in time."""
    chosen: list[Track] = []
    for track in tracks:
        place = bisect(chosen, track.start, key=lambda other: other.start)
        # those that are chosen lie one after another: only two of them can overlap it
        neighbours = chosen[max(place - 1, 0) : place + 1]
        if all(track.stop <= other.start or other.stop <= track.start for other in neighbours):
            chosen.insert(place, track)
    return chosen


def bridge(track: Track, max_gap: int = 5) -> Track:
    """A track with gaps of at most `max_gap` ticks filled by a straight line; longer ones stay invalid."""
    points_N68x2, valid_N = _bridged(track.points_N68x2, track.valid_N, max_gap)
    return replace(track, points_N68x2=points_N68x2, valid_N=valid_N)


def steady(points_N68x2: Float32, sigma: float) -> Float32:
    """Points of one track without their jitter: a Gaussian over time that shifts nothing (zero phase).

    For what must not tremble, such as the alignment; points that are stored or measured stay as they were found.

    Args:
        points_N68x2: px; ticks with NaN are left out, and stay NaN.
        sigma: standard deviation in ticks; 0 changes nothing.

    Returns:
        float32, the same shape. At the ends and beside NaN the weights of what is there add up to 1.
    """
    known_N = np.asarray(np.isfinite(points_N68x2).all((1, 2)))
    if sigma <= 0 or not known_N.any():
        return points_N68x2
    reach = min(int(np.ceil(KERNEL_SIGMAS * sigma)), len(points_N68x2) - 1)
    total = np.zeros(points_N68x2.shape, np.float64)
    weight_N = np.zeros(len(points_N68x2))
    filled = np.where(known_N[:, None, None], points_N68x2, 0)
    for offset in range(-reach, reach + 1):
        weight = np.exp(-0.5 * (offset / sigma) ** 2)
        here = slice(max(-offset, 0), len(filled) - max(offset, 0))
        there = slice(max(offset, 0), len(filled) + min(offset, 0))
        total[here] += weight * filled[there]
        weight_N[here] += weight * known_N[there]
    with np.errstate(invalid="ignore", divide="ignore"):
        smooth = total / weight_N[:, None, None]
    return np.where(known_N[:, None, None], smooth, np.nan).astype(np.float32)


def runs(valid_T: Bool) -> list[tuple[int, int]]:
    """Maximal stretches of true values as (start, stop), stop exclusive, in order."""
    edges = np.flatnonzero(np.diff(np.asarray(valid_T, np.int8), prepend=0, append=0))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def fill_gaps(landmarks: Landmarks, max_gap: int = 5) -> Landmarks:
    """Bridges gaps of at most `max_gap` frames by a straight line between the faces on either side.

    Rows with a NaN or infinite coordinate count as invalid. Longer gaps, and those at the start or the end,
    stay invalid and keep their points.
    """
    points_T68x2, valid_T = _bridged(landmarks.points_T68x2, landmarks.valid_T, max_gap)
    return replace(landmarks, points_T68x2=points_T68x2, valid_T=valid_T)


def _bridged(points_T68x2: Float32, valid_T: Bool, max_gap: int) -> tuple[Float32, Bool]:
    points = points_T68x2.copy()
    valid = valid_T & np.isfinite(points).all((1, 2))
    for (_, start), (stop, _) in pairwise(runs(valid)):
        if stop - start <= max_gap:
            weight = np.linspace(0, 1, stop - start + 2)[1:-1, None, None]
            points[start:stop] = (1 - weight) * points[start - 1] + weight * points[stop]
            valid[start:stop] = True
    return points, valid


def inside(points_T68x2: Float32, height: int, width: int) -> Bool:
    """Frames whose points all lie in a picture of height × width px; NaN does not."""
    limit = np.array([width - 1, height - 1], np.float32)
    with np.errstate(invalid="ignore"):
        return np.asarray(((points_T68x2 >= 0) & (points_T68x2 <= limit)).all((1, 2)))
