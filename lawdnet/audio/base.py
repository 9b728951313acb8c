"""What all audio features share: the extractor's interface, long audio in chunks, and the match of rows to frames.

Shape letters: R feature rows at the extractor's rate, T video frames, C feature dimension, B chunks, L rows of a chunk.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lawdnet.models.device import pick_device
from lawdnet.networks import in_order
from lawdnet.types import AUDIO_CONTEXT, FPS, Beat, Float32, Rejected, RejectReason, no_beat

GPU_BATCH = 8
"""Chunks of audio that a GPU processes at once, if nothing else is asked for."""


class AudioExtractor(Protocol):
    """Turns audio into rows of features.

    Constructors are cheap: they find files and check packages; networks load at the first call of `extract`.
    """

    name: str
    feature_dim: int
    frame_shift: float
    """Seconds between rows; row i is centred on i·frame_shift, to within half a video frame (20 ms)."""
    model_sha256: str | None
    """SHA-256 of the trained weights; None if there are none."""

    def extract(self, audio: Float32, beat: Beat = no_beat) -> Float32:
        """Return R×C finite rows that cover 16 kHz mono audio in [-1, 1]; no samples give no rows."""
        ...


EXTRACTORS: dict[str, type[AudioExtractor]] = {}


def extractor_options(name: str) -> dict[str, Any]:
    """Return the options of an extractor and their defaults.

    Raises:
        ValueError: unknown name.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"unknown audio features {name!r}; choose from {', '.join(sorted(EXTRACTORS))}")
    parameters = inspect.signature(EXTRACTORS[name]).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters}


def make_extractor(name: str, **options: Any) -> AudioExtractor:
    """Create an extractor by its registered name, with the options of its class (`extractor_options`).

    Raises:
        ValueError: unknown name or option, a package that is not installed, or weights that are missing.
    """
    valid = extractor_options(name)
    if unknown := sorted(options.keys() - valid.keys()):
        raise ValueError(f"{name} has no option {unknown[0]!r}; choose from {', '.join(valid)}")
    return EXTRACTORS[name](**options)


def frame_features(extractor: AudioExtractor, audio: Float32, num_frames: int, *, beat: Beat = no_beat) -> Float32:
    """Return one feature row per video frame: `extract`, then `fit_to_video`.

    Args:
        extractor: computes the rows.
        audio: 16 kHz mono in [-1, 1], sample 0 at the first frame.
        num_frames: T.
        beat: called after every chunk of the audio.

    Returns:
        T×C.

    Raises:
        Rejected: FEATURE_LENGTH if the rows do not cover the frames (see `fit_to_video`).
        ValueError: the audio is not mono, or the weights cannot be read.
    """
    return fit_to_video(extractor.extract(audio, beat), extractor.frame_shift, num_frames)


def fit_to_video(values_RC: Float32, frame_shift: float, num_frames: int, *, tolerance_frames: float = 2) -> Float32:
    """Resample feature rows to one per video frame: frame t is at t/25 s, row i at i·frame_shift.

    Values between rows are interpolated linearly; frames after the last row repeat it. Rows at 25 Hz pass unchanged
    (without a copy if none is missing), and of rows at 50 Hz every second one is taken.

    Args:
        values_RC: rows that cover R·frame_shift seconds.
        frame_shift: seconds between rows.
        num_frames: T.
        tolerance_frames: largest difference between the lengths of rows and video, in video frames.

    Returns:
        T×C.

    Raises:
        Rejected: FEATURE_LENGTH if the lengths differ by more.
        ValueError: the rows are not two-dimensional or not finite.
    """
    if values_RC.ndim != 2 or not np.isfinite(values_RC).all():
        raise ValueError(f"feature rows: shape {values_RC.shape}, expected two dimensions and finite values")
    rows = len(values_RC)
    covered = rows * frame_shift * FPS
    if rows == 0 or abs(covered - num_frames) > tolerance_frames + 1e-6:
        detail = f"{rows} feature rows cover {covered:.1f} frames, the video has {num_frames}"
        raise Rejected(RejectReason.FEATURE_LENGTH, f"{detail} (tolerance {tolerance_frames})")
    # Rounding puts positions exactly on their row, whatever the binary fraction of the shift.
    position_T = np.round(np.arange(num_frames) / (FPS * frame_shift), 6).clip(max=rows - 1)
    lower_T = position_T.astype(np.int64)
    if np.array_equal(lower_T, np.arange(num_frames)) and (position_T == lower_T).all():
        return np.asarray(values_RC[:num_frames], dtype=np.float32)
    weight_T1 = (position_T - lower_T).astype(np.float32)[:, None]
    upper_T = np.minimum(lower_T + 1, rows - 1)
    return np.asarray(values_RC[lower_T] * (1 - weight_T1) + values_RC[upper_T] * weight_T1, dtype=np.float32)


def windows(values_TC: Float32, radius: int = AUDIO_CONTEXT) -> Float32:
    """Return rows t-radius … t+radius around every frame; the first and last row are repeated beyond the ends.

    Returns:
        T×C×(2·radius + 1): the layout of the networks, time last. Windows are views of the same rows, as five copies of
        an hour's would take 700 MB; not to be written to.

    Raises:
        ValueError: there are no rows.
    """
    if len(values_TC) == 0:
        raise ValueError("no feature rows to take windows from")
    padded_TC = np.pad(values_TC, ((radius, radius), (0, 0)), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded_TC, 2 * radius + 1, axis=0)


@dataclass(frozen=True, kw_only=True)
class Chunking:
    """How a network that takes its whole input at once gets long audio: in overlapping chunks of equal length.

    Rows near the ends of a chunk, where the network lacks context, are thrown away.
    """

    rows: int
    """Rows of one chunk; audio of no more rows is a single chunk."""
    context: int
    """Rows thrown away at either end, except at the ends of the audio."""
    batch: int = 1
    """Chunks given to the network at once."""

    def __post_init__(self) -> None:
        if self.rows <= 2 * self.context or self.context < 0 or self.batch < 1:
            raise ValueError(
                f"chunks of {self.rows} rows with a context of {self.context}, {self.batch} at once, are not possible"
            )


def chunks_at_once(wanted: int | None, device: str) -> int:
    """Return how many chunks a torch network processes at once. Args: wanted: None lets the device decide."""
    return wanted or (GPU_BATCH if pick_device(device).type == "cuda" else 1)


def in_chunks(
    run: Callable[[list[int], int], Float32],
    rows: int,
    dim: int,
    chunking: Chunking,
    beat: Beat = no_beat,
    calls: int = 1,
) -> Float32:
    """Compute all rows of a sequence chunk by chunk, with bounded memory.

    Args:
        run: given the first rows of B chunks and their length L, returns B×L×dim.
        rows: rows of the whole sequence.
        dim: values per row.
        chunking: length, overlap and batch of the chunks.
        beat: called after every batch.
        calls: how many batches may be computed at once, in threads.

    Returns:
        rows×dim.
    """
    out_RC = np.empty((rows, dim), np.float32)
    length = min(chunking.rows, rows)
    starts = [*range(0, rows - length, chunking.rows - 2 * chunking.context), rows - length] if rows else []
    # Chunk i keeps its rows from edges[i] to edges[i + 1].
    edges = [0, *(start + chunking.context for start in starts[1:]), rows]
    firsts = range(0, len(starts), chunking.batch)
    batches = (starts[first : first + chunking.batch] for first in firsts)
    for first, batch_BLC in zip(firsts, in_order(lambda batch: run(batch, length), batches, calls), strict=True):
        for number, values_LC in enumerate(batch_BLC, first):
            begin = edges[number]
            end = edges[number + 1]
            out_RC[begin:end] = values_LC[begin - starts[number] : end - starts[number]]
        beat()
    return out_RC


def check_mono(audio: Float32) -> None:
    """Raise ValueError unless the audio has exactly one dimension."""
    if audio.ndim != 1:
        raise ValueError(f"audio: shape {audio.shape}, expected one dimension (mono)")
