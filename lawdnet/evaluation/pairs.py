"""How the mouth moves, and how the face looks, in a generated video beside the real one.

Faces are cropped from both at the real one's landmarks. Shape letters: T ticks, H W frame height and width, 33 a matrix
that takes frame px to crop px.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lawdnet.audio import load_audio, make_extractor
from lawdnet.audio.base import frame_features
from lawdnet.evaluation.appearance import Appearance
from lawdnet.evaluation.landmarks import FrameLandmarker
from lawdnet.evaluation.motion import REFERENCE_WIDTH, Heard, motion_metrics, motion_sums
from lawdnet.evaluation.protocol import crop_matrices, side_by_side
from lawdnet.evaluation.speech import mean_level, quiet
from lawdnet.face.align import crop_face, transform_points
from lawdnet.types import SAMPLES_PER_FRAME, Float32, Landmarks, Rejected, UInt8

TOGETHER = 100
"""Frames (4 s) in which a face keeps its place in the crop well enough to be looked at in one square."""


@dataclass(frozen=True)
class _Part:
    """Consecutive frames with a face, cropped."""

    ticks: list[int]
    real_THW3: UInt8
    generated_THW3: UInt8


def compare_faces(
    real: Path, generated: Path, landmarks: Landmarks, landmarker: FrameLandmarker | None, appearance: Appearance
) -> dict[str, float]:
    """Measure the frames that both videos have.

    Args:
        real, generated: videos of equal size.
        landmarks: landmarks of the real video, a row per tick.
        landmarker: finds landmarks in both; None leaves the motion out.
        appearance: takes the frames; its results are part of the answer.

    Returns:
        The metrics of `motion_metrics`, those of the real video with `truth_`, and those of `appearance`.

    Raises:
        Rejected: a video cannot be read.
        ValueError: their sizes differ.
    """
    matrix_T33 = crop_matrices(landmarks, REFERENCE_WIDTH)
    exact_T68x2 = _in_crops(landmarks, matrix_T33)
    found = {row: np.full_like(exact_T68x2, np.nan) for row in ("", "truth_")}
    last = 0
    for part in _parts(real, generated, matrix_T33):
        around = exact_T68x2[part.ticks]
        last = part.ticks[-1] + 1
        appearance.add("", part.real_THW3, part.generated_THW3, around)
        if landmarker:
            for row, frames_THW3 in (("truth_", part.real_THW3), ("", part.generated_THW3)):
                found[row][part.ticks] = landmarker.find(frames_THW3, around).points_T68x2
    figures = appearance.results()
    if landmarker and last:
        rows = {row: _landmarks(points[:last], "network") for row, points in found.items()}
        figures |= motion_metrics(motion_sums(rows, exact_T68x2[:last], _heard(generated, last)))
    return figures


def compare_landmarks(generated: Path, true: Landmarks, made: Landmarks) -> dict[str, float]:
    """Measure the motion from landmarks of both videos that one source found; see `compare_faces`."""
    frames = min(len(true.valid_T), len(made.valid_T))
    matrix_T33 = crop_matrices(true, REFERENCE_WIDTH)[:frames]
    rows = {
        row: _landmarks(_in_crops(landmarks, matrix_T33), landmarks.source)
        for row, landmarks in (("", made), ("truth_", true))
    }
    return motion_metrics(motion_sums(rows, rows["truth_"].points_T68x2, _heard(generated, frames)))


def _in_crops(landmarks: Landmarks, matrix_T33: Float32) -> Float32:
    points_T68x2 = landmarks.points_T68x2[: len(matrix_T33)]
    return np.stack([transform_points(p, m) for p, m in zip(points_T68x2, matrix_T33, strict=True)])


def _landmarks(points_T68x2: Float32, source: str) -> Landmarks:
    valid_T = np.asarray(np.isfinite(points_T68x2).all((1, 2)))
    return Landmarks(points_T68x2=points_T68x2, valid_T=valid_T, source=source)


def _parts(real: Path, generated: Path, matrix_T33: Float32) -> Iterator[_Part]:
    ticks: list[int] = []
    crops: list[tuple[UInt8, UInt8]] = []
    for pair in side_by_side(real, generated):
        if pair.real_HW3 is None or pair.generated_HW3 is None or pair.tick >= len(matrix_T33):
            break
        matrix_33 = matrix_T33[pair.tick]
        if np.isfinite(matrix_33).all():
            ticks.append(pair.tick)
            first, second = (
                crop_face(np.ascontiguousarray(frame), matrix_33, REFERENCE_WIDTH)
                for frame in (pair.real_HW3, pair.generated_HW3)
            )
            crops.append((first, second))
        if len(ticks) == TOGETHER:
            yield _Part(ticks, *(np.stack(side) for side in zip(*crops, strict=True)))
            ticks, crops = [], []
    if ticks:
        yield _Part(ticks, *(np.stack(side) for side in zip(*crops, strict=True)))


def _heard(video: Path, frames: int) -> Heard:
    """Return what is heard in a video; nothing is known if it has no audio."""
    try:
        waveform = load_audio(video, num_frames=frames)
    except Rejected:
        return Heard(quiet_T=np.zeros(frames, bool), level_A=np.empty(0, np.float32), start=0, seed=(0,))
    mel_AC = frame_features(make_extractor("mel"), waveform, len(waveform) // SAMPLES_PER_FRAME)
    return Heard(quiet_T=quiet(mel_AC)[:frames], level_A=mean_level(mel_AC), start=0, seed=(0,))
