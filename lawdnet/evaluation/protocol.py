"""Comparison of a generated video with the real one: image quality, and whether the mouth moves as it should.

Both videos are streamed side by side on the 25 fps clock; faces are cropped from both at the real one's landmarks.
Shape letters: T ticks, H W frame height and width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from lawdnet.evaluation.image import psnr, ssim
from lawdnet.evaluation.mouth import mouth_opening_from_pixels
from lawdnet.face.align import crop_face, fit_all
from lawdnet.face.geometry import mouth_box
from lawdnet.face.lips import lip_gap
from lawdnet.face.track import fill_gaps
from lawdnet.types import Float32, Landmarks, UInt8
from lawdnet.video import decode

CROP_WIDTH = 160
MOUTH_PX = 128
"""Size at which the mouth is compared, whatever the size of the face: in aligned crops 160 px wide."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Means over the frames that both videos have; metrics of the mouth over those with a face."""

    frames: int
    """Number of frames compared."""
    frames_real: int
    frames_generated: int
    psnr: float
    """dB over the whole frame."""
    ssim: float
    mouth_frames: int
    mouth_psnr: float
    """dB over the mouth square of the aligned crop; NaN if there is no face."""
    mouth_ssim: float

    def to_dict(self) -> dict[str, float]:
        """Return plain numbers for JSON and tables."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class MouthMotion:
    """The mouth's opening over time, T frames; NaN for frames without a face."""

    real_T: Float32
    """Opening in the pixels of the real video, in half crop widths."""
    generated_T: Float32
    """Opening in the pixels of the generated video."""
    exact_T: Float32
    """Opening in the real video's landmarks, in eye distances."""

    @property
    def correlation(self) -> float:
        """Pearson's correlation of generated and real."""
        return correlate(self.generated_T, self.real_T)

    @property
    def ceiling(self) -> float:
        """Pearson's correlation of real and landmarks: the most that this measurement can show."""
        return correlate(self.real_T, self.exact_T)


@dataclass(frozen=True)
class FramePair:
    """The frames of both videos at one tick; None for a video that has ended."""

    tick: int
    real_HW3: UInt8 | None
    generated_HW3: UInt8 | None


def compare(real: Path, generated: Path, landmarks: Landmarks | None = None) -> Comparison:
    """Measure peak signal-to-noise ratio and structural similarity of whole frames and of the mouth.

    Args:
        real, generated: videos of equal size (one repeated row or column, which H.264 may need, does not count).
        landmarks: landmarks of the real video, a row per tick; without them the mouth is not measured.

    Raises:
        Rejected: a video cannot be read.
        ValueError: their sizes differ.
    """
    matrix_T33 = crop_matrices(landmarks, CROP_WIDTH) if landmarks else np.empty((0, 3, 3), np.float32)
    whole: list[tuple[float, float]] = []
    mouth: list[tuple[float, float]] = []
    counts = [0, 0]
    for pair in side_by_side(real, generated):
        counts[0] += pair.real_HW3 is not None
        counts[1] += pair.generated_HW3 is not None
        if pair.real_HW3 is None or pair.generated_HW3 is None:
            continue
        whole.append(_quality(pair.real_HW3, pair.generated_HW3))
        if pair.tick < len(matrix_T33) and np.isfinite(matrix_T33[pair.tick]).all():
            crops = (_mouth(frame, matrix_T33[pair.tick]) for frame in (pair.real_HW3, pair.generated_HW3))
            mouth.append(_quality(*crops))
    means, mouth_means = (np.mean(rows, axis=0) if rows else (np.nan, np.nan) for rows in (whole, mouth))
    return Comparison(
        frames=len(whole),
        frames_real=counts[0],
        frames_generated=counts[1],
        psnr=float(means[0]),
        ssim=float(means[1]),
        mouth_frames=len(mouth),
        mouth_psnr=float(mouth_means[0]),
        mouth_ssim=float(mouth_means[1]),
    )


def mouth_motion(real: Path, generated: Path, landmarks: Landmarks) -> MouthMotion:
    """Measure how the mouth opens in two videos of a drawn head (`lawdnet.synthetic`), over the frames that both have.

    Args:
        real, generated: the head must move alike in both; only the mouth may differ.
        landmarks: landmarks of the real video, a row per tick.

    Raises:
        Rejected: a video cannot be read.
        ValueError: their sizes differ.
    """
    matrix_T33 = crop_matrices(landmarks, CROP_WIDTH)
    gap_T = lip_gap(landmarks.points_T68x2)
    rows = []
    for pair in side_by_side(real, generated):
        if pair.real_HW3 is None or pair.generated_HW3 is None:
            break
        if pair.tick >= len(matrix_T33) or not np.isfinite(matrix_T33[pair.tick]).all():
            rows.append((np.nan, np.nan, np.nan))
            continue
        openings = [
            mouth_opening_from_pixels(crop_face(frame, matrix_T33[pair.tick], CROP_WIDTH))
            for frame in (pair.real_HW3, pair.generated_HW3)
        ]
        rows.append((openings[0], openings[1], float(gap_T[pair.tick])))
    real_T, generated_T, exact_T = np.array(rows, np.float32).reshape(-1, 3).T
    return MouthMotion(real_T=real_T, generated_T=generated_T, exact_T=exact_T)


def correlate(first_T: Float32, second_T: Float32) -> float:
    """Return Pearson's correlation over the entries that both have; 0 if one is constant, NaN for fewer than two."""
    known = np.isfinite(first_T) & np.isfinite(second_T)
    if known.sum() < 2:
        return float("nan")
    first, second = (np.asarray(values[known], np.float64) for values in (first_T, second_T))
    first, second = first - first.mean(), second - second.mean()
    size = np.linalg.norm(first) * np.linalg.norm(second)
    return float(first @ second / size) if size > 0 else 0.0


def side_by_side(real: Path, generated: Path) -> Iterator[FramePair]:
    """Yield the frames of both videos at every tick, the generated one cut to the size of the real one.

    Raises:
        Rejected: a video cannot be read.
        ValueError: their sizes differ by more than a repeated last row or column.
    """
    for tick, (ours, theirs) in enumerate(zip_longest(decode(real), decode(generated))):
        if ours is None or theirs is None:
            yield FramePair(tick, ours and ours[1], theirs and theirs[1])
            continue
        real_HW3, generated_HW3 = ours[1], theirs[1]
        growth = np.subtract(generated_HW3.shape[:2], real_HW3.shape[:2])
        if tick == 0 and not all(g in (0, n % 2) for g, n in zip(growth, real_HW3.shape, strict=False)):
            sizes = " and ".join(f"{h}×{w}" for h, w, _ in (real_HW3.shape, generated_HW3.shape))
            raise ValueError(f"{generated}: cannot be compared with {real}: the frames are {sizes} px")
        height, width = real_HW3.shape[:2]
        yield FramePair(tick, real_HW3, generated_HW3[:height, :width])


def crop_matrices(landmarks: Landmarks, width: int) -> Float32:
    """Return frame px → px of a crop of this width, 3×3 for every tick; NaN without a face. Short gaps are filled."""
    filled = fill_gaps(landmarks)
    matrix_T33 = fit_all(filled.points_T68x2, width)
    matrix_T33[~filled.valid_T] = np.nan
    return matrix_T33


def _mouth(frame_HW3: UInt8, matrix_33: Float32) -> UInt8:
    return np.ascontiguousarray(crop_face(frame_HW3, matrix_33, CROP_WIDTH)[mouth_box(MOUTH_PX)])


def _quality(real_HW3: UInt8, generated_HW3: UInt8) -> tuple[float, float]:
    generated_HW3 = np.ascontiguousarray(generated_HW3)
    return psnr(real_HW3, generated_HW3), ssim(real_HW3, generated_HW3)
