"""What a source of landmarks is, and the sources there are.

To add one: write a class with `name` and `detect` in its own file, and add it to SOURCES.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from lawdnet.landmarks.openface import OpenFace
from lawdnet.types import Landmarks


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
