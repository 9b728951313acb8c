"""Which frames of an audio are silent."""

from __future__ import annotations

import numpy as np

from lawdnet.types import AUDIO_CONTEXT, SAMPLES_PER_FRAME, Bool, Float32

SILENT_DB = -50.0
"""Level in dB of full scale (root mean square over a frame) below which nothing is said."""


def silent_frames(waveform: Float32) -> Bool:
    """Whether a frame and the two before and after it, which its mouth depends on, are silent.

    Args:
        waveform: 16 kHz mono in [-1, 1].

    Returns:
        One value for each frame that has begun.
    """
    missing = -len(waveform) % SAMPLES_PER_FRAME
    power_T = np.square(np.pad(waveform, (0, missing)), dtype=np.float64).reshape(-1, SAMPLES_PER_FRAME).mean(1)
    quiet_T = np.pad(power_T < 10 ** (SILENT_DB / 10), AUDIO_CONTEXT, constant_values=True)
    return np.asarray(np.lib.stride_tricks.sliding_window_view(quiet_T, 2 * AUDIO_CONTEXT + 1).all(1))
