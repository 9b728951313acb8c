"""Faces from MediaPipe's Face Landmarker: the 68 iBUG points from its mesh of 478 points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lawdnet.landmarks.base import Frames, in_batches
from lawdnet.storage import files_sha256
from lawdnet.types import Face, Float32, UInt8, Video
from lawdnet.weights import find_weights, need_package

PUBLISHED = "https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/"
MESH_POINTS = [
    # jaw, from the left of the image to the chin
    *[(127,), (234,), (93,), (132, 58), (58, 172), (136,), (150,), (176,), (152,)],
    *[(400,), (379,), (365,), (397, 288), (288, 361), (323,), (454,), (356,)],
    *[(70,), (63,), (105,), (66,), (107,)],  # brows
    *[(336,), (296,), (334,), (293,), (300,)],
    *[(168,), (197,), (5,), (4,)],  # nose
    *[(98,), (97,), (2,), (326,), (327,)],
    *[(33,), (160,), (158,), (133,), (153,), (144,)],  # eyes
    *[(362,), (385,), (387,), (263,), (373,), (380,)],
    *[(61,), (39,), (37,), (0,), (267,), (269,), (291,)],  # lips, outside
    *[(321, 405), (314,), (17,), (84,), (91, 181)],
    *[(78,), (82,), (13,), (312,), (308,), (317,), (14,), (87,)],  # lips, inside
]
"""For each iBUG point, the mesh points whose mean it is. Based on github.com/PeizhiYan/Mediapipe_2_Dlib_Landmarks, but
symmetric, with the bridge of the nose where the alignment template has it, and an evenly spaced lower lip."""
REFINE_SCALE = 2
"""Side of the square for the second detection, in face sizes …"""
MIN_SIDE = 16
"""… but at least this many px."""
FIRST = np.array([points[0] for points in MESH_POINTS])
SECOND = np.array([points[-1] for points in MESH_POINTS])


class MediaPipe:
    """Detects faces in frames, on the CPU. The network is loaded for each video.

    Each frame is processed by itself (running mode IMAGE). In mode VIDEO the search starts from the faces of the last
    frame, so the result would depend on where decoding began, and drift after a cut.

    Args:
        weights_dir: searched for the model before the usual folders; nothing is downloaded.
        model: file name of the model bundle, or a path.
        num_faces: most faces in one frame.
        min_score: smallest confidence of the detector and of the mesh, 0 … 1.

    Raises:
        ValueError: the package is not installed, or the model is not found.
    """

    name = "mediapipe"
    reads_frames = True

    def __init__(
        self,
        *,
        weights_dir: Path | None = None,
        model: str = "face_landmarker.task",
        num_faces: int = 4,
        min_score: float = 0.5,
    ) -> None:
        need_package("mediapipe", "mediapipe")
        self._model = find_weights(model, weights_dir, hint=f"it is published at {PUBLISHED}face_landmarker.task")
        self.num_faces, self.min_score = num_faces, min_score

    @property
    def model_sha256(self) -> str | None:
        """SHA-256 of the bundle, which is read once per process."""
        return files_sha256([self._model])

    def faces(self, video: Video, frames: Frames) -> Iterator[list[Face]]:
        """Yield the faces of every tick; see `LandmarkSource.faces`."""
        with self._open() as landmarker:  # closed here, because at interpreter exit it fails
            yield from in_batches(video, frames, lambda images: [find_faces(landmarker, image) for image in images])

    def _open(self) -> Any:
        from mediapipe.tasks import python
        from mediapipe.tasks.python import vision

        options = vision.FaceLandmarkerOptions(
            base_options=python.BaseOptions(model_asset_path=str(self._model)),
            running_mode=vision.RunningMode.IMAGE,
            num_faces=self.num_faces,
            min_face_detection_confidence=self.min_score,
            min_face_presence_confidence=self.min_score,
        )
        try:
            return vision.FaceLandmarker.create_from_options(options)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{self._model}: MediaPipe cannot use this file as a face landmarker: {reason}") from error


def find_faces(landmarker: Any, image_HW3: UInt8) -> list[Face]:
    """Find the faces of one image, each detected twice: in the whole image, then in a square around it.

    In the whole image the points of a small face jitter by several px; in the square, where the face is large, by half
    a px.
    """
    return [refine(landmarker, image_HW3, face) for face in _faces(landmarker, image_HW3)]


def refine(landmarker: Any, image_HW3: UInt8, face: Face) -> Face:
    """Detect a face again in a square twice its size; returns the face unchanged if that fails."""
    x0, y0, x1, y1 = face.box.tolist()
    side = max(MIN_SIDE, round(REFINE_SCALE * max(x1 - x0, y1 - y0)))
    corner = np.round([(x0 + x1 - side) / 2, (y0 + y1 - side) / 2]).astype(np.float32)
    x, y = (corner + (side - 1) / 2).tolist()
    square_SS3 = cv2.getRectSubPix(image_HW3, (side, side), (x, y)).astype(np.uint8, copy=False)
    found = [Face(again.points_68x2 + corner) for again in _faces(landmarker, square_SS3)]
    return min(found, key=lambda again: float(np.abs(again.points_68x2 - face.points_68x2).mean()), default=face)


def _faces(landmarker: Any, image_HW3: UInt8) -> list[Face]:
    import mediapipe

    image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(image_HW3))
    height, width = image_HW3.shape[:2]
    return [Face(to_68(mesh, height, width)) for mesh in landmarker.detect(image).face_landmarks]


def to_68(mesh: Sequence[Any], height: int, width: int) -> Float32:
    """Return iBUG points in px, pixel centres at integers, from a mesh with x and y as fractions of the image."""
    mesh_Mx2 = np.array([(point.x, point.y) for point in mesh]) * (width, height) - 0.5
    return ((mesh_Mx2[FIRST] + mesh_Mx2[SECOND]) / 2).astype(np.float32)
