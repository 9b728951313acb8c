"""Face tracks: link the faces of single frames to tracks, choose tracks, bridge gaps, smooth jitter.

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
"""Two boxes in one frame that overlap more than this (IoU) are the same face, detected twice."""
KERNEL_SIGMAS = 4
"""The smoothing kernel is cut off here; the rest has 0.006 % of the weight."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Track:
    """One person's face over consecutive ticks of one shot."""

    start: int
    """First tick."""
    points_N68x2: Float32
    """In px of the frame; NaN where the face was not found."""
    valid_N: Bool
    """False where the face was not found; always true at the first and last tick."""

    @property
    def stop(self) -> int:
        """The tick after the last one."""
        return self.start + len(self.valid_N)

    @property
    def area(self) -> float:
        """Area of the boxes around the points in px², summed over the ticks that have a face."""
        return float(np.ptp(self.points_N68x2[self.valid_N], axis=1).prod(1, dtype=np.float64).sum())


class _OpenTrack:
    """A track that may still grow."""

    def __init__(self) -> None:
        self.ticks: list[int] = []
        self.points: list[Float32] = []
        self.box: Box = (0.0, 0.0, 0.0, 0.0)

    def add(self, tick: int, points_68x2: Float32, box: Box) -> None:
        self.ticks.append(tick)
        self.points.append(points_68x2)
        self.box = box

    def close(self) -> Track:
        index = np.array(self.ticks) - self.ticks[0]
        points_N68x2 = np.full((index[-1] + 1, NUM_LANDMARKS, 2), np.nan, np.float32)
        points_N68x2[index] = np.stack(self.points)
        valid_N = np.zeros(len(points_N68x2), bool)
        valid_N[index] = True
        return Track(start=self.ticks[0], points_N68x2=points_N68x2, valid_N=valid_N)


def link(
    faces_T: Sequence[Sequence[Face]], shots: Sequence[int] = (0,), *, min_iou: float = 0.3, max_gap: int = 5
) -> list[Track]:
    """Link faces that overlap from tick to tick to tracks; no track crosses a cut.

    At each tick the track and the face that overlap most are joined first. A face without a track starts a new one, so
    a false detection elsewhere in the frame does not disturb the others.

    Args:
        faces_T: the faces of every tick.
        shots: first tick of every shot, increasing from 0.
        min_iou: smallest intersection over union of a face's box and the last box of its track.
        max_gap: a track ends after more than this many ticks without its face.

    Returns:
        Tracks sorted by their first tick, the larger face first where they start together.

    Raises:
        ValueError: `shots` does not increase from 0.
    """
    if not shots or shots[0] != 0 or any(a >= b for a, b in pairwise(shots)):
        raise ValueError(f"shots: first ticks must increase from 0, got {list(shots)[:5]}…")
    done: list[_OpenTrack] = []
    growing: list[_OpenTrack] = []
    first_ticks = set(shots)
    for tick, faces in enumerate(faces_T):
        kept = [] if tick in first_ticks else [t for t in growing if tick - t.ticks[-1] <= max_gap + 1]
        done += [track for track in growing if track not in kept]
        growing = _extend(kept, tick, faces, min_iou)
    return sorted((track.close() for track in done + growing), key=lambda track: (track.start, -track.area))


def _extend(tracks: list[_OpenTrack], tick: int, faces: Sequence[Face], min_iou: float) -> list[_OpenTrack]:
    """Add the faces of one tick; returns the tracks together with those that start here."""
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
            tracks.append(_OpenTrack())
        tracks[track_of[f]].add(tick, points_68x2, box)
    return tracks


def _distinct(faces: Sequence[Face]) -> list[tuple[Float32, Box]]:
    """Return points and box of each face in a frame, without those that a detector found twice."""
    found: list[tuple[Float32, Box]] = []
    for face in sorted(faces, key=lambda face: -face.score):
        # the box around the points, because those of detectors differ from source to source
        (x0, y0), (x1, y1) = face.points_68x2.min(0).tolist(), face.points_68x2.max(0).tolist()
        if all(iou((x0, y0, x1, y1), box) <= SAME_FACE_IOU for _, box in found):
            found.append((face.points_68x2, (x0, y0, x1, y1)))
    return found


def iou(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes; 0 if both are empty."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def face_rank(face: str) -> int | None:
    """Return how many larger people the option `face` skips, or None if it keeps everyone.

    Raises:
        ValueError: `face` is not `largest`, `all`, `sync` or a whole number from 0.
    """
    if face in ("all", "sync"):
        return None
    if face == "largest":
        return 0
    if not face.isdecimal():
        raise ValueError(f"face: {face!r}; choose largest, all, sync or a number (0 is the largest face)")
    return int(face)


def one_face(face: str) -> None:
    """Check that the option `face` selects a single person.

    Raises:
        ValueError: it may select several.
    """
    if face != "largest" and not face.isdecimal():
        raise ValueError(f"face: {face!r}; choose one person: largest, or a number (0 is the largest face)")


def choose(tracks: Sequence[Track], face: str) -> list[Track]:
    """Choose the tracks of the person that the option `face` asks for.

    Args:
        tracks: all tracks of one video, as returned by `link`.
        face: `largest` keeps, of tracks that overlap in time, the one with the greatest area × time; a number k does
            the same after removing those of the k larger people; `all` and `sync` (decided later, by scores) keep all.

    Returns:
        Tracks sorted by their first tick.

    Raises:
        ValueError: as `face_rank`.
    """
    rank = face_rank(face)
    if rank is None:
        return list(tracks)
    left = sorted(tracks, key=lambda track: (-track.area, track.start))
    for _ in range(rank):
        larger = set(_without_overlap(left))
        left = [track for track in left if track not in larger]
    return _without_overlap(left)


def _without_overlap(tracks: Sequence[Track]) -> list[Track]:
    """Drop tracks that overlap, in time, one that comes before them in the list; returns the rest by first tick."""
    chosen: list[Track] = []
    for track in tracks:
        index = bisect(chosen, track.start, key=lambda other: other.start)
        # the chosen tracks do not overlap, so only two of them can overlap this one
        neighbours = chosen[max(index - 1, 0) : index + 1]
        if all(track.stop <= other.start or other.stop <= track.start for other in neighbours):
            chosen.insert(index, track)
    return chosen


def bridge(track: Track, max_gap: int = 5) -> Track:
    """Fill gaps of at most `max_gap` ticks by linear interpolation; longer ones stay invalid."""
    points_N68x2, valid_N = _bridged(track.points_N68x2, track.valid_N, max_gap)
    return replace(track, points_N68x2=points_N68x2, valid_N=valid_N)


def smooth(points_N68x2: Float32, sigma: float) -> Float32:
    """Remove the jitter of one track's points by a Gaussian over time, without delay (zero phase).

    Use it for what must not tremble, such as the alignment; points that are stored or measured stay as detected.

    Args:
        points_N68x2: px; ticks with NaN are ignored and stay NaN.
        sigma: standard deviation in ticks; 0 changes nothing.

    Returns:
        float32 of the same shape. At the ends and next to NaN, the weights of the remaining ticks add up to 1.
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
        mean = total / weight_N[:, None, None]
    return np.where(known_N[:, None, None], mean, np.nan).astype(np.float32)


def runs(valid_T: Bool) -> list[tuple[int, int]]:
    """Return the maximal runs of true values as (start, stop), stop exclusive, in order."""
    edges = np.flatnonzero(np.diff(np.asarray(valid_T, np.int8), prepend=0, append=0))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def fill_gaps(landmarks: Landmarks, max_gap: int = 5) -> Landmarks:
    """Fill gaps of at most `max_gap` frames by linear interpolation between the faces on both sides.

    Rows with a NaN or infinite coordinate count as invalid. Longer gaps, and those at the start or the end, stay
    invalid and keep their points.
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
    """Return for each frame whether all its points lie in an image of height × width px; NaN does not."""
    limit = np.array([width - 1, height - 1], np.float32)
    with np.errstate(invalid="ignore"):
        return np.asarray(((points_T68x2 >= 0) & (points_T68x2 <= limit)).all((1, 2)))
