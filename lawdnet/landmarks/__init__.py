"""Sources of facial landmarks: 68 points (iBUG order) for every face in every frame of a video.

A new source is a class in a file of its own (see `base.LandmarkSource`) and one line here.
"""

from lawdnet.landmarks.base import (
    SOURCES,
    LandmarkSource,
    has_csv,
    make_source,
    source_for,
    source_options,
)
from lawdnet.landmarks.fan import FaceAlignment
from lawdnet.landmarks.mediapipe_mesh import MediaPipe
from lawdnet.landmarks.openface import OpenFace

SOURCES |= {source.name: source for source in (OpenFace, FaceAlignment, MediaPipe)}

__all__ = [
    "SOURCES",
    "FaceAlignment",
    "LandmarkSource",
    "MediaPipe",
    "OpenFace",
    "has_csv",
    "make_source",
    "source_for",
    "source_options",
]
