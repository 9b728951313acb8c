"""When somebody speaks and how loudly, from stored mel features.

Shape letters: T frames, C feature dimension.
"""

from __future__ import annotations

import numpy as np

from lawdnet.audio.mel import FLOOR_DB, TOP_DB
from lawdnet.types import Bool, Float32

QUIET_DB = -70.0
"""Level in dB of the loudest mel band below which nobody speaks, whatever the recording."""
BELOW_SPEECH_DB = 35.0
"""A pause is at least this many dB below loud speech: recordings of people have noise, drawn ones have none."""
LOUD_PERCENTILE = 95
PAUSE = 5
"""Frames (0.2 s) that a pause lasts at least: the closure of a `p` or `t` is shorter, and the mouth may be open."""


def quiet(mel_TC: Float32) -> Bool:
    """Whether nobody speaks, for T frames of a segment.

    Args:
        mel_TC: the feature `mel` of the whole segment, so that it is known how loud its speech is.
    """
    loudest_T = FLOOR_DB + (mel_TC.max(1) + 1) / 2 * (TOP_DB - FLOOR_DB)
    limit = max(QUIET_DB, float(np.percentile(loudest_T, LOUD_PERCENTILE)) - BELOW_SPEECH_DB)
    return _lasting(loudest_T < limit)


def _lasting(is_quiet_T: Bool) -> Bool:
    """Keep what is true for `PAUSE` frames, or from the first or to the last frame."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_quiet_T, [False]]).astype(np.int8)))
    kept_T = np.zeros(len(is_quiet_T), bool)
    for start, stop in edges.reshape(-1, 2):
        if stop - start >= PAUSE or start == 0 or stop == len(is_quiet_T):
            kept_T[start:stop] = True
    return kept_T


def mean_level(mel_TC: Float32) -> Float32:
    """Return the mean of each mel row, T values: how loud the speech is, -1 … 1."""
    return np.asarray(mel_TC.mean(1), np.float32)
