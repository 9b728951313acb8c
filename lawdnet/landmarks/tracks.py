"""Find the face tracks of a video before any of it is cropped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from lawdnet.face.track import Track, choose, link
from lawdnet.landmarks.base import LandmarkSource
from lawdnet.types import Beat, UInt8, Video, no_beat
from lawdnet.video import decode_ticks

MAX_GAP = 5
"""Default for the longest gap without a face that is bridged, in ticks."""
SMOOTHING = 0.5
"""Default for the standard deviation, in ticks, of the smoothing of a crop's alignment."""
NO_FRAME: UInt8 = np.zeros((0, 0, 3), np.uint8)


def find_tracks(
    video: Video,
    source: LandmarkSource,
    *,
    face: str,
    max_gap: int,
    ticks: range | None = None,
    beat: Beat = no_beat,
) -> list[Track]:
    """Find the tracks that the option `face` asks for; frames are decoded only if the source uses their pixels.

    Cuts are not known yet: a track may continue with another person at the same position in the next shot.

    Args:
        video: as probed.
        source: finds the faces in each frame.
        face: see `lawdnet.face.track.choose`.
        max_gap: most ticks without a face that do not end a track.
        ticks: the part of the video that is looked at; None is all of it.
        beat: called for every tick.

    Raises:
        Rejected: the source has no landmarks for the video, or it does not decode.
    """

    ticks = ticks or range(video.num_frames)
    part = replace(video, num_frames=len(ticks), shown_T=video.shown_T[ticks.start : ticks.stop])

    def frames() -> Iterator[tuple[int, UInt8]]:
        undecoded = ((int(index), NO_FRAME) for index in part.shown_T)
        for tick in decode_ticks(video, ticks, beat) if source.reads_frames else undecoded:
            beat()
            yield tick

    # a file may decode to one tick more than its packets promise, but the audio is as long as promised
    faces_T = list(source.faces(part, frames()))[: len(ticks)]
    tracks = choose(link(faces_T, max_gap=max_gap), face)
    return [replace(track, start=ticks.start + track.start) for track in tracks]


def cut_in_two(track: Track, tick: int) -> tuple[Track, Track]:
    """Return the parts of a track before a tick within it, and from that tick on."""
    index = tick - track.start
    before = replace(track, points_N68x2=track.points_N68x2[:index], valid_N=track.valid_N[:index])
    after = replace(track, start=tick, points_N68x2=track.points_N68x2[index:], valid_N=track.valid_N[index:])
    return before, after


def cut_at(tracks: Sequence[Track], ticks: Iterable[int]) -> list[Track]:
    """Split the tracks so that none extends across one of the ticks."""
    parts = list(tracks)
    for tick in ticks:
        parts = [
            part
            for track in parts
            for part in (cut_in_two(track, tick) if track.start < tick < track.stop else (track,))
        ]
    return parts
