"""Do a picture and its sound belong together, and by how many frames are they apart?

**The sign of an offset, everywhere in this package: positive = the sound is late against the picture by that many
frames** (25 fps), so that cutting the first `offset` frames of sound off brings both together. `syncnet_python` prints
the opposite as "AV offset": its 3 is our -3.

Shape letters: T frames, F positions of a window of pictures, P of a window of sound, K pairs, O offsets, S side of a
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
"""Frames searched to either side (syncnet_python)."""
PICTURES = 5
"""Pictures that a network looks at together."""
MIN_FRAMES = 2 * MAX_OFFSET + CLIP_FRAMES
"""Shortest segment in which every offset can be tried."""
MAX_STRIDE = 5
"""Frames; beyond, the shortest segment has too few windows left."""
BATCH = 8
"""Windows of pictures encoded at once; at 256 px they take about 0.5 GB."""

V2_PX = 224
V2_MFCC, V2_ROWS, V2_ROWS_PER_FRAME = 13, 20, 4
V2_MARGIN = 0.4
"""syncnet_python's `crop_scale`: shares of half the face box added at the sides, and twice below."""
V2_GREY = 110
"""What it paints where the picture ends."""
FOREHEAD = 0.2
"""A detector's box begins this share of the way from chin to brows above the brows."""

ENOUGH_SEGMENTS = 10
"""From which the commonest offset says something of the corpus."""
AGREE_SHARE = 0.5
"""Share of segments within one frame of the commonest offset from which it is the corpus's own."""


class _Judge(Protocol):
    """A network that lays windows of pictures and of sound into one space."""

    name: str
    lead: int
    """Frames by which a window of sound begins before the window of pictures that it belongs to."""

    @property
    def feature(self) -> str | None:
        """As of `SyncScorer`."""
        ...

    def faces(self, pictures: Sequence[bytes], landmarks_T68x2: Float32, stride: int) -> Tensor:
        """F embeddings; window f begins at frame stride·f."""
        ...

    def sounds(self, features: Mapping[str, Float32], wave: Float32 | None, frames: int) -> Tensor:
        """P embeddings; window p begins at frame p."""
        ...

    def distance(self, faces: Tensor, sounds: Tensor) -> Tensor:
        """K distances of K faces and K sounds."""
        ...


class SyncScorer:
    """Offset and confidence of a segment, by any sync network there is a file of.

    Args:
        path: a run or checkpoint of `lawdnet train` with a `syncnet` stage, the published `syncnet_v2.model`, or
            LawDNet 2024's `syncnet_256mouth.pth`.
        device: `auto` takes a GPU where there is one. On one CPU core the small preset's network scores about 120
            frames/s, SyncNet v2 20, a full-size network of ours 2.
        stride: only every so many windows of pictures are looked at, which divides the time. The sound is heard
            everywhere, so that offsets stay whole frames; confidences are noisier.

    Raises:
        ValueError: nothing there, or none of these, or a stride beyond 1 … 5.
    """

    def __init__(self, path: Path, device: str = "auto", stride: int = 1) -> None:
        if not 1 <= stride <= MAX_STRIDE:
            raise ValueError(f"stride: {stride}, expected 1 … {MAX_STRIDE}")
        self._stride = stride
        self.path = Path(path)
        self._judge = _open(Path(path), pick_device(device))

    @property
    def name(self) -> str:
        """`syncnet` (ours), `syncnet_v2`, or `syncnet_2024`; distances of different ones do not compare."""
        return self._judge.name

    @property
    def sha256(self) -> str:
        """Of the network's file."""
        return sha256(self.path if self.path.is_file() else find_checkpoint(self.path, "syncnet") / STATE)

    @property
    def feature(self) -> str | None:
        """The stored feature that it hears; None where it needs the wave."""
        return self._judge.feature

    @torch.inference_mode()
    def __call__(
        self,
        pictures: Sequence[bytes],
        landmarks_T68x2: Float32,
        features: Mapping[str, Float32],
        wave: Float32 | None,
    ) -> dict[str, float]:
        """Measures one segment; each window of pictures and of sound is encoded once.

        Args:
            pictures: T stored crops as JPEG, T ≥ 39.
            landmarks_T68x2: in crop px.
            features: extractor → T×C; only `feature` is read.
            wave: the segment's 640·T samples at 16 kHz, in [-1, 1]; None does where `feature` is not.

        Returns:
            sync_offset: whole frames, -15 … 15, positive = the sound is late; sync_distance: the mean distance at that
            offset, at least 0 (SyncNet v2: Euclidean, about 6 … 14; ours: 1 - cosine, 0 … 2; 2024: 1 - score);
            sync_confidence: the median over all offsets minus that, at least 0. All finite, of silence too.

        Raises:
            ValueError: too few frames, or a feature or wave is missing or of another shape.
        """
        frames = len(pictures)
        if frames < MIN_FRAMES:
            raise ValueError(f"pictures: {frames}, a search of ±{MAX_OFFSET} frames needs {MIN_FRAMES} or more")
        judge = self._judge
        sounds = judge.sounds(features, wave, frames)
        faces = judge.faces(pictures, landmarks_T68x2, self._stride)
        return read_curve(distance_curve(faces, sounds, judge.distance, judge.lead, self._stride))


def distance_curve(
    faces: Tensor, sounds: Tensor, distance: Callable[[Tensor, Tensor], Tensor], lead: int, stride: int = 1
) -> Float32:
    """Mean distance of pictures and sound for every offset -15 … 15, over the windows that both have.

    syncnet_python fills up with zeros beyond the ends instead, which raises the curve's sides and the confidence.

    Args:
        faces: F embeddings, one per `stride` frames.
        sounds: P embeddings, one per frame.
        distance: of K faces and K sounds, K values.
        lead: frames by which a window of sound begins before the window of pictures that it belongs to.
        stride: frames.
    """
    begin_F = torch.arange(0, len(faces) * stride, stride, device=faces.device)
    means = []
    for offset in range(-MAX_OFFSET, MAX_OFFSET + 1):
        sound_F = begin_F - lead + offset
        known_F = (sound_F >= 0) & (sound_F < len(sounds))
        means.append(distance(faces[known_F], sounds[sound_F[known_F]]).mean())
    return cast("Float32", torch.stack(means).float().cpu().numpy())


def read_curve(curve_O: Float32) -> dict[str, float]:
    """Offset, confidence (median - minimum, as syncnet_python) and distance of a curve over -15 … 15."""
    assert curve_O.shape == (2 * MAX_OFFSET + 1,)
    assert np.isfinite(curve_O).all()
    best = int(curve_O.argmin())
    return {
        "sync_offset": float(best - MAX_OFFSET),
        "sync_confidence": float(np.median(curve_O) - curve_O[best]),
        "sync_distance": float(curve_O[best]),
    }


class _Ours:
    """Our sync network, or the published one of 2024: the mouth of five frames, nine rows of a feature.

    The nine rows are those of the frames t-4 … t+4 around the middle picture t, as training has them.
    """

    lead = (CLIP_FRAMES - PICTURES) // 2

    def __init__(self, name: str, network: SyncNet, feature: str, device: torch.device) -> None:
        self.name, self.feature, self.device = name, feature, device
        self.network = network.to(device).eval()

    def faces(self, pictures: Sequence[bytes], landmarks_T68x2: Float32, stride: int = 1) -> Tensor:
        """F×D unit vectors, or F×C×h×w for the published head."""
        side, stored = self.network.config.face_px, _width(pictures[0])
        (height, width), box = stage_size(side), mouth_box(side)
        mouths = np.stack([decode_jpeg(data, height, width, stored_width=stored)[box] for data in pictures])
        windows = torch.from_numpy(mouths).unfold(0, PICTURES, stride)  # F, S, S, 3, 5
        return torch.cat([self._face(part.permute(0, 4, 3, 1, 2).flatten(1, 2)) for part in windows.split(BATCH)])

    def _face(self, mouths_B15SS: Tensor) -> Tensor:
        face = self.network.face_encoder(mouths_B15SS.to(self.device).float() / 255)
        if self.network.config.head == "cosine":
            return F.normalize(self.network.face_vector(face.flatten(1)), dim=1)
        return self._half_merge(face, is_sound=False)

    def sounds(self, features: Mapping[str, Float32], wave: Float32 | None, frames: int) -> Tensor:
        """P×D unit vectors, or P×C×h×w for the published head."""
        if self.feature not in features:
            raise ValueError(f"{self.name}: hears the feature {self.feature!r}, the segment holds {_names(features)}; "
                             f"build with --features {self.feature}")  # fmt: skip
        rows_TC = features[self.feature]
        if rows_TC.shape != (frames, self.network.config.audio_dim):
            raise ValueError(f"{self.name}: {self.feature!r} has shape {rows_TC.shape}, "
                             f"expected ({frames}, {self.network.config.audio_dim})")  # fmt: skip
        windows_PC9 = torch.tensor(rows_TC).unfold(0, CLIP_FRAMES, 1)
        sound = self.network.audio_encoder(windows_PC9.to(self.device))
        if self.network.config.head == "cosine":
            return F.normalize(self.network.audio_vector(sound.flatten(1)), dim=1)
        return self._half_merge(sound.mean(2)[:, :, None, None], is_sound=True)

    def _half_merge(self, feature_BChw: Tensor, *, is_sound: bool) -> Tensor:
        """What one side gives to the merge's first convolution, which is the sum of both: so each is done once."""
        first = cast("torch.nn.Conv2d", self.network.merge[0])
        faces, sounds = first.weight.chunk(2, dim=1)
        if not is_sound:
            return F.conv2d(feature_BChw, faces, first.bias, padding=1)
        size = self.network.config.face_px >> self.network.config.halvings
        return F.conv2d(feature_BChw.expand(-1, -1, size, size), sounds, padding=1)

    def distance(self, faces: Tensor, sounds: Tensor) -> Tensor:
        """1 - cosine, or 1 - the mean of the published score map."""
        if self.network.config.head == "cosine":
            return 1 - (faces * sounds).sum(1)
        return 1 - self.network.merge[1:](faces + sounds).mean((1, 2, 3))


class _V2:
    """SyncNet v2: five faces of 224 px as `syncnet_python` cuts them, and 13 MFCC at 100 Hz."""

    name, feature, lead = "syncnet_v2", None, 0

    def __init__(self, network: SyncNetV2, device: torch.device) -> None:
        self.network, self.device = network.to(device).eval(), device

    def faces(self, pictures: Sequence[bytes], landmarks_T68x2: Float32, stride: int = 1) -> Tensor:
        """F×1024."""
        box = v2_box(landmarks_T68x2)
        faces = np.stack([_cut(_decode_bgr(data), box) for data in pictures])
        windows = torch.from_numpy(faces).unfold(0, PICTURES, stride)  # F, S, S, 3, 5
        parts = (part.permute(0, 3, 4, 1, 2).to(self.device).float() for part in windows.split(BATCH))
        return torch.cat([self.network.embed_lip(part) for part in parts])

    def sounds(self, features: Mapping[str, Float32], wave: Float32 | None, frames: int) -> Tensor:
        """P×1024."""
        if wave is None or wave.shape != (frames * SAMPLES_PER_FRAME,):
            shape = None if wave is None else wave.shape
            raise ValueError(f"wave: {shape}, expected ({frames * SAMPLES_PER_FRAME},) for {frames} frames")
        rows = torch.from_numpy(mfcc(wave, V2_MFCC).astype(np.float32))
        windows = rows.unfold(0, V2_ROWS, V2_ROWS_PER_FRAME)
        return self.network.embed_audio(windows[:, None].to(self.device))

    def distance(self, faces: Tensor, sounds: Tensor) -> Tensor:
        """Euclidean."""
        return F.pairwise_distance(faces, sounds)


def judge_of(network: SyncNet, feature: str, device: torch.device) -> _Judge:
    """A network of ours that is in memory, such as one in training."""
    return _Ours("syncnet", network, feature, device)


def v2_box(landmarks_T68x2: Float32) -> tuple[int, int, int]:
    """Left, top and side (crop px) of the square that syncnet_python would show the network.

    It takes the detector's box (half side b), smoothed over 13 frames, and shows [-1.4 b, 1.4 b] beside its centre and
    [-b, 1.8 b] above and below: about 1.7 widths of our crop. Here the box is put together from the points (jaw, chin,
    and brows with some forehead), their median over the segment, as aligned crops do not jump. The crop holds the
    middle of that square, with the whole face; the rest is grey, as theirs where the picture ends, so that the mouth
    has the place and the size that the network knows. Theirs is also not turned upright. Expect scores that are
    comparable with each other, and not exactly those of `syncnet_python`.
    """
    points = np.median(landmarks_T68x2, axis=0)
    left, right, chin, brows = points[JAW, 0].min(), points[JAW, 0].max(), points[CHIN, 1], points[BROWS, 1].min()
    top = brows - FOREHEAD * (chin - brows)
    half = max(right - left, chin - top, 2) / 2
    centre_x, centre_y = (left + right) / 2, (top + chin) / 2
    side = 2 * half * (1 + V2_MARGIN)
    return round(centre_x - side / 2), round(centre_y - half), round(side)


def _cut(image_HW3: UInt8, box: tuple[int, int, int]) -> UInt8:
    """The square at 224 px, grey where there is no picture."""
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


def _open(path: Path, device: torch.device) -> _Judge:
    """The network of a run, a checkpoint or a published file."""
    if not path.is_file():
        folder = find_checkpoint(path, "syncnet")
        meta = read_meta(folder)
        if meta["kind"] != "syncnet":
            raise ValueError(f"{path}: a checkpoint of {meta['stage']}, which is no sync network; give the run itself")
        return _Ours("syncnet", load_syncnet(folder), meta["sync_feature"], device)
    try:
        return _V2(SyncNetV2.from_file(path), device)
    except ValueError as not_v2:
        try:
            network = syncnet_from_legacy(read_legacy(path)["net"])
        except (ValueError, KeyError):
            raise ValueError(f"{path}: holds no sync network; give a run with a syncnet stage, syncnet_v2.model or "
                             f"syncnet_256mouth.pth ({not_v2})") from None  # fmt: skip
    return _Ours("syncnet_2024", network, "deepspeech", device)


@dataclass(frozen=True)
class OffsetHistogram:
    """How a corpus's segments are spread over offsets."""

    counts: dict[int, int]
    """Offset → segments, for every offset -15 … 15."""
    within_one: float
    """Share of the measured segments with |offset| ≤ 1; 0 where none was measured."""
    verdict: str
    """One line that says what to do."""


def offset_histogram(index: pa.Table) -> OffsetHistogram:
    """Counts the `score_sync_offset` of an index's rows; rows that were not measured are left out."""
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
        return f"{len(found)} segments are too few to judge by, {ENOUGH_SEGMENTS} are needed"
    common = max(counts, key=lambda offset: (counts[offset], -abs(offset)))
    share = float((np.abs(found - common) <= 1).mean())
    if share < AGREE_SHARE or abs(common) == MAX_OFFSET:  # at the end of the search nothing was found
        return f"no agreement: only {share:.0%} lie within a frame of the commonest offset ({common:+d})"
    if abs(common) <= 1:
        return f"picture and sound are in sync: {share:.0%} lie within a frame of {common:+d}"
    way = "late" if common > 0 else "early"
    return f"all sound is {abs(common)} frames {way}: {share:.0%} lie within a frame of {common:+d}; shift it first"
