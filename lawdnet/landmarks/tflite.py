"""The networks of MediaPipe's Face Landmarker bundle, run by LiteRT (the runtime of TensorFlow Lite files)."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lawdnet.types import Float32

DETECTOR = "face_detector.tflite"
MESH = "face_landmarks_detector.tflite"


class Network:
    """A network with one image as input, run on one thread.

    Args:
        content: a TensorFlow Lite file.

    Raises:
        ValueError: it is not one.
    """

    def __init__(self, content: bytes) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_content=content, num_threads=1)
        self._interpreter.allocate_tensors()
        (image,) = self._interpreter.get_input_details()
        self._input = image["index"]
        self._outputs = [output["index"] for output in self._interpreter.get_output_details()]
        self.side = int(image["shape"][1])
        """Height and width of the image, in px."""

    def __call__(self, image_HW3: Float32) -> list[Float32]:
        """Return the network's outputs for one image, flattened."""
        self._interpreter.set_tensor(self._input, image_HW3[None])
        self._interpreter.invoke()
        return [np.ravel(self._interpreter.get_tensor(output)) for output in self._outputs]


def check_bundle(bundle: Path) -> None:
    """Check that a file has the networks, without loading them.

    Raises:
        ValueError: as `load`.
    """
    with _opened(bundle) as archive:
        archive.getinfo(DETECTOR)
        archive.getinfo(MESH)


def load(bundle: Path) -> tuple[Network, Network]:
    """Load the detector and the mesh network of a bundle.

    Args:
        bundle: `face_landmarker.task`, a zip archive.

    Raises:
        ValueError: the file is not such a bundle.
    """
    with _opened(bundle) as archive:
        return Network(archive.read(DETECTOR)), Network(archive.read(MESH))


@contextmanager
def _opened(bundle: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(bundle) as archive:
            yield archive
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        advice = "delete it and run: lawdnet weights face_landmarker"
        raise ValueError(f"{bundle}: not MediaPipe's face landmarker ({reason}); {advice}") from error
