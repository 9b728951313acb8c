"""One video to segments: find the tracks, decode, crop; memory does not grow with the length of the video.

Shape letters: T ticks, N ticks of a track, H W crop height and width, C feature dimension; 33 a matrix that
takes frame px to crop px.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np

from lawdnet.audio.base import AudioExtractor, frame_features
from lawdnet.audio.io import load_audio
from lawdnet.data.config import BuildConfig
from lawdnet.data.quality import PictureScores, picture_scores, segment_scores
from lawdnet.face.align import crop_face, fit_all, transform_points
from lawdnet.face.track import KERNEL_SIGMAS, Track, bridge, inside, runs, smooth
from lawdnet.landmarks.base import LandmarkSource
from lawdnet.landmarks.tracks import cut_in_two, find_tracks
from lawdnet.types import (
    CLIP_FRAMES,
    SAMPLES_PER_FRAME,
    Beat,
    Float32,
    Rejected,
    RejectReason,
    Segment,
    UInt8,
    Video,
    no_beat,
)
from lawdnet.video import decode
from lawdnet.video.shots import with_cuts

Scorer = Callable[[Segment, Float32], Mapping[str, float]]
"""More scores of a segment, given the 640·T samples of its sound."""


def video_id(path: Path, sha256: str) -> str:
    """A name that a person recognises and that two different videos never share."""
    stem = re.sub(r"[^\w-]+", "_", path.stem).strip("_-")[:48] or "video"
    return f"{stem}-{sha256[:10]}"


def split_draw(sha256: str) -> float:
    """In [0, 1), by a video's content alone: neither its name nor its company moves it to another split."""
    return int(hashlib.sha256(f"split {sha256}".encode()).hexdigest()[:8], 16) / 2**32


def encode_jpeg(image_HW3: UInt8, quality: int) -> bytes:
    """RGB picture as JPEG without chroma subsampling (lips are small and red)."""
    flags = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image_HW3, cv2.COLOR_RGB2BGR), flags)
    assert done
    return data.tobytes()


def cut(length: int, min_frames: int, max_frames: int) -> list[int]:
    """Lengths of the segments that a run of `length` usable frames is cut into.

    Each is a multiple of 9 within the limits, and they differ by at most 9. With limits at least a factor of two apart
    fewer than 9 frames are lost at the end; a run shorter than `min_frames` gives nothing.
    """
    clips, least, most = (frames // CLIP_FRAMES for frames in (length, min_frames, max_frames))
    parts = min(-(-clips // most), clips // least)
    if not parts:
        return []
    small, larger = divmod(min(clips, parts * most), parts)
    return [(small + (part < larger)) * CLIP_FRAMES for part in range(parts)]


@dataclass
class Tally:
    """What became of a video's frames and of the time; filled while its segments are drawn."""

    beat: Beat = no_beat
    """Called wherever the work gets on: a watchdog listens."""
    frames: int = 0
    used: int = 0
    segments: int = 0
    no_face: int = 0
    outside: int = 0
    longest: int = 0
    """Usable frames in the longest row."""
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """By stage of the build."""

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the time of the block to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - began

    def describe(self) -> str:
        """One line for the `detail` column."""
        parts = [f"{self.used} of {self.frames} frames used"]
        causes = {"without a face": self.no_face, "with the face partly outside": self.outside}
        parts += [f"{count} {cause}" for cause, count in causes.items() if count]
        return "; ".join(parts)

    def short_reason(self, min_frames: int) -> RejectReason:
        """What to name when there are too few usable frames in a row."""
        if self.frames < min_frames or not (self.no_face or self.outside):
            return RejectReason.TOO_SHORT
        return RejectReason.NO_FACE if self.no_face >= self.outside else RejectReason.FACE_LEAVES_PICTURE


@dataclass(frozen=True)
class _Piece:
    """T consecutive usable frames of one track, ready to be a segment."""

    start: int
    track: int
    frames_jpeg: list[bytes]
    landmarks_T68x2: Float32
    matrix_T33: Float32
    detected_T: np.ndarray
    pictures: list[PictureScores]


_Fitted = tuple[np.ndarray, ...]
"""Of a track's ticks: points N×68×2 in crop px, matrices N×3×3, whether there is a face, and whether it can be used."""


def _fit(track: Track, height: int, width: int, config: BuildConfig) -> _Fitted:
    filled = bridge(track, config.max_gap)
    # smoothing steadies the crop; the mouth's own points stay as they were found
    matrix_N33 = fit_all(smooth(filled.points_N68x2, config.smoothing), config.crop_width)
    usable_N = filled.valid_N & np.isfinite(matrix_N33).all((1, 2)) & inside(filled.points_N68x2, height, width)
    return transform_points(filled.points_N68x2, matrix_N33), matrix_N33, filled.valid_N, usable_N


def _reach(config: BuildConfig) -> int:
    """How many ticks after it a crop depends on: those it is smoothed with, and a gap that is bridged to them."""
    return math.ceil(KERNEL_SIGMAS * config.smoothing) + config.max_gap + 1


class _Lane:
    """One track within one shot, on its way to segments; its crops wait here until a segment is full."""

    def __init__(
        self, number: int, track: Track, height: int, width: int, config: BuildConfig, fitted: _Fitted | None = None
    ) -> None:
        self.number, self.start, self.config, self.size = number, track.start, config, (height, width)
        self.first = 0  # tick of the oldest crop that waits
        self.frames_jpeg: list[bytes] = []
        self.pictures: list[PictureScores] = []
        self._set(track, fitted or _fit(track, height, width, config))

    def _set(self, track: Track, fitted: _Fitted) -> None:
        self.track, self.stop = track, track.stop
        self.points_N68x2, self.matrix_N33, self.valid_N, self.usable_N = fitted

    def split(self, tick: int, number: int) -> _Lane:
        """Ends this lane before a cut, and gives the one that goes on after it.

        What is bridged or smoothed never reaches over the cut; it comes early enough that no such crop was made yet.
        """
        place, track, rest = tick - self.start, *cut_in_two(self.track, tick)
        whole = self.points_N68x2, self.matrix_N33, self.valid_N, self.usable_N
        ends, begins = tuple(a[:place] for a in whole), tuple(a[place:] for a in whole)
        # only so near to the cut does anything change: a long track with many cuts is not fitted anew at each
        near = _reach(self.config)
        _, last = cut_in_two(track, max(tick - 2 * near, track.start))
        first, _ = cut_in_two(rest, tick + 2 * near)
        for old, new in zip(ends, _fit(last, *self.size, self.config), strict=True):
            old[-near:] = new[-near:]
        for old, new in zip(begins, _fit(first, *self.size, self.config), strict=True):
            old[:near] = new[:near]
        self._set(track, ends)
        return _Lane(number, rest, *self.size, self.config, begins)

    def see(self, tick: int, frame_HW3: UInt8) -> Iterator[_Piece]:
        """Takes the frame of a tick within the track; gives the pieces that it completes."""
        place = tick - self.start
        if self.usable_N[place]:
            self.first = self.first if self.frames_jpeg else tick
            crop_HW3 = crop_face(frame_HW3, self.matrix_N33[place], self.config.crop_width)
            self.frames_jpeg.append(encode_jpeg(crop_HW3, self.config.jpeg_quality))
            self.pictures.append(picture_scores(crop_HW3, self.points_N68x2[place], self.matrix_N33[place]))
            if len(self.frames_jpeg) >= self.config.max_frames + self.config.min_frames:
                yield self._take(self.config.max_frames)
        if not self.usable_N[place] or tick + 1 == self.stop:
            yield from self.end()

    def end(self) -> Iterator[_Piece]:
        """The pieces that what waits is cut into; the rest is lost."""
        for length in cut(len(self.frames_jpeg), self.config.min_frames, self.config.max_frames):
            yield self._take(length)
        self.frames_jpeg, self.pictures = [], []

    def _take(self, length: int) -> _Piece:
        start, place = self.first, slice(self.first - self.start, self.first - self.start + length)
        piece = _Piece(
            start,
            self.number,
            self.frames_jpeg[:length],
            self.points_N68x2[place],
            self.matrix_N33[place],
            self.track.valid_N[place],
            self.pictures[:length],
        )
        self.first += length
        del self.frames_jpeg[:length], self.pictures[:length]
        return piece


def video_segments(
    video: Video,
    *,
    name: str,
    split: str,
    source: LandmarkSource,
    extractors: Mapping[str, AudioExtractor],
    config: BuildConfig,
    tally: Tally,
    scorer: Scorer | None = None,
) -> Iterator[Segment]:
    """Draws the segments of one video, each face's in order; few crops wait in memory.

    Args:
        video: as probed.
        name: the video id.
        tally: counts frames and seconds as they go by.
        scorer: measures more of a finished segment.

    Raises:
        Rejected: at any point; segments drawn before it belong to a video that must not be kept.
    """
    if video.sample_rate is None:
        raise Rejected(RejectReason.NO_AUDIO, "there is no audio stream")
    with tally.timed("faces"):
        tracks = find_tracks(video, source, face=config.face, max_gap=config.max_gap, beat=tally.beat)
    with tally.timed("sound"):
        wave = load_audio(video.path, num_frames=video.num_frames)
        features = {
            extractor: frame_features(made, wave, video.num_frames, beat=tally.beat)
            for extractor, made in extractors.items()
        }
    lanes = [_Lane(number, track, video.height, video.width, config) for number, track in enumerate(tracks)]
    for index, piece in enumerate(_crop(video.path, lanes, config, tally)):
        stop = piece.start + len(piece.frames_jpeg)
        sound = wave[piece.start * SAMPLES_PER_FRAME : stop * SAMPLES_PER_FRAME]
        with tally.timed("score"):
            measured = segment_scores(piece.pictures, piece.matrix_T33, piece.detected_T, sound, config.crop_width)
            segment = Segment(
                segment_id=f"{name}-{index:04d}",
                video_id=name,
                index=index,
                start_frame=piece.start,
                track=piece.track,
                split=split,
                frames_jpeg=tuple(piece.frames_jpeg),
                landmarks_T68x2=piece.landmarks_T68x2,
                matrix_T33=piece.matrix_T33,
                features={extractor: rows_TC[piece.start : stop] for extractor, rows_TC in features.items()},
                scores=measured,
            )
            if scorer:
                segment = replace(segment, scores=measured | dict(scorer(segment, sound)))
        tally.segments += 1
        tally.used += segment.num_frames
        yield segment
    _judge(video, lanes, config, tally)


def _judge(video: Video, lanes: list[_Lane], config: BuildConfig, tally: Tally) -> None:
    """Whether a video may be kept, now that all of it was seen.

    Raises:
        Rejected: it held another number of frames than it promised, or gave no segment.
    """
    if abs(tally.frames - video.num_frames) > 1:
        promise = f"the file promises {video.num_frames} frames and decodes to {tally.frames}"
        raise Rejected(RejectReason.DAMAGED, promise)
    _count(lanes, tally)
    if not tally.segments:
        need = f"at most {tally.longest} usable frames in a row, {config.min_frames} are needed"
        raise Rejected(tally.short_reason(config.min_frames), f"{need}; {tally.describe()}")


def _count(lanes: list[_Lane], tally: Tally) -> None:
    """What could become of the frames: of each tick the best that any lane made of it."""
    valid_T, usable_T = np.zeros(tally.frames, bool), np.zeros(tally.frames, bool)
    for lane in lanes:
        span = slice(lane.start, min(lane.stop, tally.frames))
        valid_T[span] |= lane.valid_N[: len(valid_T[span])]
        usable_T[span] |= lane.usable_N[: len(valid_T[span])]
        tally.longest = max([tally.longest, *(stop - start for start, stop in runs(lane.usable_N))])
    tally.no_face, tally.outside = int((~valid_T).sum()), int((valid_T & ~usable_T).sum())


def _crop(path: Path, lanes: list[_Lane], config: BuildConfig, tally: Tally) -> Iterator[_Piece]:
    """Decodes, crops and encodes: each lane sees the ticks of its track; a cut makes two lanes of one in `lanes`."""
    waiting = deque(lanes)
    active: list[_Lane] = []
    pictures = (picture for _, picture in decode(path))
    began = time.perf_counter()
    for tick, frame_HW3, cuts in with_cuts(pictures, config.shot_threshold, _reach(config)):
        tally.beat()
        tally.frames += 1
        for cut_tick in cuts:
            for lane in [lane for lane in lanes if lane.start < cut_tick < lane.stop]:
                rest = lane.split(cut_tick, len(lanes))
                lanes.append(rest)
                waiting.append(rest)
                waiting = deque(sorted(waiting, key=lambda lane: lane.start))
        while waiting and waiting[0].start <= tick:
            active.append(waiting.popleft())
        pieces = [piece for lane in active for piece in lane.see(tick, frame_HW3)]
        active = [lane for lane in active if tick + 1 < lane.stop]
        tally.seconds["crop"] += time.perf_counter() - began
        yield from pieces
        began = time.perf_counter()
    yield from (piece for lane in active for piece in lane.end())
