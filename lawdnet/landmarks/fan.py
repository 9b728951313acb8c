"""Faces from the package face-alignment: a detector (S3FD or BlazeFace), then the landmark network FAN-4.

Bulat & Tzimiropoulos, "How far are we from solving the 2D & 3D face alignment problem?", ICCV 2017. Networks and
weights are those of the package; crops and peaks are ours, so that they run in batches and keep fractions of a px.

Shape letters: B images or crops, H W image, K faces of all images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from lawdnet.landmarks import s3fd
from lawdnet.landmarks.base import BATCH, Frames, in_batches
from lawdnet.models.device import images_to_tensor, pick_device
from lawdnet.networks import Network
from lawdnet.storage import Location, files_sha256
from lawdnet.types import Face, Float32, UInt8, Video
from lawdnet.weights import find_local, find_weights, need_package

if TYPE_CHECKING:
    import torch

FAN_FILE = "2DFAN4-11f355bf06.pth.tar"
DETECTORS = {"sfd": ["s3fd-619a316812.pth"], "blazeface": ["blazefaceback.pth", "anchorsback.npy"]}
"""Files of each detector; `lawdnet.weights` knows where they are published."""
BLAZEFACE_PX = 256
"""Side of the square that the back-camera network takes: a whole frame with small faces."""
CROP_PX, HEATMAP_PX = 256, 64
REFERENCE_SCALE = 195
"""Size of a face, in px, that the package's detectors are calibrated for (`FaceDetector.reference_scale`)."""
FACE_PX = 200
"""A crop of scale 1 spans this many px of the image (`face_alignment.utils.crop`)."""
MIN_HEAT = 1e-6
RAISED = 0.12
"""The centre of a crop lies above that of the box by this fraction of the box's height."""


class FaceAlignment:
    """Detects faces in frames, on the GPU if there is one. The networks load at the first frame.

    Args:
        weights_dir: searched for the weights before the usual folders and torch's hub cache.
        detector: `sfd` (accurate, slow on CPUs) or `blazeface` (fast, misses small faces).
        detect_px: frames are scaled down so that their longer side has this many px for the detector; 0 leaves them as
            they are. BlazeFace always gets 256 px.
        min_score: smallest confidence of the detector, 0 … 1.
        min_px: faces whose box is narrower than this in the frame are dropped.
        flip: also process the mirrored crop and average, as the package does: less jitter for twice the time.
        batch: crops that FAN processes together.
        device: `auto`, `cpu`, `cuda` or `mps`.

    Raises:
        ValueError: the package is not installed, weights cannot be had, or an option has an invalid value.
    """

    name = "face-alignment"
    reads_frames = True

    def __init__(
        self,
        *,
        weights_dir: Location | None = None,
        detector: str = "sfd",
        detect_px: int = 640,
        min_score: float = 0.5,
        min_px: int = 24,
        flip: bool = True,
        batch: int = 16,
        device: str = "auto",
    ) -> None:
        if detector not in DETECTORS:
            raise ValueError(f"detector: unknown {detector!r}; choose from {', '.join(DETECTORS)}")
        if detect_px < 0 or batch < 1:
            raise ValueError(f"detect_px must be at least 0 and batch at least 1, got {detect_px} and {batch}")
        need_package("face_alignment", "landmarks")
        self.detector, self.detect_px, self.device = detector, detect_px, device
        self.min_score, self.min_px, self.flip, self.batch = min_score, min_px, flip, batch
        self.calls = 1
        self.networks = {"detect": Network(self._boxes, BATCH), "align": Network(self._peaks, batch)}
        self._fan_file = _weights(FAN_FILE, weights_dir)
        self._detector_files = [_weights(name, weights_dir) for name in DETECTORS[detector]]

    @property
    def model_sha256(self) -> str | None:
        """SHA-256 of all files together, which are read once per process."""
        return files_sha256([self._fan_file, *self._detector_files])

    def faces(self, video: Video, frames: Frames) -> Iterator[list[Face]]:
        """Return the faces of every tick, the most confident first; see `LandmarkSource.faces`."""
        return in_batches(video, frames, self.find, self.calls)

    def find(self, images: Sequence[UInt8]) -> list[list[Face]]:
        """Return the faces of each image, the most confident first; all images have the same size."""
        boxes_of = [self._good(boxes) for boxes in self._detect(images)]
        squares = [[crop_square(box) for box in boxes] for boxes in boxes_of]
        crops = [cut(image, square) for image, found in zip(images, squares, strict=True) for square in found]
        points_K68x2 = self._align(crops, [square for found in squares for square in found])
        return [[Face(next(points_K68x2), float(box[4]), box[:4]) for box in boxes] for boxes in boxes_of]

    def _good(self, boxes: Iterable[Float32]) -> list[Float32]:
        """Return the boxes that are confident and large enough, the most confident first."""
        good = [box for box in boxes if box[4] >= self.min_score and box[2] - box[0] >= max(self.min_px, 1)]
        return sorted((box for box in good if np.isfinite(box).all() and box[3] > box[1]), key=lambda box: -box[4])

    def _detect(self, images: Sequence[UInt8]) -> list[Float32]:
        """Return x0 y0 x1 y1 in px of the image, and the score, of every face in each image."""
        square = self.detector == "blazeface"
        small_BHW3, scale = shrink(images, BLAZEFACE_PX if square else self.detect_px, square)
        back = np.array([1 / scale] * 4 + [1], np.float32)
        return [boxes_K5 * back for boxes_K5 in self.networks["detect"].compute(small_BHW3)]

    def _align(self, crops: Sequence[UInt8], squares: Sequence[Square]) -> Iterator[Float32]:
        """Yield 68 points in px of the image for every crop."""
        for start in range(0, len(crops), self.batch):
            batch = slice(start, start + self.batch)
            points_B68x2 = self.networks["align"].compute(np.stack(crops[batch]))
            yield from map(to_image, points_B68x2, squares[batch])

    def _boxes(self, small_BHW3: UInt8) -> list[Float32]:
        """Return K boxes with their scores, K×5 in px, of each image."""
        import torch

        if self.detector == "sfd":
            return s3fd.detect(self._detector.face_detector, small_BHW3, self._device, self.min_score)
        found = self._detector.detect_from_batch(torch.from_numpy(small_BHW3.transpose(0, 3, 1, 2).copy()))
        return [np.array(boxes, np.float32).reshape(-1, 5) for boxes in found]

    def _peaks(self, crops_BHW3: UInt8) -> list[Float32]:
        """Return 68 points in px of the heat map for every crop."""
        import torch

        crops_B3HW = images_to_tensor(crops_BHW3, self._device)
        with torch.inference_mode():
            heat_B68HW = self._fan(crops_B3HW)[-1]
            if self.flip:
                heat_B68HW = heat_B68HW + self._mirrored(self._fan(crops_B3HW.flip(-1))[-1])
        return [peaks(heat_68HW) for heat_68HW in heat_B68HW.cpu().numpy()]

    @cached_property
    def _device(self) -> torch.device:
        return pick_device(self.device)

    @cached_property
    def _detector(self) -> Any:
        from face_alignment.detection import blazeface, sfd

        if self.detector == "sfd":
            path = str(self._detector_files[0])
            return sfd.FaceDetector(str(self._device), path_to_detector=path, filter_threshold=self.min_score)
        weights, anchors = map(str, self._detector_files)
        return blazeface.FaceDetector(
            str(self._device), True, path_to_detector=weights, path_to_anchor=anchors, min_score_thresh=self.min_score
        )

    @cached_property
    def _fan(self) -> Any:
        import torch
        from face_alignment.models import FAN as Network

        network = Network(4)
        network.load_state_dict(torch.load(self._fan_file, map_location="cpu", weights_only=True))
        return network.to(self._device).eval()

    def _mirrored(self, heat_B68HW: Any) -> Any:
        from face_alignment.utils import flip

        return flip(heat_B68HW, is_label=True)


def _weights(name: str, weights_dir: Location | None) -> Path:
    """Find a weights file in the usual folders or where the package itself downloads it, or fetch it."""
    import torch

    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    if cached.is_file() and find_local(name, weights_dir) is None:
        return cached
    try:
        return find_weights(name, weights_dir)
    except ValueError as error:
        raise ValueError(f"{error} (nor is it in {cached.parent})") from error


def shrink(images: Sequence[UInt8], longest: int, square: bool) -> tuple[UInt8, float]:
    """Scale images for a detector.

    Args:
        images: all of the same size.
        longest: most px of the longer side, or exactly this many if `square`; 0 leaves the images as they are.
        square: pad with black at the right or the bottom.

    Returns:
        The images, B×H×W×3, and their scale.
    """
    height, width = images[0].shape[:2]
    scale = longest / max(height, width) if longest else 1.0
    if not square:
        scale = min(1.0, scale)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small_BHW3 = np.stack([cv2.resize(image, size, interpolation=method) for image in images], dtype=np.uint8)
    if square:
        small_BHW3 = np.pad(small_BHW3, [(0, 0), (0, longest - size[1]), (0, longest - size[0]), (0, 0)])
    return small_BHW3, scale


@dataclass(frozen=True)
class Square:
    """The part of an image that FAN sees, in px of the image."""

    x: float
    """Centre."""
    y: float
    side: float


def crop_square(box_4: Float32) -> Square:
    """Return the square for a detected face, placed as by `face_alignment.FaceAlignment.get_landmarks_from_image`."""
    x0, y0, x1, y1 = (float(value) for value in box_4[:4])
    side = FACE_PX * (x1 - x0 + y1 - y0) / REFERENCE_SCALE
    return Square((x0 + x1) / 2, (y0 + y1) / 2 - RAISED * (y1 - y0), side)


def cut(image_HW3: UInt8, square: Square) -> UInt8:
    """Cut out a square at 256×256 px like `face_alignment.utils.crop`, black outside the image.

    The package rounds the corners down to whole pixels, by half a pixel on average; here they are not rounded, so that
    a still face gives still points. Like the package, it shows the last 255/256 of the side.
    """
    step = square.side / CROP_PX * (CROP_PX - 1) / CROP_PX
    first = -(CROP_PX / 2 - 1) * square.side / CROP_PX - 0.5 + step / 2 - 0.5
    matrix_23 = np.array([[step, 0, square.x + first], [0, step, square.y + first]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image_HW3, matrix_23, (CROP_PX, CROP_PX), flags=flags).astype(np.uint8, copy=False)


def to_image(points_68x2: Float32, square: Square) -> Float32:
    """Map points from px of the heat map to px of the image, pixel centres at integers in both.

    Like `face_alignment.utils.transform_np`, but without its rounding down, which costs half a pixel on average.
    """
    centre = np.array([square.x, square.y])
    return ((points_68x2 + 0.5 - HEATMAP_PX / 2) * square.side / HEATMAP_PX + centre - 0.5).astype(np.float32)


def peaks(heat_68HW: Float32) -> Float32:
    """Return x and y of each heat map's peak, pixel centres at integers, from a parabola through the logarithms.

    It is exact for a Gaussian, which is what FAN is trained to output.
    """
    channels, height, width = heat_68HW.shape
    y, x = np.divmod(heat_68HW.reshape(channels, -1).argmax(1), width)

    def log(down: int, right: int) -> Float32:
        rows, columns = np.clip(y + down, 0, height - 1), np.clip(x + right, 0, width - 1)
        return np.log(np.maximum(heat_68HW[np.arange(channels), rows, columns], MIN_HEAT))

    right = x + _shift(log(0, -1), log(0, 0), log(0, 1))
    down = y + _shift(log(-1, 0), log(0, 0), log(1, 0))
    return np.stack([right, down], 1).astype(np.float32)


def _shift(before: Float32, at: Float32, after: Float32) -> Float32:
    """Return the position of the maximum of the parabola through three neighbours, from the middle one: -0.5 … 0.5."""
    bend = before - 2 * at + after
    return np.where(bend < 0, np.clip(0.5 * (before - after) / np.minimum(bend, -1e-9), -0.5, 0.5), 0)
