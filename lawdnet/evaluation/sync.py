"""Whether frames and their audio belong together, and by how many frames they are apart.

**The sign of an offset, everywhere in this package: positive = the audio is that many frames late** (25 fps), so that
cutting the first `offset` frames of audio off brings both together. `syncnet_python` prints the opposite as "AV
offset": its 3 is our -3.

Shape letters: T frames, F positions of a window of frames, P of a window of audio, K pairs, O offsets, S side of a
square in px, C feature dimension, D embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import cv2
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from lawdnet.audio.mfcc import mfcc
from lawdnet.data.sampling import decode_jpeg
from lawdnet.data.schema import SCORE
from lawdnet.face.geometry import mouth_box, stage_size
from lawdnet.face.points import BROWS, CHIN, JAW
from lawdnet.models.device import pick_device
from lawdnet.models.legacy import read_legacy, syncnet_from_legacy
from lawdnet.models.saved import STATE, find_checkpoint, load_syncnet, read_meta
from lawdnet.models.syncnet import SyncNet
from lawdnet.models.syncnet_v2 import SyncNetV2
from lawdnet.storage import sha256
from lawdnet.types import CLIP_FRAMES, SAMPLES_PER_FRAME, Float32, UInt8

MAX_OFFSET = 15
"""Largest offset that is searched for, in frames to either side (as in syncnet_python)."""
WINDOW_FRAMES = 5
"""Number of frames that a network looks at together."""
MIN_FRAMES = 2 * MAX_OFFSET + CLIP_FRAMES
"""Length of the shortest segment in which every offset can be tried."""
MAX_STRIDE = 5
"""Largest stride in frames; beyond it, the shortest segment has too few windows."""
BATCH = 8
"""Number of windows of frames that are encoded at once; at 256 px they take about 0.5 GB."""

V2_PX = 224
V2_MFCC, V2_ROWS, V2_ROWS_PER_FRAME = 13, 20, 4
V2_MARGIN = 0.4
"""syncnet_python's `crop_scale`: margin in half face boxes at each side, and twice that below."""
V2_GREY = 110
"""Grey level with which syncnet_python fills what lies outside the image."""
FOREHEAD = 0.2
"""A detector's box starts above the brows by this share of the distance from chin to brows."""

ENOUGH_SEGMENTS = 10
"""Number of segments from which the commonest offset says something about the corpus."""
AGREE_SHARE = 0.5
"""Least share of segments within one frame of the commonest offset for it to be the corpus's own."""


class SyncEncoder(Protocol):
    """A network that embeds windows of frames and of audio in one space."""

    name: str
    lead: int
    """Number of frames by which a window of audio starts before the window of frames that it belongs to."""

    @property
    def feature(self) -> str | None:
        """See `SyncScorer.feature`."""
        ...

    def encode_frames(self, frames_jpeg: Sequence[bytes], landmarks_T68x2: Float32, stride: int) -> Tensor:
        """Return F embeddings; window f starts at frame stride·f."""
        ...

    def encode_audio(self, features: Mapping[str, Float32], waveform: Float32 | None, frames: int) -> Tensor:
        """Return P embeddings; window p starts at frame p."""
        ...

    def distance(self, faces: Tensor, audio: Tensor) -> Tensor:
        """Return the K distances of K faces and K windows of audio."""
        ...


class SyncScorer:
    """Measures offset and confidence of a segment with any supported sync network.

    Args:
        path: a run or checkpoint of `lawdnet train` with a `syncnet` stage, the published `syncnet_v2.model`, or
            LawDNet 2024's `syncnet_256mouth.pth`.
        device: `auto` uses a GPU if there is one. On one CPU core the small preset's network scores about 120
            frames/s, SyncNet v2 20, a full-size network of ours 2.
        stride: only every so many windows of frames are encoded, which divides the time. All of the audio is encoded,
            so offsets are still whole frames; confidences are noisier.

    Raises:
        ValueError: there is no such file, it is none of these networks, or the stride is not 1 … 5.
    """

    def __init__(self, path: Path, device: str = "auto", stride: int = 1) -> None:
        if not 1 <= stride <= MAX_STRIDE:
            raise ValueError(f"stride: {stride}, expected 1 … {MAX_STRIDE}")
        self._stride = stride
        self.path = Path(path)
        self._encoder = _open(Path(path), pick_device(device))

    @property
    def name(self) -> str:
        """`syncnet` (ours), `syncnet_v2`, or `syncnet_2024`; distances of different networks cannot be compared."""
        return self._encoder.name

    @property
    def sha256(self) -> str:
        """SHA-256 of the network's file."""
        return sha256(self.path if self.path.is_file() else find_checkpoint(self.path, "syncnet") / STATE)

    @property
    def feature(self) -> str | None:
        """The stored feature that the network needs; None if it needs the waveform."""
        return self._encoder.feature

    @property
    def encoder(self) -> SyncEncoder:
        """The network itself."""
        return self._encoder

    @torch.inference_mode()
    def __call__(
        self,
        frames_jpeg: Sequence[bytes],
        landmarks_T68x2: Float32,
        features: Mapping[str, Float32],
        waveform: Float32 | None,
    ) -> dict[str, float]:
        """Measure one segment; each window of frames and of audio is encoded once.

        Args:
            frames_jpeg: T stored crops as JPEG, T ≥ 39.
            landmarks_T68x2: landmarks in crop px.
            features: extractor → T×C; only `feature` is used.
            waveform: the segment's 640·T samples at 16 kHz, in [-1, 1]; may be None if `feature` is not None.

        Returns:
            sync_offset: whole frames, -15 … 15, positive = the audio is late; sync_distance: the mean distance at that
            offset, at least 0 (SyncNet v2: Euclidean, about 6 … 14; ours: 1 - cosine, 0 … 2; 2024: 1 - score);
            sync_confidence: the median over all offsets minus sync_distance, at least 0. All are finite, even for
            silence.

        Raises:
            ValueError: there are too few frames, or a feature or the waveform is missing or has another shape.
        """
        frames = len(frames_jpeg)
        if frames < MIN_FRAMES:
            raise ValueError(f"frames: {frames}, a search of ±{MAX_OFFSET} frames needs at least {MIN_FRAMES}")
        encoder = self._encoder
        audio = encoder.encode_audio(features, waveform, frames)
        faces = encoder.encode_frames(frames_jpeg, landmarks_T68x2, self._stride)
        return read_curve(distance_curve(faces, audio, encoder.distance, encoder.lead, self._stride))


def distance_curve(
    faces: Tensor, audio: Tensor, distance: Callable[[Tensor, Tensor], Tensor], lead: int, stride: int = 1
) -> Float32:
    """Return the mean distance of frames and audio for every offset -15 … 15, over the windows that both have.

    syncnet_python pads the ends with zeros instead, which raises the sides of the curve and the confidence.

    Args:
        faces: F embeddings, one per `stride` frames.
        audio: P embeddings, one per frame.
        distance: returns the K distances of K faces and K windows of audio.
        lead: frames by which a window of audio starts before the window of frames that it belongs to.
        stride: in frames.
    """
    begin_F = torch.arange(0, len(faces) * stride, stride, device=faces.device)
    means = []
    for offset in range(-MAX_OFFSET, MAX_OFFSET + 1):
        audio_F = begin_F - lead + offset
        known_F = (audio_F >= 0) & (audio_F < len(audio))
        means.append(distance(faces[known_F], audio[audio_F[known_F]]).mean())
    return cast("Float32", torch.stack(means).float().cpu().numpy())


def read_curve(curve_O: Float32) -> dict[str, float]:
    """Return offset, confidence (median - minimum, as in syncnet_python) and distance of a curve over -15 … 15."""
    assert curve_O.shape == (2 * MAX_OFFSET + 1,)
    assert np.isfinite(curve_O).all()
    best = int(curve_O.argmin())
    return {
        "sync_offset": float(best - MAX_OFFSET),
        "sync_confidence": float(np.median(curve_O) - curve_O[best]),
        "sync_distance": float(curve_O[best]),
    }


class _SyncNetEncoder:
    """Our sync network, or the published one of 2024: the mouth in five frames, and nine rows of a feature.

    The nine rows are those of the frames t-4 … t+4 around the middle frame t, as in training.
    """

    lead = (CLIP_FRAMES - WINDOW_FRAMES) // 2

    def __init__(self, name: str, network: SyncNet, feature: str, device: torch.device) -> None:
        self.name, self.feature, self.device = name, feature, device
        self.network = network.to(device).eval()

    def encode_frames(self, frames_jpeg: Sequence[bytes], landmarks_T68x2: Float32, stride: int = 1) -> Tensor:
        """Return F×D unit vectors, or F×C×h×w for the published head."""
        side, stored = self.network.config.face_px, _width(frames_jpeg[0])
        (height, width), box = stage_size(side), mouth_box(side)
        mouths = np.stack([decode_jpeg(data, height, width, stored_width=stored)[box] for data in frames_jpeg])
        windows = torch.from_numpy(mouths).unfold(0, WINDOW_FRAMES, stride)  # F, S, S, 3, 5
        return torch.cat([self._face(part.permute(0, 4, 3, 1, 2).flatten(1, 2)) for part in windows.split(BATCH)])

    def _face(self, mouths_B15SS: Tensor) -> Tensor:
        faces_B15SS = mouths_B15SS.to(self.device).float() / 255
        if self.network.config.head == "cosine":
            return self.network.embed_faces(faces_B15SS)
        return self._half_merge(self.network.encode_faces(faces_B15SS), is_audio=False)

    def encode_audio(self, features: Mapping[str, Float32], waveform: Float32 | None, frames: int) -> Tensor:
        """Return P×D unit vectors, or P×C×h×w for the published head."""
        if self.feature not in features:
            found = f"the segment has {_names(features)}; build with --features {self.feature}"
            raise ValueError(f"{self.name}: needs the feature {self.feature!r}, {found}")
        rows_TC = features[self.feature]
        if rows_TC.shape != (frames, self.network.config.audio_dim):
            expected = f"expected ({frames}, {self.network.config.audio_dim})"
            raise ValueError(f"{self.name}: {self.feature!r} has shape {rows_TC.shape}, {expected}")
        windows_PC9 = torch.tensor(rows_TC).unfold(0, CLIP_FRAMES, 1)
        windows_PC9 = windows_PC9.to(self.device)
        if self.network.config.head == "cosine":
            return self.network.embed_audio(windows_PC9)
        return self._half_merge(self.network.encode_audio(windows_PC9).mean(2)[:, :, None, None], is_audio=True)

    def _half_merge(self, feature_BChw: Tensor, *, is_audio: bool) -> Tensor:
        """Return one side's part of the merge's first convolution, which is the sum of both parts."""
        first = cast("torch.nn.Conv2d", self.network.merge[0])
        faces, audio = first.weight.chunk(2, dim=1)
        if not is_audio:
            return F.conv2d(feature_BChw, faces, first.bias, padding=1)
        size = self.network.config.face_px >> self.network.config.halvings
        return F.conv2d(feature_BChw.expand(-1, -1, size, size), audio, padding=1)

    def distance(self, faces: Tensor, audio: Tensor) -> Tensor:
        """Return 1 - cosine, or 1 - the mean of the published score map."""
        if self.network.config.head == "cosine":
            return 1 - (faces * audio).sum(1)
        return 1 - self.network.merge[1:](faces + audio).mean((1, 2, 3))


class _SyncNetV2Encoder:
    """SyncNet v2: five faces of 224 px, cropped as by `syncnet_python`, and 13 MFCC at 100 Hz."""

    name, feature, lead = "syncnet_v2", None, 0

    def __init__(self, network: SyncNetV2, device: torch.device) -> None:
        self.network, self.device = network.to(device).eval(), device

    def encode_frames(self, frames_jpeg: Sequence[bytes], landmarks_T68x2: Float32, stride: int = 1) -> Tensor:
        """Return F×1024."""
        box = v2_box(landmarks_T68x2)
        faces = np.stack([_cut(_decode_bgr(data), box) for data in frames_jpeg])
        windows = torch.from_numpy(faces).unfold(0, WINDOW_FRAMES, stride)  # F, S, S, 3, 5
        parts = (part.permute(0, 3, 4, 1, 2).to(self.device).float() for part in windows.split(BATCH))
        return torch.cat([self.network.embed_lip(part) for part in parts])

    def encode_audio(self, features: Mapping[str, Float32], waveform: Float32 | None, frames: int) -> Tensor:
        """Return P×1024."""
        if waveform is None or waveform.shape != (frames * SAMPLES_PER_FRAME,):
            shape = None if waveform is None else waveform.shape
            raise ValueError(f"waveform: {shape}, expected ({frames * SAMPLES_PER_FRAME},) for {frames} frames")
        rows = torch.from_numpy(mfcc(waveform, V2_MFCC).astype(np.float32))
        windows = rows.unfold(0, V2_ROWS, V2_ROWS_PER_FRAME)
        return self.network.embed_audio(windows[:, None].to(self.device))

    def distance(self, faces: Tensor, audio: Tensor) -> Tensor:
        """Return Euclidean distances."""
        return F.pairwise_distance(faces, audio)


def encoder_of(network: SyncNet, feature: str, device: torch.device) -> SyncEncoder:
    """Return the encoder of a network of ours that is in memory, such as one in training."""
    return _SyncNetEncoder("syncnet", network, feature, device)


def v2_box(landmarks_T68x2: Float32) -> tuple[int, int, int]:
    """Return left, top and side (crop px) of the square that syncnet_python would show to the network.

    syncnet_python takes the detector's box (half side b), smoothed over 13 frames, and shows [-1.4 b, 1.4 b] beside its
    centre and [-b, 1.8 b] above and below: about 1.7 widths of our crop. Here the box is estimated from the points
    (jaw, chin, and brows with some forehead) as their median over the segment, since aligned crops do not jump. The
    crop contains the middle of that square with the whole face; the rest is grey, as in syncnet_python outside of the
    frame, so that the mouth has the position and the size that the network knows. Unlike ours, syncnet_python's faces
    are not turned upright. Scores can be compared with each other, and are not exactly those of `syncnet_python`.
    """
    points = np.median(landmarks_T68x2, axis=0)
    left, right, chin, brows = points[JAW, 0].min(), points[JAW, 0].max(), points[CHIN, 1], points[BROWS, 1].min()
    top = brows - FOREHEAD * (chin - brows)
    half = max(right - left, chin - top, 2) / 2
    centre_x, centre_y = (left + right) / 2, (top + chin) / 2
    side = 2 * half * (1 + V2_MARGIN)
    return round(centre_x - side / 2), round(centre_y - half), round(side)


def _cut(image_HW3: UInt8, box: tuple[int, int, int]) -> UInt8:
    """Return the square at 224 px, grey outside of the image."""
    left, top, side = box
    height, width = image_HW3.shape[:2]
    borders = max(0, -top), max(0, top + side - height), max(0, -left), max(0, left + side - width)
    padded = cv2.copyMakeBorder(image_HW3, *borders, cv2.BORDER_CONSTANT, value=(V2_GREY,) * 3)
    top, left = max(0, top), max(0, left)
    method = cv2.INTER_AREA if side > V2_PX else cv2.INTER_LINEAR
    cut = cv2.resize(padded[top : top + side, left : left + side], (V2_PX, V2_PX), interpolation=method)
    return cast("UInt8", cut)


def _decode_bgr(data: bytes) -> UInt8:
    image_HW3 = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image_HW3 is not None
    return cast("UInt8", image_HW3)


def _width(data: bytes) -> int:
    return int(_decode_bgr(data).shape[1])


def _names(features: Mapping[str, Float32]) -> str:
    return ", ".join(sorted(features)) or "none"


def _open(path: Path, device: torch.device) -> SyncEncoder:
    """Open the network of a run, a checkpoint or a published file."""
    if not path.is_file():
        folder = find_checkpoint(path, "syncnet")
        meta = read_meta(folder)
        if meta["kind"] != "syncnet":
            raise ValueError(f"{path}: a checkpoint of {meta['stage']}, not of a sync network; give the run itself")
        return _SyncNetEncoder("syncnet", load_syncnet(folder), meta["sync_feature"], device)
    try:
        return _SyncNetV2Encoder(SyncNetV2.from_file(path), device)
    except ValueError as not_v2:
        try:
            network = syncnet_from_legacy(read_legacy(path)["net"])
        except (ValueError, KeyError):
            hint = "give a run with a syncnet stage, syncnet_v2.model or syncnet_256mouth.pth"
            raise ValueError(f"{path}: not a sync network; {hint} ({not_v2})") from None
    return _SyncNetEncoder("syncnet_2024", network, "deepspeech", device)


@dataclass(frozen=True)
class OffsetHistogram:
    """How the segments of a corpus are distributed over offsets."""

    counts: dict[int, int]
    """Offset → number of segments, for every offset -15 … 15."""
    within_one: float
    """Share of the measured segments with |offset| ≤ 1; 0 if none was measured."""
    verdict: str
    """One line that says what the counts mean, and what to do."""


def offset_histogram(index: pa.Table) -> OffsetHistogram:
    """Count the `score_sync_offset` of an index's rows; rows without one are ignored."""
    name = SCORE + "sync_offset"
    column = index[name].to_numpy() if name in index.column_names else np.empty(0)
    found = np.rint(column[np.isfinite(column)]).astype(int)
    tally = Counter(found.tolist())
    counts = {offset: tally[offset] for offset in range(-MAX_OFFSET, MAX_OFFSET + 1)}
    within_one = float((np.abs(found) <= 1).mean()) if len(found) else 0.0
    return OffsetHistogram(counts, within_one, _verdict(counts, found))


def _verdict(counts: dict[int, int], found: np.ndarray) -> str:
    if not len(found):
        return "offsets were not measured"
    if len(found) < ENOUGH_SEGMENTS:
        return f"{len(found)} segments are too few to tell, {ENOUGH_SEGMENTS} are needed"
    common = max(counts, key=lambda offset: (counts[offset], -abs(offset)))
    share = float((np.abs(found - common) <= 1).mean())
    if share < AGREE_SHARE or abs(common) == MAX_OFFSET:  # the last offset of the search means that none was found
        return f"no agreement: only {share:.0%} are within a frame of the commonest offset ({common:+d})"
    if abs(common) <= 1:
        return f"frames and audio are in sync: {share:.0%} are within a frame of {common:+d}"
    way = "late" if common > 0 else "early"
    return f"the audio is {abs(common)} frames {way}: {share:.0%} are within a frame of {common:+d}; shift it first"
