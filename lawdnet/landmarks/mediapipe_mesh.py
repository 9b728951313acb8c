"""Faces by MediaPipe's Face Landmarker: a mesh of 478 points, of which 68 become the iBUG points."""

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
    *[
        (127,),
        (234,),
        (93,),
        (132, 58),
        (58, 172),
        (136,),
        (150,),
        (176,),
        (152,),
    ],  # jaw, the person's right to the chin
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
"""For each iBUG point the points of the mesh whose mean it is: after github.com/PeizhiYan/Mediapipe_2_Dlib_Landmarks,
with both sides alike, the bridge of the nose where the alignment's template has it, and an evenly spaced lower lip."""
AROUND = 2
"""Side of the square of the second look, in faces."""
MIN_SIDE = 16
"""And at least this many px."""
FIRST = np.array([points[0] for points in MESH_POINTS])
SECOND = np.array([points[-1] for points in MESH_POINTS])


class MediaPipe:
    """Finds faces in pictures, on the CPU. The network loads with each video.

    Each picture is looked at by itself (running mode IMAGE): in mode VIDEO the search goes on where the last picture
    had its faces, so that what a tick gets depends on where decoding began, and wanders off after a cut.

    Args:
        weights_dir: looked in for the model before the usual folders; nothing is downloaded.
        model: file name of the model bundle, or a path.
        num_faces: most faces in one picture.
        min_score: least sureness of the detector and of the mesh, 0 … 1.

    Raises:
        ValueError: the package is not installed, or the model is not found.
    """

    name = "mediapipe"
    reads_pictures = True

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
        """Of the bundle; it is read once per process."""
        return files_sha256([self._model])

    def faces(self, video: Video, frames: Frames) -> Iterator[list[Face]]:
        """The faces of every tick; see `LandmarkSource.faces`."""
        with self._open() as landmarker:  # closed by hand: at the end of the interpreter it can no longer be
            yield from in_batches(video, frames, lambda pictures: [look(landmarker, picture) for picture in pictures])

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
            raise ValueError(f"{self._model}: MediaPipe cannot use it as a face landmarker: {reason}") from error


def look(landmarker: Any, picture_HW3: UInt8) -> list[Face]:
    """The faces of one picture, each looked at twice: where it is in the picture, then in a square around it.

    The network's place for a small face wanders by several px; of a face that fills the square it keeps to half a px.
    """
    return [closer(landmarker, picture_HW3, face) for face in _faces(landmarker, picture_HW3)]


def closer(landmarker: Any, picture_HW3: UInt8, face: Face) -> Face:
    """The same face, found again in a square that it fills half of; as it was where that fails."""
    x0, y0, x1, y1 = face.box.tolist()
    side = max(MIN_SIDE, round(AROUND * max(x1 - x0, y1 - y0)))
    corner = np.round([(x0 + x1 - side) / 2, (y0 + y1 - side) / 2]).astype(np.float32)
    x, y = (corner + (side - 1) / 2).tolist()
    square_SS3 = cv2.getRectSubPix(picture_HW3, (side, side), (x, y)).astype(np.uint8, copy=False)
    found = [Face(again.points_68x2 + corner) for again in _faces(landmarker, square_SS3)]
    return min(found, key=lambda again: float(np.abs(again.points_68x2 - face.points_68x2).mean()), default=face)


def _faces(landmarker: Any, picture_HW3: UInt8) -> list[Face]:
    import mediapipe

    image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(picture_HW3))
    height, width = picture_HW3.shape[:2]
    return [Face(to_68(mesh, height, width)) for mesh in landmarker.detect(image).face_landmarks]


def to_68(mesh: Sequence[Any], height: int, width: int) -> Float32:
    """iBUG points in px, pixel centres at integers, from a mesh whose x and y are shares of the picture."""
    mesh_Mx2 = np.array([(point.x, point.y) for point in mesh]) * (width, height) - 0.5
    return ((mesh_Mx2[FIRST] + mesh_Mx2[SECOND]) / 2).astype(np.float32)
