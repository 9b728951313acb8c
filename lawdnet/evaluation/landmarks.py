"""Landmarks of a face in aligned crops, found by one network in true and in generated frames alike.

The landmarks that a dataset stores may come from another source, at another resolution. Compared with those, a
generated mouth would also be charged for the difference between two sources.

Shape letters: T frames, H W crop height and width.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from lawdnet.face.points import BROWS, CHIN, OUTER_EYE_CORNERS
from lawdnet.landmarks.mediapipe_mesh import to_68
from lawdnet.landmarks.mesh import around, find_mesh
from lawdnet.landmarks.square import Square
from lawdnet.landmarks.tflite import check_bundle, load
from lawdnet.storage import Location, files_sha256
from lawdnet.types import Float32, Landmarks, UInt8
from lawdnet.weights import find_local, find_weights

BUNDLE = "face_landmarker.task"
FETCH = "lawdnet weights face_landmarker"
"""The command that fetches the network."""
MIN_SCORE = 0.5
"""Least confidence of the network, 0 … 1, for a face to count as found."""
FOREHEAD = 0.35
"""Height of the forehead, which the mesh contains and the 68 points do not, in distances from chin to brows."""


class FrameLandmarker(Protocol):
    """Finds the landmarks of one face in frames that show it, in crops of any size."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the network."""
        ...

    def find(self, frames_THW3: UInt8, around_T68x2: Float32) -> Landmarks:
        """Return T rows in px of the frames; a face that was not found is NaN and not valid.

        Args:
            frames_THW3: RGB crops of one face, which hardly moves in them.
            around_T68x2: where the true face is, in px of the frames. Only its usual place is used, not how its mouth
                moves.
        """
        ...


def find_bundle(weights_dir: Location | None = None, *, fetch: bool = False) -> Path:
    """Return the file with the network of `MeshLandmarker`.

    Args:
        weights_dir: searched before the usual folders.
        fetch: whether to fetch the file if it is in none of them.

    Raises:
        ValueError: it is not there, or damaged; the message says which command fetches it.
    """
    path = find_weights(BUNDLE, weights_dir) if fetch else find_local(BUNDLE, weights_dir)
    if path is None:
        raise ValueError(f"{BUNDLE} is not on this machine; fetch it with: {FETCH}")
    check_bundle(path)
    return path


class MeshLandmarker:
    """MediaPipe's face mesh without its detector: it is known where the face is. About 5 ms per frame on one CPU core.

    All frames are looked at in the same square, so that true and generated frames differ in their pixels only.

    Args:
        bundle: result of `find_bundle`.

    Raises:
        ValueError: the file is damaged.
    """

    def __init__(self, bundle: Path) -> None:
        self._bundle = bundle
        _, self._mesh = load(bundle)

    @property
    def sha256(self) -> str:
        """SHA-256 of the bundle with the network."""
        return files_sha256([self._bundle])

    def find(self, frames_THW3: UInt8, around_T68x2: Float32) -> Landmarks:
        """Return T rows; see `FrameLandmarker.find`."""
        square = _square(np.median(around_T68x2, axis=0))
        meshes = [find_mesh(self._mesh, frame_HW3, square) for frame_HW3 in frames_THW3]
        valid_T = np.array([mesh.score >= MIN_SCORE for mesh in meshes])
        points_T68x2 = np.stack([to_68(mesh.points_Mx2) for mesh in meshes])
        points_T68x2[~valid_T] = np.nan
        return Landmarks(points_T68x2=points_T68x2, valid_T=valid_T, source="mediapipe")


def _square(points_68x2: Float32) -> Square:
    """Return the square in which the mesh of a face with these points is searched."""
    brows, chin = points_68x2[BROWS].mean(0), points_68x2[CHIN]
    top = brows + FOREHEAD * (brows - chin)
    return around(np.vstack([points_68x2, top[None]]), points_68x2[OUTER_EYE_CORNERS])


class LandmarksByRow:
    """Landmarks of the rows of a validation; frames that do not depend on the generator are looked at only once.

    Args:
        landmarker: the network.
    """

    def __init__(self, landmarker: FrameLandmarker) -> None:
        self.landmarker = landmarker
        self._known: dict[Hashable, Landmarks] = {}

    def find(self, key: Hashable, shown: Mapping[str, UInt8], around_T68x2: Float32) -> dict[str, Landmarks]:
        """Return the landmarks of each row.

        Args:
            key: tells the windows of a dataset apart: equal keys have equal frames, except in the row "".
            shown: row → T×H×W×3 frames; the row "" is the generator's.
            around_T68x2: see `FrameLandmarker.find`.
        """
        found = {}
        for row, frames_THW3 in shown.items():
            if row == "":
                found[row] = self.landmarker.find(frames_THW3, around_T68x2)
                continue
            if (key, row) not in self._known:
                self._known[key, row] = self.landmarker.find(frames_THW3, around_T68x2)
            found[row] = self._known[key, row]
        return found


def scale_points(points_T68x2: Float32, from_width: int, to_width: int) -> Float32:
    """Return points in px of crops of another width; pixel centres are at integers."""
    scaled = (np.asarray(points_T68x2, np.float32) + 0.5) * np.float32(to_width / from_width) - 0.5
    return np.asarray(scaled, np.float32)


def scale_landmarks(landmarks: Landmarks, from_width: int, to_width: int) -> Landmarks:
    """Return landmarks in px of crops of another width."""
    return replace(landmarks, points_T68x2=scale_points(landmarks.points_T68x2, from_width, to_width))
