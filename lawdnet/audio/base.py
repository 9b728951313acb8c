"""What all audio features share: the extractor's interface, long sound in pieces, and where rows meet frames.

Shape letters: R feature rows at the extractor's rate, T video frames, C feature dimension, B pieces, L rows of one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lawdnet.types import AUDIO_CONTEXT, FPS, Beat, Float32, Rejected, RejectReason, no_beat


class AudioExtractor(Protocol):
    """Turns a wave into rows of features.

    Constructors are cheap: they find files and check packages; networks load when the first wave comes.
    """

    name: str
    feature_dim: int
    frame_shift: float
    """Seconds between rows; row i is centred on i·frame_shift, at most half a video frame (20 ms) off."""
    model_sha256: str | None
    """Of the trained weights; None where there are none."""

    def extract(self, wave: Float32, beat: Beat = no_beat) -> Float32:
        """A 16 kHz mono wave in [-1, 1] as R×C finite rows that cover it; no samples give no rows."""
        ...


EXTRACTORS: dict[str, type[AudioExtractor]] = {}


def extractor_options(name: str) -> dict[str, Any]:
    """The options of an extractor and their defaults.

    Raises:
        ValueError: unknown name.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"unknown audio features {name!r}: choose from {', '.join(sorted(EXTRACTORS))}")
    parameters = inspect.signature(EXTRACTORS[name]).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters}


def make_extractor(name: str, **options: Any) -> AudioExtractor:
    """An extractor by its registered name, with its class's own options (`extractor_options`).

    Raises:
        ValueError: unknown name or option, a package that is not installed, or weights that are not there.
    """
    valid = extractor_options(name)
    if unknown := sorted(options.keys() - valid.keys()):
        raise ValueError(f"{name} has no option {unknown[0]!r}: choose from {', '.join(valid)}")
    return EXTRACTORS[name](**options)


def frame_features(extractor: AudioExtractor, wave: Float32, num_frames: int, *, beat: Beat = no_beat) -> Float32:
    """One feature row per video frame: `extract`, then `fit_to_video`.

    Args:
        extractor: what hears.
        wave: 16 kHz mono in [-1, 1], sample 0 at the first frame.
        num_frames: T.
        beat: called after every window of the sound.

    Returns:
        T×C.

    Raises:
        Rejected: FEATURE_LENGTH where the rows do not cover the frames (see `fit_to_video`).
        ValueError: the wave is not mono, or the weights cannot be read.
    """
    return fit_to_video(extractor.extract(wave, beat), extractor.frame_shift, num_frames)


def fit_to_video(values_RC: Float32, frame_shift: float, num_frames: int, *, tolerance_frames: float = 2) -> Float32:
    """Resample feature rows to one per video frame: frame t is at t/25 s, row i at i·frame_shift.

    Linear interpolation between rows; frames past the last row repeat it. Rows at 25 Hz pass unchanged
    (without a copy where none is missing), and of rows at 50 Hz every second one is taken.

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
    if np.array_equal(lower_T, np.arange(num_frames)) and (position_T == lower_T).all():
        return np.asarray(values_RC[:num_frames], dtype=np.float32)
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


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """How a network that hears all of its input at once is given long sound: in overlapping pieces of equal length.

    What the network makes of a piece's ends, where it lacks the neighbourhood, is thrown away.
    """

    rows: int
    """Rows of one piece; sound of no more rows is one piece, processed whole."""
    context: int
    """Rows at either end that are thrown away, but at the ends of the sound."""
    batch: int = 1
    """Pieces given to the network at once."""

    def __post_init__(self) -> None:
        if self.rows <= 2 * self.context or self.context < 0 or self.batch < 1:
            raise ValueError(f"pieces of {self.rows} rows with a context of {self.context}, {self.batch} at once")


def in_pieces(
    run: Callable[[list[int], int], Float32], rows: int, dim: int, pieces: Pieces, beat: Beat = no_beat
) -> Float32:
    """All rows of a sequence, made piece by piece with bounded memory.

    Args:
        run: given the first rows of B pieces and their length L, makes B×L×dim.
        rows: of the whole sequence.
        dim: numbers in a row.
        pieces: how long, how much overlap, how many at once.
        beat: called after every batch.

    Returns:
        rows×dim.
    """
    out_RC = np.empty((rows, dim), np.float32)
    length = min(pieces.rows, rows)
    starts = [*range(0, rows - length, pieces.rows - 2 * pieces.context), rows - length] if rows else []
    # A piece keeps its rows from `edges[i]` to the next edge.
    edges = [0, *(start + pieces.context for start in starts[1:]), rows]
    for first in range(0, len(starts), pieces.batch):
        some = starts[first : first + pieces.batch]
        for number, values_LC in enumerate(run(some, length), first):
            begin, end = edges[number], edges[number + 1]
            out_RC[begin:end] = values_LC[begin - starts[number] : end - starts[number]]
        beat()
    return out_RC


def check_mono(wave: Float32) -> None:
    """Raises ValueError for anything but one dimension."""
    if wave.ndim != 1:
        raise ValueError(f"wave: shape {wave.shape}, expected one dimension (mono)")
