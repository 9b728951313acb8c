"""A video prepared for any audio: where its face is in every frame, and five reference images of it.

Shape letters: T ticks of the 25 fps clock, H W crop, 33 a matrix that takes frame px to crop px.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from lawdnet.face.align import crop_face, fit_all, transform_points
from lawdnet.face.geometry import stage_size
from lawdnet.face.lips import lip_gap
from lawdnet.face.points import JAW
from lawdnet.face.track import Track, bridge, inside, smooth
from lawdnet.landmarks.base import LandmarkSource
from lawdnet.landmarks.tracks import MAX_GAP, SMOOTHING, cut_at, find_tracks
from lawdnet.types import (
    NUM_LANDMARKS,
    NUM_REFERENCES,
    Beat,
    Bool,
    Float32,
    Rejected,
    RejectReason,
    UInt8,
    Video,
    no_beat,
)
from lawdnet.video import decode, probe
from lawdnet.video.shots import ShotDetector

CANDIDATES = 48
"""Number of crops kept in the search for references; even."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Template:
    """A video that a new mouth can be generated into; equal only to itself, so that an engine can remember it."""

    path: Path
    height: int
    width: int
    """Size of the frames in px."""
    matrix_T33: Float32
    """Frame px → crop px at the crop width of the training data; NaN if no face was found."""
    reference_5HW3: UInt8
    """Crops at the network's size, from different times, with the mouth from shut to open."""
    reference_ticks: tuple[int, ...]
    jaw_T17x2: Float32 | None = None
    """The jaw line in crop px at the crop width of the training data, which limits what is pasted; None: no limit."""

    @property
    def usable_T(self) -> Bool:
        """Whether a tick has a face; the others are passed through unchanged."""
        return _finite(self.matrix_T33)


@dataclass(frozen=True)
class Candidate:
    """A crop that may become a reference."""

    tick: int
    gap: float
    """Gap between the lips; see `lip_gap`."""
    whole: bool
    """Whether all landmarks are inside the frame."""
    sharpness: float
    crop_HW3: UInt8

    @property
    def rank(self) -> tuple[bool, float]:
        """Quality of the candidate; larger is better."""
        return self.whole, self.sharpness


class Candidates:
    """The best crop of each stretch of a stream; stretches have equal lengths, which grow with the stream."""

    def __init__(self) -> None:
        self.best: list[Candidate] = []
        self._seen = 0
        self._stretch = 1

    def add(self, candidate: Candidate) -> None:
        """Add the next crop of the stream."""
        stretch = self._seen // self._stretch
        self._seen += 1
        if stretch == len(self.best):
            self.best.append(candidate)
        else:
            self.best[stretch] = max(self.best[stretch], candidate, key=lambda c: c.rank)
        if self._seen == CANDIDATES * self._stretch:
            pairs = zip(self.best[::2], self.best[1::2], strict=True)
            self.best = [max(pair, key=lambda c: c.rank) for pair in pairs]
            self._stretch *= 2


def prepare(
    path: Path,
    source: LandmarkSource,
    *,
    mouth_px: int,
    crop_width: int,
    face: str = "largest",
    beat: Beat = no_beat,
) -> Template:
    """Read a video once (twice for a landmark source that needs frames); memory does not grow with its length.

    Args:
        path: any video, with or without audio.
        source: finds the face.
        mouth_px: mouth size of the network.
        crop_width: width in px of the crops in the network's training data.
        face: which of several faces; see `lawdnet.face.track.choose`.
        beat: called for every tick.

    Raises:
        Rejected: the video cannot be read, its landmarks are missing or belong to another file, or fewer than five
            frames show a face.
    """
    video = probe(path)
    tracks = find_tracks(video, source, face=face, max_gap=MAX_GAP, beat=beat)
    points_T68x2, matrix_T33, _ = _fitted(tracks, video.num_frames, crop_width)
    usable_T = _finite(matrix_T33)
    gap_T = lip_gap(points_T68x2)
    whole_T = inside(points_T68x2, video.height, video.width)
    shown = -1
    ticks = 0
    candidates = Candidates()
    cuts = ShotDetector()
    for tick, (index, frame_HW3) in enumerate(decode(path)):
        beat()
        cuts.add(frame_HW3)
        if index != shown and tick < video.num_frames and usable_T[tick]:
            crop = network_crop(frame_HW3, matrix_T33[tick], crop_width, mouth_px)
            candidates.add(Candidate(tick, float(gap_T[tick]), bool(whole_T[tick]), sharpness(crop), crop))
        shown = index
        ticks = tick + 1
    references = choose(candidates.best, video)
    in_shots = cut_at(tracks, cuts.shots[1:])
    _, matrix_T33, jaw_T17x2 = _fitted(in_shots, max(ticks, video.num_frames), crop_width)
    return Template(
        path=path,
        height=video.height,
        width=video.width,
        matrix_T33=matrix_T33[:ticks],
        reference_5HW3=np.stack([c.crop_HW3 for c in references]),
        reference_ticks=tuple(c.tick for c in references),
        jaw_T17x2=jaw_T17x2[:ticks],
    )


def _fitted(tracks: Sequence[Track], num_frames: int, crop_width: int) -> tuple[Float32, Float32, Float32]:
    """Return points, matrices and jaw lines (crop px) of every tick, as a build makes them; NaN without a face."""
    points_T68x2 = np.full((num_frames, NUM_LANDMARKS, 2), np.nan, np.float32)
    matrix_T33 = np.full((num_frames, 3, 3), np.nan, np.float32)
    smooth_T68x2 = points_T68x2.copy()
    for track in tracks:
        span = slice(track.start, track.stop)
        points_T68x2[span] = bridge(track, MAX_GAP).points_N68x2
        smooth_T68x2[span] = smooth(points_T68x2[span], SMOOTHING)
        matrix_T33[span] = fit_all(smooth_T68x2[span], crop_width)
    return points_T68x2, matrix_T33, transform_points(smooth_T68x2[:, JAW], matrix_T33)


def network_crop(frame_HW3: UInt8, matrix_33: Float32, crop_width: int, mouth_px: int) -> UInt8:
    """Crop a face as in training: at the stored width, then resized to the network's, averaged by area."""
    height, width = stage_size(mouth_px)
    crop_HW3 = crop_face(frame_HW3, matrix_33, crop_width)
    if width == crop_width:
        return crop_HW3
    method = cv2.INTER_AREA if width < crop_width else cv2.INTER_LINEAR
    resized: UInt8 = cv2.resize(crop_HW3, (width, height), interpolation=method)
    return resized


def sharpness(crop_HW3: UInt8) -> float:
    """Return the variance of the Laplacian above the nose; below it, an open mouth would look sharper."""
    grey = cv2.cvtColor(crop_HW3[: len(crop_HW3) // 2], cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())


def choose(candidates: Sequence[Candidate], video: Video) -> list[Candidate]:
    """Return one crop from each fifth of the lip gaps, as far in time as possible from those already chosen.

    Raises:
        Rejected: NO_FACE if there are fewer than five.
    """
    whole = [c for c in candidates if c.whole]
    pool = sorted(whole if len(whole) >= NUM_REFERENCES else candidates, key=lambda c: (c.gap, c.tick))
    if len(pool) < NUM_REFERENCES:
        detail = f"{video.path.name}: {len(pool)} frames show a face, {NUM_REFERENCES} are needed as references"
        raise Rejected(RejectReason.NO_FACE, detail)
    chosen: list[Candidate] = []
    for numbers in np.array_split(np.arange(len(pool)), NUM_REFERENCES):
        group = [pool[number] for number in numbers]
        distance = {c.tick: min((abs(c.tick - d.tick) for d in chosen), default=0) for c in group}
        chosen.append(max(group, key=lambda c: (distance[c.tick], c.sharpness)))
    return chosen


def _finite(matrix_T33: Float32) -> Bool:
    return np.asarray(np.isfinite(matrix_T33).all((1, 2)))
