"""dlib's face embedding (King 2017): 128 numbers that are near each other for faces of one person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lawdnet.storage import Location
from lawdnet.types import Float32, UInt8
from lawdnet.weights import find_weights, need_package

FILE = "dlib_face_recognition_resnet_model_v1.dat"
EXTRA = "evaluation"
CHIP_PX, CHIP_MARGIN = 150, 0.25
"""Size and margin of the face that the network sees, as in dlib's own example."""


class FaceEmbedder:
    """The network; its package is `dlib-bin`. Faces are cut out at their landmarks, so no detector is needed.

    Args:
        file: the network's weights.

    Raises:
        ValueError: the package is missing.
        RuntimeError: the file holds something else.
    """

    def __init__(self, file: Path) -> None:
        need_package("dlib", EXTRA)
        import dlib

        self._dlib = dlib
        self._network = dlib.face_recognition_model_v1(str(file))

    @classmethod
    def find(cls, weights_dir: Location | None = None) -> FaceEmbedder:
        """The network with its published weights, which are fetched if they are not here.

        Raises:
            ValueError: the package or the weights are missing, or damaged.
        """
        need_package("dlib", EXTRA)
        file = find_weights(FILE, weights_dir)
        try:
            return cls(file)
        except RuntimeError as error:
            raise ValueError(f"{file}: not dlib's face embedding ({str(error).splitlines()[0]})") from error

    def embed(self, images_THW3: UInt8, points_T68x2: Float32) -> np.ndarray:
        """Return T×128 embeddings of the faces with these landmarks, of length about 1."""
        chips = [self._chip(image, points) for image, points in zip(images_THW3, points_T68x2, strict=True)]
        return np.array(self._network.compute_face_descriptor(chips), np.float64)

    def person(self, images_THW3: UInt8, points_T68x2: Float32) -> np.ndarray:
        """Return the mean embedding of images of one face, 128 numbers."""
        return np.asarray(self.embed(images_THW3, points_T68x2).mean(0))

    def _chip(self, image_HW3: UInt8, points_68x2: Float32) -> Any:
        points = [self._dlib.point(*map(int, point)) for point in np.rint(points_68x2)]
        low, high = points_68x2.min(0), points_68x2.max(0)
        box = self._dlib.rectangle(*map(int, np.rint([*low, *high])))
        shape = self._dlib.full_object_detection(box, points)
        return self._dlib.get_face_chip(np.ascontiguousarray(image_HW3), shape, CHIP_PX, CHIP_MARGIN)
