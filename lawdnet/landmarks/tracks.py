"""Whose face is where: the tracks of a video, before any of it is cropped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from lawdnet.face.track import Track, choose, link
from lawdnet.landmarks.base import LandmarkSource
from lawdnet.types import Beat, UInt8, Video, no_beat
from lawdnet.video import decode

MAX_GAP = 5
"""Frames without a face that are bridged, unless told."""
SMOOTHING = 0.5
"""Standard deviation in frames of the smoothing that steadies a crop, unless told."""
NO_PICTURE: UInt8 = np.zeros((0, 0, 3), np.uint8)


def find_tracks(video: Video, source: LandmarkSource, *, face: str, max_gap: int, beat: Beat = no_beat) -> list[Track]:
    """The tracks that are wanted; the pictures are decoded only for a source that looks at them.

    Cuts are not known yet: a track may go on from a person to whoever has the same place in the next shot.

    Args:
        video: as probed.
        source: finds the faces of a picture.
        face: see `lawdnet.face.track.choose`.
        max_gap: ticks without a face that do not end a track.
        beat: called for every tick.

    Raises:
        Rejected: the source has no landmarks for the video, or it does not decode.
    """

    def ticks() -> Iterator[tuple[int, UInt8]]:
        unseen = ((int(index), NO_PICTURE) for index in video.shown_T)
        for tick in decode(video.path) if source.reads_pictures else unseen:
            beat()
            yield tick

    # a file may decode to a tick more than its packets promise, and sound is as long as the promise
    faces_T = list(source.faces(video, ticks()))[: video.num_frames]
    return choose(link(faces_T, max_gap=max_gap), face)


def cut_in_two(track: Track, tick: int) -> tuple[Track, Track]:
    """The parts of a track before a tick within it, and from there on."""
    place = tick - track.start
    before = replace(track, points_N68x2=track.points_N68x2[:place], valid_N=track.valid_N[:place])
    after = replace(track, start=tick, points_N68x2=track.points_N68x2[place:], valid_N=track.valid_N[place:])
    return before, after


def cut_at(tracks: Sequence[Track], ticks: Iterable[int]) -> list[Track]:
    """The tracks with none that goes over one of the ticks."""
    parts = list(tracks)
    for tick in ticks:
        parts = [
            part
            for track in parts
            for part in (cut_in_two(track, tick) if track.start < tick < track.stop else (track,))
        ]
    return parts
