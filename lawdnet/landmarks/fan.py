"""Faces by the package face-alignment: a detector (S3FD or BlazeFace), then the landmark network FAN-4.

Bulat & Tzimiropoulos, "How far are we from solving the 2D & 3D face alignment problem?", ICCV 2017. Networks and
weights are the package's; crops and peaks are ours, so that they go in batches and keep fractions of a px.

Shape letters: B pictures or crops, H W picture, K faces of all pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from lawdnet.landmarks.base import Frames, in_batches
from lawdnet.models.device import images_to_tensor, pick_device
from lawdnet.storage import files_sha256
from lawdnet.types import Face, Float32, UInt8, Video
from lawdnet.weights import find_weights, need_package

if TYPE_CHECKING:
    import torch

PUBLISHED = "https://www.adrianbulat.com/downloads/python-fan/"
BLAZEFACE = "https://github.com/hollance/BlazeFace-PyTorch/raw/master/"
FAN = ("2DFAN4-11f355bf06.pth.tar", PUBLISHED)
DETECTORS = {
    "sfd": [("s3fd-619a316812.pth", PUBLISHED)],
    "blazeface": [("blazefaceback.pth", BLAZEFACE), ("anchorsback.npy", BLAZEFACE)],
}
"""Files of each detector and where they are published."""
BLAZEFACE_PX = 256
"""The network of the back camera sees squares of this size, whole pictures with small faces."""
CROP_PX, HEATMAP_PX = 256, 64
FACE_PX = 200
"""A crop of scale 1 spans this many px of the picture (`face_alignment.utils.crop`)."""
SMALLEST_HEAT = 1e-6
RAISED = 0.12
"""A crop's centre lies above the box's by this share of its height."""


class FaceAlignment:
    """Finds faces in pictures, on the GPU where there is one. Networks load with the first picture.

    Args:
        weights_dir: looked in for the weights before the usual folders and torch's hub cache; nothing is downloaded.
        detector: `sfd` (accurate, slow on CPUs) or `blazeface` (fast, misses small faces).
        detect_px: pictures are scaled down for the detector to this long side; 0 leaves them. BlazeFace sees 256 px.
        min_score: least sureness of the detector, 0 … 1.
        min_px: faces whose box is narrower in the picture are left out.
        flip: looks at the mirrored crop too and averages, as the package does: steadier points at twice the time.
        batch: crops that FAN looks at together.
        device: `auto`, `cpu`, `cuda` or `mps`.

    Raises:
        ValueError: the package is not installed, weights are missing, or an option has no such value.
    """

    name = "face-alignment"
    reads_pictures = True

    def __init__(
        self,
        *,
        weights_dir: Path | None = None,
        detector: str = "sfd",
        detect_px: int = 640,
        min_score: float = 0.5,
        min_px: int = 24,
        flip: bool = True,
        batch: int = 16,
        device: str = "auto",
    ) -> None:
        if detector not in DETECTORS:
            raise ValueError(f"detector: unknown {detector!r}; there are {', '.join(DETECTORS)}")
        if detect_px < 0 or batch < 1:
            raise ValueError(f"detect_px, batch: {detect_px}, {batch}; give at least 0 and 1")
        need_package("face_alignment", "landmarks")
        self.detector, self.detect_px, self.device = detector, detect_px, device
        self.min_score, self.min_px, self.flip, self.batch = min_score, min_px, flip, batch
        self._fan_file = _weights(*FAN, weights_dir)
        self._detector_files = [_weights(name, url, weights_dir) for name, url in DETECTORS[detector]]

    @property
    def model_sha256(self) -> str | None:
        """Of all files together; they are read once per process."""
        return files_sha256([self._fan_file, *self._detector_files])

    def faces(self, video: Video, frames: Frames) -> Iterator[list[Face]]:
        """The faces of every tick, the surest first; see `LandmarkSource.faces`."""
        return in_batches(video, frames, self.find)

    def find(self, pictures: Sequence[UInt8]) -> list[list[Face]]:
        """The faces of pictures of one size, the surest first."""
        boxes_of = [self._good(boxes) for boxes in self._detect(pictures)]
        reference = self._detector.reference_scale
        places = [(place, crop_place(box, reference)) for place, boxes in enumerate(boxes_of) for box in boxes]
        points_K68x2 = iter(self._align([cut(pictures[place], crop) for place, crop in places], [c for _, c in places]))
        return [[Face(next(points_K68x2), float(box[4]), box[:4]) for box in boxes] for boxes in boxes_of]

    def _good(self, boxes: Sequence[Float32]) -> list[Float32]:
        """Those that are sure and large enough, the surest first."""
        good = [box for box in boxes if box[4] >= self.min_score and box[2] - box[0] >= max(self.min_px, 1)]
        return sorted((box for box in good if np.isfinite(box).all() and box[3] > box[1]), key=lambda box: -box[4])

    def _detect(self, pictures: Sequence[UInt8]) -> list[list[Float32]]:
        """x0 y0 x1 y1 in px of the picture, and the score, of every face."""
        import torch

        square = self.detector == "blazeface"
        small_BHW3, scale = shrink(pictures, BLAZEFACE_PX if square else self.detect_px, square)
        batch_B3HW = torch.from_numpy(np.ascontiguousarray(small_BHW3.transpose(0, 3, 1, 2)))
        found = self._detector.detect_from_batch(batch_B3HW)
        back = np.array([1 / scale] * 4 + [1], np.float32)
        return [[np.asarray(box, np.float32) * back for box in boxes] for boxes in found]

    def _align(self, crops: Sequence[UInt8], places: Sequence[Crop]) -> Iterator[Float32]:
        """68 points in px of the picture for every crop."""
        import torch

        for start in range(0, len(crops), self.batch):
            crops_B3HW = images_to_tensor(np.stack(crops[start : start + self.batch]), self._device)
            with torch.inference_mode():
                heat_B68HW = self._fan(crops_B3HW)[-1]
                if self.flip:
                    heat_B68HW = heat_B68HW + self._mirrored(self._fan(crops_B3HW.flip(-1))[-1])
            for heat_68HW, crop in zip(heat_B68HW.cpu().numpy(), places[start:], strict=False):
                yield to_picture(peaks(heat_68HW), crop)

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


def _weights(name: str, url: str, weights_dir: Path | None) -> Path:
    """A weights file, from the usual folders or where the package itself would have put it."""
    import torch

    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    try:
        return find_weights(name, weights_dir, hint=f"nor in {cached.parent}; it is published at {url}{name}")
    except ValueError:
        if cached.is_file():
            return cached
        raise


def shrink(pictures: Sequence[UInt8], longest: int, square: bool) -> tuple[UInt8, float]:
    """Pictures for a detector, and their scale.

    Args:
        pictures: of one size.
        longest: at most this many px for the longer side, and exactly this many where `square`; 0: as they are.
        square: fill up with black at the right or the bottom.
    """
    height, width = pictures[0].shape[:2]
    scale = longest / max(height, width) if longest else 1.0
    scale = scale if square else min(1.0, scale)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small_BHW3 = np.stack([cv2.resize(picture, size, interpolation=way) for picture in pictures]).astype(np.uint8)
    if square:
        small_BHW3 = np.pad(small_BHW3, [(0, 0), (0, longest - size[1]), (0, longest - size[0]), (0, 0)])
    return small_BHW3, scale


@dataclass(frozen=True)
class Crop:
    """The square that FAN sees."""

    x: float
    """Of its centre, in px of the picture."""
    y: float
    span: float
    """Its side in px of the picture."""


def crop_place(box_4: Float32, reference_scale: float) -> Crop:
    """The square for a detected face, as `face_alignment.FaceAlignment.get_landmarks_from_image` places it."""
    x0, y0, x1, y1 = (float(value) for value in box_4[:4])
    span = FACE_PX * (x1 - x0 + y1 - y0) / reference_scale
    return Crop((x0 + x1) / 2, (y0 + y1) / 2 - RAISED * (y1 - y0), span)


def cut(picture_HW3: UInt8, crop: Crop) -> UInt8:
    """What `face_alignment.utils.crop` shows the network, 256×256, black outside of the picture.

    The package rounds its corners to whole pixels, down, which is half a pixel on average; here they stay where they
    are, so that a still face gives still points. Of `span` it shows the last 255/256.
    """
    step = crop.span / CROP_PX * (CROP_PX - 1) / CROP_PX
    first = -(CROP_PX / 2 - 1) * crop.span / CROP_PX - 0.5 + step / 2 - 0.5
    matrix_23 = np.array([[step, 0, crop.x + first], [0, step, crop.y + first]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(picture_HW3, matrix_23, (CROP_PX, CROP_PX), flags=flags).astype(np.uint8, copy=False)


def to_picture(points_68x2: Float32, crop: Crop) -> Float32:
    """Points of the heat map, pixel centres at integers, in px of the picture.

    As `face_alignment.utils.transform_np`, which rounds down: half a pixel on average.
    """
    centre = np.array([crop.x, crop.y])
    return ((points_68x2 + 0.5 - HEATMAP_PX / 2) * crop.span / HEATMAP_PX + centre - 0.5).astype(np.float32)


def peaks(heat_68HW: Float32) -> Float32:
    """x, y of each heat map's peak, pixel centres at integers, by a parabola through the logarithms beside it.

    That is exact for a Gaussian, which is what FAN is trained to draw.
    """
    channels, _, width = heat_68HW.shape
    flat_68 = heat_68HW.reshape(channels, -1).argmax(1)
    y, x = np.divmod(flat_68, width)
    every = np.arange(channels)
    log = np.log(np.maximum(np.pad(heat_68HW, [(0, 0), (1, 1), (1, 1)], mode="edge"), SMALLEST_HEAT))
    at = log[every, y + 1, x + 1]
    right = x + _shift(log[every, y + 1, x], at, log[every, y + 1, x + 2])
    down = y + _shift(log[every, y, x + 1], at, log[every, y + 2, x + 1])
    return np.stack([right, down], 1).astype(np.float32)


def _shift(before: Float32, at: Float32, after: Float32) -> Float32:
    """How far the top of the parabola through three neighbours lies from the middle one, -0.5 … 0.5."""
    bend = before - 2 * at + after
    return np.where(bend < 0, np.clip(0.5 * (before - after) / np.minimum(bend, -1e-9), -0.5, 0.5), 0)
