"""What a source of landmarks is, and the sources there are.

To add one: write a class with `name` and `detect` in its own file, and add it to SOURCES.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lawdnet.landmarks.openface import OpenFace
from lawdnet.types import NUM_LANDMARKS, Landmarks, Rejected, RejectReason, Video

ROWS_TOLERANCE = 1
"""Landmark rows that may be missing or too many at the end; OpenFace often loses the last frame."""
MIN_FACE_PX = 4
"""Points closer together than this are no face."""
SPARE_ROWS = 2
"""Frames that may decode where probing did not promise them; they have no face."""


class LandmarkSource(Protocol):
    """Finds the face of a video."""

    name: str

    def detect(self, video_path: Path) -> Landmarks:
        """68 points for each of the source's own frames (not of the 25 fps clock).

        Rows without a face are invalid; frames after the last row have none either.

        Raises:
            Rejected: NO_LANDMARKS, BAD_LANDMARKS, NO_FACE or what reading the video raises.
        """
        ...


SOURCES: dict[str, type[LandmarkSource]] = {OpenFace.name: OpenFace}


def make_source(name: str, **options: Any) -> LandmarkSource:
    """The source of this name.

    Raises:
        ValueError: there is no such source; the message lists those there are.
    """
    if name not in SOURCES:
        raise ValueError(f"landmarks: unknown source {name!r}; there are {', '.join(sorted(SOURCES))}")
    return SOURCES[name](**options)


def landmarks_of(video: Video, source: LandmarkSource, tolerance: int = ROWS_TOLERANCE) -> Landmarks:
    """A video's landmarks, a row for each source frame and `SPARE_ROWS` more.

    Rows belong to the source's frames; another number of them means another file.

    Raises:
        Rejected: LANDMARK_COUNT, or what the source raises.
    """
    found = source.detect(video.path)
    rows, frames = len(found.valid_T), video.num_source_frames
    if abs(rows - frames) > tolerance:
        hint = " (the rows fit a 25 fps copy: put that copy beside the CSV)" if rows == video.num_frames else ""
        raise Rejected(RejectReason.LANDMARK_COUNT, f"{rows} landmark rows for {frames} frames{hint}")
    rows = min(rows, frames)
    points_T68x2 = np.full((frames + SPARE_ROWS, NUM_LANDMARKS, 2), np.nan, np.float32)
    points_T68x2[:rows] = found.points_T68x2[:rows]
    valid_T = np.zeros(frames + SPARE_ROWS, bool)
    with np.errstate(invalid="ignore"):
        spread_T = np.ptp(found.points_T68x2[:rows], axis=1).max(1)
        # trackers write zeros where they have nothing, and call it a success
        valid_T[:rows] = found.valid_T[:rows] & (spread_T >= MIN_FACE_PX)
    return Landmarks(points_T68x2=points_T68x2, valid_T=valid_T, source=found.source)
