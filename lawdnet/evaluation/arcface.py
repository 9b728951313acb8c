"""ArcFace's embedding (Deng et al. 2019) from an ONNX file of InsightFace, run by OpenCV."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from lawdnet.types import Float32, UInt8

FILE = "w600k_r50.onnx"
SIDE = 112
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float64
)
"""Where InsightFace puts the eyes, the nose and the corners of the mouth of an aligned face, px."""
LEFT_EYE, RIGHT_EYE, NOSE, CORNERS = slice(36, 42), slice(42, 48), 30, (48, 54)


class ArcFace:
    """The network of InsightFace's recognition models: RGB in [-1, 1], 112×112 px, aligned by five points.

    Args:
        file: an ONNX file with one image as input and one embedding as output.

    Raises:
        ValueError: it is not one.
    """

    def __init__(self, file: Path) -> None:
        try:
            self._network = cv2.dnn.readNetFromONNX(str(file))
            self._run(np.zeros((SIDE, SIDE, 3), np.uint8))
        except (cv2.error, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{file}: not an ArcFace network in ONNX ({reason})") from error

    def embed(self, images_THW3: UInt8, points_T68x2: Float32) -> np.ndarray:
        """Return T×D embeddings of the faces with these landmarks."""
        return np.stack([self._run(align(*face)) for face in zip(images_THW3, points_T68x2, strict=True)])

    def _run(self, image_SS3: UInt8) -> np.ndarray:
        blob = cv2.dnn.blobFromImage(image_SS3, 1 / 127.5, (SIDE, SIDE), (127.5, 127.5, 127.5))
        self._network.setInput(blob)
        found = np.asarray(self._network.forward(), np.float64)
        if found.ndim != 2 or found.shape[0] != 1:
            raise ValueError(f"its output has the shape {found.shape}")
        return found[0]


def align(image_HW3: UInt8, points_68x2: Float32) -> UInt8:
    """Return the 112×112 px face, by the similarity that best maps its five points to the template (Umeyama 1991)."""
    points_68x2 = np.asarray(points_68x2, np.float64)
    eyes = [points_68x2[LEFT_EYE].mean(0), points_68x2[RIGHT_EYE].mean(0)]
    z = np.array([*eyes, points_68x2[NOSE], *points_68x2[list(CORNERS)]]) @ (1, 1j)
    w = TEMPLATE @ (1, 1j)
    around = z - z.mean()
    a = ((w - w.mean()) * around.conj()).sum() / np.square(np.abs(around)).sum()
    b = w.mean() - a * z.mean()
    matrix_23 = np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])
    return np.asarray(cv2.warpAffine(image_HW3, matrix_23, (SIDE, SIDE), flags=cv2.INTER_LINEAR), np.uint8)
