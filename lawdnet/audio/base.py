"""What all audio features share: the extractor's interface, and the one place where rows meet frames.

Shape letters: R feature rows at the extractor's own rate, T video frames, C feature dimension.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from lawdnet.types import AUDIO_CONTEXT, FPS, Float32, Rejected, RejectReason


class AudioExtractor(Protocol):
    """Turns a wave into rows of features."""

    name: str
    feature_dim: int
    frame_shift: float
    """Seconds between rows; row i is centred on i·frame_shift."""

    def extract(self, wave: Float32) -> Float32:
        """A 16 kHz mono wave in [-1, 1] as R×C rows that cover it."""
        ...


EXTRACTORS: dict[str, type[AudioExtractor]] = {}


def make_extractor(name: str, **options: Any) -> AudioExtractor:
    """An extractor by its registered name, with its class's own options.

    Raises:
        ValueError: unknown name or option.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"unknown audio features {name!r}: choose from {', '.join(sorted(EXTRACTORS))}")
    return EXTRACTORS[name](**options)


def fit_to_video(values_RC: Float32, frame_shift: float, num_frames: int, *, tolerance_frames: float = 2) -> Float32:
    """Resample feature rows to one per video frame: frame t is at t/25 s, row i at i·frame_shift.

    Linear interpolation between rows; frames past the last row repeat it. Rows at 25 Hz pass unchanged,
    and of rows at 50 Hz every second one is taken.

    Args:
        values_RC: rows that cover R·frame_shift seconds.
        frame_shift: seconds between rows.
        num_frames: T.
        tolerance_frames: how far the rows' length may be off the video's, in video frames.

    Returns:
        T×C.

    Raises:
        Rejected: FEATURE_LENGTH where the lengths differ by more.
        ValueError: the rows are not two-dimensional or not finite.
    """
    if values_RC.ndim != 2 or not np.isfinite(values_RC).all():
        raise ValueError(f"feature rows of shape {values_RC.shape}: expected two dimensions and finite values")
    rows = len(values_RC)
    covered = rows * frame_shift * FPS
    if rows == 0 or abs(covered - num_frames) > tolerance_frames + 1e-6:
        detail = f"{rows} feature rows cover {covered:.1f} frames, the video has {num_frames}"
        raise Rejected(RejectReason.FEATURE_LENGTH, f"{detail} (tolerance {tolerance_frames})")
    # Rounding makes positions that fall on a row fall on it exactly, whatever the shift's binary fraction.
    position_T = np.round(np.arange(num_frames) / (FPS * frame_shift), 6).clip(max=rows - 1)
    lower_T = position_T.astype(np.int64)
    weight_T1 = (position_T - lower_T).astype(np.float32)[:, None]
    upper_T = np.minimum(lower_T + 1, rows - 1)
    return np.asarray(values_RC[lower_T] * (1 - weight_T1) + values_RC[upper_T] * weight_T1, dtype=np.float32)


def windows(values_TC: Float32, radius: int = AUDIO_CONTEXT) -> Float32:
    """Rows t-radius … t+radius around every frame, the first and last row repeated beyond the ends.

    Returns:
        T×C×(2·radius + 1): the model's layout, time last.

    Raises:
        ValueError: no rows.
    """
    if len(values_TC) == 0:
        raise ValueError("no feature rows to take windows of")
    around_T5 = np.arange(len(values_TC))[:, None] + np.arange(-radius, radius + 1)
    return np.ascontiguousarray(values_TC[around_T5.clip(0, len(values_TC) - 1)].swapaxes(1, 2))
