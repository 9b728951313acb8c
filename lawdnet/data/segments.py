"""From one video to segments: find the tracks, decode, crop. Memory does not grow with the length of the video.

Shape letters: T ticks, N ticks of a track, H W crop height and width, C feature dimension; 33 a matrix that
takes frame px to crop px.
"""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lawdnet.audio.base import AudioExtractor, frame_features
from lawdnet.audio.io import load_video_audio
from lawdnet.audio.parts import part_of_audio
from lawdnet.data.config import BuildConfig
from lawdnet.data.levels import by_level, encode_jpeg, encode_small
from lawdnet.data.near_duplicates import MotionHasher, encode
from lawdnet.data.quality import ImageScores, image_scores, segment_scores
from lawdnet.data.spans import Span
from lawdnet.data.tally import Tally
from lawdnet.face.align import crop_face, fit_all, transform_points
from lawdnet.face.track import KERNEL_SIGMAS, Track, bridge, inside, runs, smooth
from lawdnet.landmarks.base import LandmarkSource
from lawdnet.landmarks.tracks import cut_in_two, find_tracks
from lawdnet.types import (
    CLIP_FRAMES,
    SAMPLES_PER_FRAME,
    Float32,
    Rejected,
    RejectReason,
    Segment,
    UInt8,
    Video,
)
from lawdnet.video import decode_ticks
from lawdnet.video.shots import with_cuts

Scorer = Callable[[Segment, Float32], Mapping[str, float]]
"""Computes more scores of a segment, given the 640·T samples of its audio."""
SpeechDetector = Callable[[Float32, int], Float32]
"""Gives the T frames of a video the probability that somebody speaks, from its 640·T samples."""
SPEAKS = 0.5
"""Probability above which a frame counts as speech."""


def video_id(path: Path, sha256: str) -> str:
    """Return a name that a person recognises and that two different videos never share."""
    stem = re.sub(r"[^\w-]+", "_", path.stem).strip("_-")[:48] or "video"
    return f"{stem}-{sha256[:10]}"


def cut(length: int, min_frames: int, max_frames: int) -> list[int]:
    """Return the lengths of the segments that a run of `length` usable frames is cut into.

    Each is a multiple of 9 within the limits, and they differ by at most 9. If the limits are at least a factor of two
    apart, fewer than 9 frames are lost at the end; a run shorter than `min_frames` gives no segment.
    """
    clips, least, most = (frames // CLIP_FRAMES for frames in (length, min_frames, max_frames))
    parts = min(-(-clips // most), clips // least)
    if not parts:
        return []
    small, larger = divmod(min(clips, parts * most), parts)
    return [(small + (part < larger)) * CLIP_FRAMES for part in range(parts)]


@dataclass(frozen=True)
class _Piece:
    """T consecutive usable frames of one track, ready to be a segment."""

    start: int
    track: int
    frames_jpeg: list[bytes]
    small_jpeg: list[dict[int, bytes]]
    """See `encode_small`."""
    landmarks_T68x2: Float32
    matrix_T33: Float32
    detected_T: np.ndarray
    scores: list[ImageScores]

    def segment(
        self,
        *,
        video_id: str,
        index: int,
        first: int,
        split: str,
        features: dict[str, Float32],
        scores: dict[str, float],
    ) -> Segment:
        """Return the row to store; segments and tracks are numbered from `first` on."""
        return Segment(
            segment_id=f"{video_id}-{first + index:04d}",
            video_id=video_id,
            index=first + index,
            start_frame=self.start,
            track=first + self.track,
            split=split,
            frames_jpeg=tuple(self.frames_jpeg),
            landmarks_T68x2=self.landmarks_T68x2,
            matrix_T33=self.matrix_T33,
            features=features,
            scores=scores,
            small_jpeg=by_level(self.small_jpeg),
        )


_Fitted = tuple[np.ndarray, ...]
"""For N ticks of a track: points N×68×2 in crop px, matrices N×3×3, whether there is a face, whether it is usable."""


def _fit(track: Track, height: int, width: int, config: BuildConfig) -> _Fitted:
    filled = bridge(track, config.max_gap)
    # smoothing steadies the crop; the points of the mouth stay as they were found
    matrix_N33 = fit_all(smooth(filled.points_N68x2, config.smoothing), config.crop_width)
    usable_N = filled.valid_N & np.isfinite(matrix_N33).all((1, 2)) & inside(filled.points_N68x2, height, width)
    return transform_points(filled.points_N68x2, matrix_N33), matrix_N33, filled.valid_N, usable_N


def _reach(config: BuildConfig) -> int:
    """Return how many later ticks a crop depends on: those it is smoothed with, and a gap that is bridged to them."""
    return math.ceil(KERNEL_SIGMAS * config.smoothing) + config.max_gap + 1


class _TrackSpan:
    """A track within one shot. Its crops wait here until there are enough for a segment."""

    def __init__(
        self, number: int, track: Track, height: int, width: int, config: BuildConfig, fitted: _Fitted | None = None
    ) -> None:
        self.number = number
        self.start = track.start
        self.config = config
        self.size = (height, width)
        self.first = 0  # tick of the oldest waiting crop
        self.frames_jpeg: list[bytes] = []
        self.small_jpeg: list[dict[int, bytes]] = []
        self.scores: list[ImageScores] = []
        self.motion = MotionHasher()
        self._set(track, fitted or _fit(track, height, width, config))

    def _set(self, track: Track, fitted: _Fitted) -> None:
        self.track = track
        self.stop = track.stop
        self.points_N68x2, self.matrix_N33, self.valid_N, self.usable_N = fitted

    def split(self, tick: int, number: int) -> _TrackSpan:
        """End this span before a cut, and return the span after it.

        Nothing is bridged or smoothed across the cut: this is called before any crop near the cut was made.
        """
        offset = tick - self.start
        track, rest = cut_in_two(self.track, tick)
        whole = self.points_N68x2, self.matrix_N33, self.valid_N, self.usable_N
        ends = tuple(values[:offset] for values in whole)
        begins = tuple(values[offset:] for values in whole)
        # only ticks near the cut change, so a long track with many cuts is not fitted again at each
        near = _reach(self.config)
        _, last = cut_in_two(track, max(tick - 2 * near, track.start))
        first, _ = cut_in_two(rest, tick + 2 * near)
        for old, new in zip(ends, _fit(last, *self.size, self.config), strict=True):
            old[-near:] = new[-near:]
        for old, new in zip(begins, _fit(first, *self.size, self.config), strict=True):
            old[:near] = new[:near]
        self._set(track, ends)
        return _TrackSpan(number, rest, *self.size, self.config, begins)

    def see(self, tick: int, frame_HW3: UInt8, has_audio: bool) -> Iterator[_Piece]:
        """Take the frame of a tick within the track; yield the pieces that it completes."""
        offset = tick - self.start
        is_usable = has_audio and self.usable_N[offset]
        if is_usable:
            self.first = self.first if self.frames_jpeg else tick
            crop_HW3 = crop_face(frame_HW3, self.matrix_N33[offset], self.config.crop_width)
            self.motion.see(tick, crop_HW3)
            self.frames_jpeg.append(encode_jpeg(crop_HW3, self.config.jpeg_quality))
            self.small_jpeg.append(encode_small(crop_HW3, self.config.jpeg_quality))
            self.scores.append(image_scores(crop_HW3, self.points_N68x2[offset], self.matrix_N33[offset]))
            if len(self.frames_jpeg) >= self.config.max_frames + self.config.min_frames:
                yield self._take(self.config.max_frames)
        if not is_usable or tick + 1 == self.stop:
            yield from self.end()

    def end(self) -> Iterator[_Piece]:
        """Yield the pieces that the waiting crops are cut into; the rest is dropped."""
        for length in cut(len(self.frames_jpeg), self.config.min_frames, self.config.max_frames):
            yield self._take(length)
        self.frames_jpeg, self.small_jpeg, self.scores = [], [], []

    def _take(self, length: int) -> _Piece:
        start = self.first
        ticks = slice(start - self.start, start - self.start + length)
        piece = _Piece(
            start,
            self.number,
            self.frames_jpeg[:length],
            self.small_jpeg[:length],
            self.points_N68x2[ticks],
            self.matrix_N33[ticks],
            self.track.valid_N[ticks],
            self.scores[:length],
        )
        self.first += length
        del self.frames_jpeg[:length], self.small_jpeg[:length], self.scores[:length]
        return piece


@dataclass(frozen=True)
class Sound:
    """The audio of some ticks of a video."""

    ticks: range
    samples: Float32
    frames: range
    """The ticks of the video that have audio."""

    def of(self, rows: range) -> Float32:
        """The samples of some of the ticks."""
        return self.samples[self.slice(rows, SAMPLES_PER_FRAME)]

    def slice(self, rows: range, each: int = 1) -> slice:
        """Where ticks are in an array that has `each` values per tick."""
        return slice((rows.start - self.ticks.start) * each, (rows.stop - self.ticks.start) * each)


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
    speech: SpeechDetector | None = None,
    span: Span | None = None,
) -> Iterator[Segment]:
    """Make the segments of one video, in order for each face; few crops wait in memory.

    Args:
        video: result of `lawdnet.video.probe`.
        name: the video id.
        tally: counts frames and seconds during the work.
        scorer: computes more scores of a finished segment.
        speech: measures the score speech_ratio instead of `lawdnet.data.quality`.
        span: the part of a long video that is wanted; it may have no segments.

    Raises:
        Rejected: at any point; the segments made before belong to a video that must not be kept.
    """
    if video.sample_rate is None:
        raise Rejected(RejectReason.NO_AUDIO, "there is no audio stream")
    wanted = span.ticks if span else range(video.num_frames)
    seen = span.seen(_reach(config)) if span else wanted
    with tally.timed("faces"):
        tracks = find_tracks(video, source, face=config.face, max_gap=config.max_gap, ticks=seen, beat=tally.beat)
    with tally.timed("sound"):
        sound = read_sound(video, span, config)
        features = {
            extractor: frame_features(made, sound.samples, len(sound.ticks), beat=tally.beat)
            for extractor, made in extractors.items()
        }
        speaks_T = speech(sound.samples, len(sound.ticks)) > SPEAKS if speech else None
    spans = [_TrackSpan(number, track, video.height, video.width, config) for number, track in enumerate(tracks)]
    heard = range(max(sound.frames.start, wanted.start), min(sound.frames.stop, wanted.stop))
    for index, piece in enumerate(_crop(video, spans, seen, wanted, heard, config, tally)):
        rows = range(piece.start, piece.start + len(piece.frames_jpeg))
        samples = sound.of(rows)
        with tally.timed("score"):
            measured = segment_scores(
                piece.scores, piece.landmarks_T68x2, piece.matrix_T33, piece.detected_T, samples, config.crop_width
            )
            if speaks_T is not None:
                measured["speech_ratio"] = float(speaks_T[sound.slice(rows)].mean())
            said = {extractor: rows_TC[sound.slice(rows)] for extractor, rows_TC in features.items()}
            first = span.first_number if span else 0
            segment = piece.segment(
                video_id=name, index=index, first=first, split=split, features=said, scores=measured
            )
            if scorer:
                segment = replace(segment, scores=measured | dict(scorer(segment, samples)))
        tally.segments += 1
        tally.used += segment.num_frames
        yield segment
    _check_frames(wanted, tally)
    _count(spans, heard, wanted, tally)
    tally.perceptual_hash = encode(span.motion for span in spans)
    if not span:
        tally.check(config.min_frames)


def read_sound(video: Video, span: Span | None, config: BuildConfig) -> Sound:
    """Read the audio of a video, or of a span with what is heard around it.

    Raises:
        Rejected: there is none, or the part of the video that has audio is shorter than a segment.
    """
    if span:
        return Sound(span.audible, part_of_audio(video.path, span.audible, span.long.marks_M3), span.long.heard)
    audio = load_video_audio(video.path, num_frames=video.num_frames)
    check_heard(audio.frames, audio.missing, config)
    return Sound(range(video.num_frames), audio.samples, audio.frames)


def check_heard(frames: range, missing: str, config: BuildConfig) -> None:
    """Raise Rejected if the part of the video that has audio is shorter than a segment."""
    if missing and len(frames) < config.min_frames:
        detail = f"the audio {missing}; {len(frames)} frames have audio, {config.min_frames} are needed"
        raise Rejected(RejectReason.AUDIO_TOO_SHORT, detail)


def _check_frames(wanted: range, tally: Tally) -> None:
    """Raise Rejected if another number of frames was decoded than the file's header says."""
    if abs(tally.frames - len(wanted)) > 1:
        detail = f"the header says {len(wanted)} frames, {tally.frames} were decoded"
        raise Rejected(RejectReason.DAMAGED, detail)


def _count(spans: list[_TrackSpan], heard: range, wanted: range, tally: Tally) -> None:
    """Count the frames by what was wrong with them: a tick is usable if any span could use it.

    Args:
        heard: those of the `wanted` ticks that have audio.
    """
    first = wanted.start
    valid_T, usable_T = np.zeros(tally.frames, bool), np.zeros(tally.frames, bool)
    heard_T = np.ones(tally.frames, bool)
    heard_T[: max(0, heard.start - first)] = heard_T[max(0, heard.stop - first) : len(wanted)] = False
    for span in spans:
        begin = max(span.start, first)
        end = max(begin, min(span.stop, first + tally.frames))
        ticks, own = slice(begin - first, end - first), slice(begin - span.start, end - span.start)
        valid_T[ticks] |= span.valid_N[own]
        usable_T[ticks] |= span.usable_N[own]
        usable_N = span.usable_N[own] & heard_T[ticks]
        tally.longest = max([tally.longest, *(stop - start for start, stop in runs(usable_N))])
    tally.no_audio = int((~heard_T).sum())
    tally.no_face = int((heard_T & ~valid_T).sum())
    tally.outside = int((heard_T & valid_T & ~usable_T).sum())


def _crop(
    video: Video,
    spans: list[_TrackSpan],
    seen: range,
    wanted: range,
    heard: range,
    config: BuildConfig,
    tally: Tally,
) -> Iterator[_Piece]:
    """Decode, crop and encode: each span sees the ticks of its track; a cut splits a span of `spans` in two.

    Args:
        seen: the ticks that are decoded. Those that are not `wanted` only tell where the cuts are.
        heard: those of the wanted ticks that have audio.
    """
    waiting = deque(spans)
    active: list[_TrackSpan] = []
    frames = (frame for _, frame in decode_ticks(video, seen, tally.beat))
    began = time.perf_counter()
    for tick, frame_HW3, cuts in with_cuts(frames, config.shot_threshold, _reach(config), seen.start):
        tally.beat()
        # of a whole video all that comes is counted: one tick more than its packets promise is no damage
        tally.frames += tick in wanted or len(wanted) == len(seen)
        for cut_tick in cuts:
            for span in [span for span in spans if span.start < cut_tick < span.stop]:
                rest = span.split(cut_tick, len(spans))
                spans.append(rest)
                waiting.append(rest)
                waiting = deque(sorted(waiting, key=lambda span: span.start))
        while waiting and waiting[0].start <= tick:
            active.append(waiting.popleft())
        pieces = [piece for span in active for piece in span.see(tick, frame_HW3, tick in heard)]
        active = [span for span in active if tick + 1 < span.stop]
        tally.seconds["crop"] += time.perf_counter() - began
        yield from pieces
        began = time.perf_counter()
    yield from (piece for span in active for piece in span.end())
