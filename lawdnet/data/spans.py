"""Spans: the parts of a long video that are built on their own, by any worker in any order.

A span depends on its own part of the file and on some of what is around it: frames that tell of cuts and steady the
crop, and audio for extractors that look far. Nothing continues into the next one: tracks and segments end at a border,
and which face is the largest is decided anew. A border lies on a cut where one is near, and then costs nothing.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lawdnet.audio.parts import Heard
from lawdnet.storage import Location, atomic
from lawdnet.types import FPS, Beat, Int64, Video
from lawdnet.video import decode
from lawdnet.video.shots import ShotDetector

MARGIN_TICKS = FPS
"""Ticks before and after a span that are looked at: a detector of cuts needs five, a tracker of faces some more."""
HEARD_TICKS = 10 * FPS
"""Ticks before and after a span whose audio is heard by extractors, some of which look far."""
NEAR_TICKS = 5 * FPS
"""A border moves by at most this much to a cut."""
NUMBERS = 100_000
"""Numbers of segments and tracks that each span has for itself."""
ABOUT = ("num_frames", "num_source_frames", "height", "width", "fps", "sample_rate")


@dataclass(frozen=True, kw_only=True, eq=False)
class LongVideo:
    """What all spans of a video need to know of it, found out once."""

    video: Video
    heard: range
    """The ticks that have audio."""
    marks_M3: Int64
    """See `lawdnet.audio.parts.Heard`."""

    @classmethod
    def of(cls, video: Video, heard: Heard) -> LongVideo:
        """From what probing and hearing told."""
        return cls(video=video, heard=heard.frames, marks_M3=heard.marks_M3)

    def write(self, file: Location) -> None:
        """Store it, all but the path; a file appears whole or not at all."""
        about = {name: getattr(self.video, name) for name in ABOUT} | {"heard": [self.heard.start, self.heard.stop]}
        with atomic(file) as temporary, temporary.open("wb") as out:
            np.savez_compressed(
                out,
                about=np.array(json.dumps(about)),
                shown_T=self.video.shown_T,
                stamps_F=self.video.stamps_F,
                marks_M3=self.marks_M3,
            )

    @classmethod
    def read(cls, file: Location, path: Path) -> LongVideo:
        """Read what `write` stored. Args: path: the video."""
        with np.load(io.BytesIO(file.read_bytes())) as arrays:
            about = json.loads(str(arrays["about"]))
            heard = range(*about.pop("heard"))
            video = Video(path=path, **about, shown_T=arrays["shown_T"], stamps_F=arrays["stamps_F"])
            return cls(video=video, heard=heard, marks_M3=arrays["marks_M3"])


@dataclass(frozen=True, kw_only=True)
class Span:
    """A part of a long video."""

    long: LongVideo
    number: int
    ticks: range

    @property
    def first_number(self) -> int:
        """Number of its first segment and track."""
        return self.number * NUMBERS

    def seen(self, reach: int) -> range:
        """The ticks that are decoded. Args: reach: how far the crop of a tick depends on others."""
        return self._around(reach + MARGIN_TICKS)

    @property
    def audible(self) -> range:
        """The ticks whose audio is read."""
        return self._around(HEARD_TICKS)

    def _around(self, more: int) -> range:
        return range(max(0, self.ticks.start - more), min(self.long.video.num_frames, self.ticks.stop + more))


def is_long(video: Video, span_ticks: int) -> bool:
    """Whether a video is to be divided: it is longer than a span (0: there are none), and can be sought in."""
    return 0 < span_ticks < video.num_frames and len(video.stamps_F) > 0


def find_borders(video: Video, span_ticks: int, shot_threshold: float, beat: Beat) -> list[int]:
    """Divide a video into spans of about equal length, at most `span_ticks` and what a border moves to a cut.

    Args:
        video: as probed.
        span_ticks: longest span; a video that is no longer is one span.
        shot_threshold: see `ShotDetector`.
        beat: called for every frame that is decoded.

    Returns:
        The first tick of every span, and the number of ticks of the video.

    Raises:
        Rejected: the video does not decode.
    """
    count = max(1, -(-video.num_frames // span_ticks))
    even = [round(number * video.num_frames / count) for number in range(count + 1)]
    near = min(NEAR_TICKS, video.num_frames // count // 4) if shot_threshold else 0
    return [0, *(_nearest_cut(video, border, near, shot_threshold, beat) for border in even[1:-1]), even[-1]]


def _nearest_cut(video: Video, border: int, near: int, shot_threshold: float, beat: Beat) -> int:
    """Return the cut that is nearest to a border, if one is `near`, or else the border."""
    if not near:
        return border
    first = max(0, border - near - MARGIN_TICKS)
    detector = ShotDetector(shot_threshold, first)
    for _, frame_HW3 in decode(video.path, start=first, stop=border + near + MARGIN_TICKS, probed=video, beat=beat):
        detector.add(frame_HW3)
        beat()
    cuts = [cut for cut in detector.shots[1:] if abs(cut - border) <= near]
    return min(cuts, key=lambda cut: abs(cut - border), default=border)
