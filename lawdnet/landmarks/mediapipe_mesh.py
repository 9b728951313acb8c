"""Faces from the networks of MediaPipe's Face Landmarker, tracked from frame to frame: the 68 iBUG points of its mesh.

The networks run in LiteRT, without the package mediapipe. Points are not smoothed over time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from lawdnet.face.track import Box, iou
from lawdnet.landmarks import blazeface
from lawdnet.landmarks.base import Frames, in_batches
from lawdnet.landmarks.mesh import Mesh, around_detection, find_mesh
from lawdnet.landmarks.square import Square
from lawdnet.landmarks.tflite import Network, check_bundle, load
from lawdnet.storage import Location, files_sha256
from lawdnet.types import Face, Float32, UInt8, Video
from lawdnet.weights import find_weights

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
FIRST = np.array([points[0] for points in MESH_POINTS])
SECOND = np.array([points[-1] for points in MESH_POINTS])
DETECT_EVERY = 10
"""Frames after which faces that have appeared are searched, although no known face was lost."""
SAME_FACE_IOU = 0.5
"""Two meshes in one frame whose boxes overlap more than this are the same face."""


class MediaPipe:
    """Detects faces in frames and follows them, on one CPU core. The networks load at the first frame.

    Args:
        weights_dir: searched for the bundle before the usual folders.
        model: file name of the bundle, or a path.
        num_faces: most faces in one frame.
        min_score: smallest confidence of the detector and of the mesh, 0 … 1.

    Raises:
        ValueError: the bundle is neither found nor fetched, or it is damaged.
    """

    name = "mediapipe"
    reads_frames = True

    def __init__(
        self,
        *,
        weights_dir: Location | None = None,
        model: str = "face_landmarker.task",
        num_faces: int = 4,
        min_score: float = 0.5,
    ) -> None:
        self._model = find_weights(model, weights_dir)
        check_bundle(self._model)
        self.num_faces, self.min_score = num_faces, min_score

    @property
    def model_sha256(self) -> str | None:
        """SHA-256 of the bundle, which is read once per process."""
        return files_sha256([self._model])

    def faces(self, video: Video, frames: Frames) -> Iterator[list[Face]]:
        """Yield the faces of every tick; see `LandmarkSource.faces`."""
        tracker = Tracker(*self._networks, num_faces=self.num_faces, min_score=self.min_score)
        yield from in_batches(video, frames, lambda images: [tracker.find(image) for image in images])

    @cached_property
    def _networks(self) -> tuple[Network, Network]:
        return load(self._model)


class Tracker:
    """Follows the faces of one video.

    A face is searched where it was in the last frame. The detector runs only if a face was lost or none is known, and
    every `DETECT_EVERY` frames.
    """

    def __init__(self, detector: Network, mesh: Network, *, num_faces: int, min_score: float) -> None:
        self._detector, self._mesh = detector, mesh
        self._num_faces, self._min_score = num_faces, min_score
        self._squares: list[Square] = []
        self._frames = 0

    def find(self, image_HW3: UInt8) -> list[Face]:
        """Return the faces of the next frame, known ones first."""
        meshes = self._meshes(image_HW3, self._squares, [])
        is_due = self._frames % DETECT_EVERY == 0
        if len(meshes) < self._num_faces and (is_due or not meshes or len(meshes) < len(self._squares)):
            detections = self._detect(image_HW3, with_small=is_due and not meshes)
            meshes = self._meshes(image_HW3, [around_detection(face) for face in detections], meshes)
        self._squares = [mesh.square for mesh in meshes]
        self._frames += 1
        return [Face(to_68(mesh.points_Mx2), mesh.score) for mesh in meshes]

    def _detect(self, image_HW3: UInt8, with_small: bool) -> list[blazeface.Detection]:
        """Return the faces of an image; with `with_small`, small ones are searched if there are no others."""
        found = blazeface.detect(self._detector, image_HW3, self._min_score)
        if not found and with_small:
            found = blazeface.detect_small(self._detector, image_HW3, self._min_score)
        return found

    def _meshes(self, image_HW3: UInt8, squares: Sequence[Square], known: Sequence[Mesh]) -> list[Mesh]:
        """Return the known meshes, and those of faces in the squares that are not among them."""
        meshes = list(known)
        for square in squares:
            if len(meshes) == self._num_faces:
                break
            if any(_is_within(square, mesh) for mesh in known):
                continue
            mesh = find_mesh(self._mesh, image_HW3, square)
            is_new = all(iou(_box(mesh), _box(other)) <= SAME_FACE_IOU for other in meshes)
            if mesh.score >= self._min_score and is_new:
                meshes.append(mesh)
        return meshes


def to_68(points_Mx2: Float32) -> Float32:
    """Return the iBUG points of a mesh."""
    return ((points_Mx2[FIRST] + points_Mx2[SECOND]) / 2).astype(np.float32)


def _box(mesh: Mesh) -> Box:
    (x0, y0), (x1, y1) = mesh.points_Mx2.min(0).tolist(), mesh.points_Mx2.max(0).tolist()
    return x0, y0, x1, y1


def _is_within(square: Square, mesh: Mesh) -> bool:
    """Whether the centre of a square lies in the box of a mesh."""
    x0, y0, x1, y1 = _box(mesh)
    return x0 <= square.x <= x1 and y0 <= square.y <= y1
