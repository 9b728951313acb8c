"""The scores of a segment that need no network: measurements, which neither accept nor reject a segment.

Shape letters: T video frames, H W crop height and width, K short windows of audio, N samples of one, F frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from lawdnet.face.lips import lip_gap
from lawdnet.face.points import MOUTH_CORNERS, NOSE_TIP, OUTER_EYE_CORNERS
from lawdnet.types import SAMPLE_RATE, Bool, Float32, UInt8

FACE_ROWS, FACE_COLUMNS = (0.15, 0.95), (0.2, 0.8)
"""Brows to below the lips, and cheek to cheek, of an aligned crop, in crop widths: skin in every pose."""
FACE_PX = (128, 96)
"""Height and width at which the face is measured, whatever the width of the stored crop."""
SHARP_SIGMA = 0.7
"""Blur (px of FACE_PX) before the Laplacian, which would otherwise measure how the crop was interpolated."""

NOSE_DEPTH = 4.302 / 4.446
"""How far the nose tip is in front of the line through the outer eye corners, in halves of that line."""
NOSE_FALL, NOSE_RISE, MOUTH_FALL, MOUTH_RISE = 3.791, 4.302, 7.007, 1.111
"""How far the nose tip and the mouth corners are below and in front of the outer eye corners; cm of the same model."""

SILENCE_DB = -50.0
"""Level in dBFS below which a window is silent."""
FLOOR_DB = -100.0
"""Level in dBFS of digital silence; anything below counts as this."""
SILENCE_WINDOW, VOICE_WINDOW, VOICE_HOP = 320, 640, 160
"""In samples: 20, 40 and 10 ms."""
VOICE_HZ = (75, 400)
"""Pitches of voices; the window contains three periods of the lowest."""
PERIODIC = 0.5
"""Least autocorrelation at the period for a window to be voiced; white noise stays below 0.35."""
SECOND_PARTIAL = 0.02
"""Least power of the second spectral line, as a share of the first, so that a pure tone is not a voice."""
LOBE = 4
"""Frequencies (steps of 12.5 Hz) on either side of a line over which the window smears it."""
SPEECH_DB = 30.0
"""A voice is at most this many dB below the loudest window; reverberation is quieter."""
REACH = 15
"""Windows (150 ms) around a voiced one that belong to the same speech, for its unvoiced consonants."""


def face_scale(matrix_T33: Float32) -> Float32:
    """Return crop px per frame px of T similarity matrices, shape T."""
    return np.hypot(matrix_T33[:, 0, 0], matrix_T33[:, 0, 1]).astype(np.float32)


def scale_change(matrix_T33: Float32) -> float:
    """Return largest over smallest face size within a segment, at least 1 (DINet rejects more than 1.5)."""
    scale_T = face_scale(matrix_T33)
    return float(scale_T.max() / scale_T.min())


class ImageScores(NamedTuple):
    """Scores of one image; all finite."""

    sharpness: float
    """Variance of the Laplacian of the face's luma (0 … 255) at 128×96 px, at least 0. It varies by at most 15 % with
    the width of the crop, from 160 px up. People in real videos have 15 … 55, drawn heads 80 … 350; a blur of 2 crop px
    (of 320) brings people to about 15, of 4 to about 6."""
    brightness: float
    """Mean luma of the face, 0 … 255."""
    yaw: float
    """Degrees, about -90 … 90; positive: the face turns to the right of the image."""
    pitch: float
    """Degrees, -90 … 90; positive: the face looks up."""
    roll: float
    """Degrees in the *frame*, -180 … 180; positive: clockwise, the top of the head leans to the right of the image."""


def image_scores(crop_HW3: UInt8, points_68x2: Float32, matrix_33: Float32) -> ImageScores:
    """Measure one aligned crop, in about 0.1 ms at 416×320 px.

    Args:
        crop_HW3: uint8 RGB, as `lawdnet.face.align.crop_face` cuts it.
        points_68x2: its landmarks in crop px.
        matrix_33: frame px → crop px; it contains the roll, which the crop has lost.
    """
    width = crop_HW3.shape[1]
    (top, bottom), (left, right) = ([round(side * width) for side in span] for span in (FACE_ROWS, FACE_COLUMNS))
    luma = cv2.cvtColor(crop_HW3[top:bottom, left:right], cv2.COLOR_RGB2GRAY)
    shrinks = luma.shape[1] > FACE_PX[1]
    face = cv2.resize(luma, FACE_PX[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    deviation = cv2.meanStdDev(cv2.Laplacian(cv2.GaussianBlur(face, (5, 5), SHARP_SIGMA), cv2.CV_32F))[1]
    yaw, pitch = face_angles(points_68x2)
    roll = -np.degrees(np.arctan2(matrix_33[1, 0], matrix_33[0, 0]))
    return ImageScores(float(deviation[0, 0]) ** 2, cv2.mean(face)[0], yaw, pitch, float(roll))


def face_angles(points_68x2: Float32) -> tuple[float, float]:
    """Return yaw and pitch in degrees, from the 68 points of an upright face in parallel projection.

    The head is MediaPipe's canonical face model: outer eye corners at (±4.446, 2.664, 3.173), nose tip at (0, -1.127,
    7.476), mouth corners at (±2.456, -4.343, 4.284). When it turns by yaw ψ, the nose tip is 4.302 sin ψ beside the
    middle of the eyes, half of whose distance is 4.446 cos ψ. When it nods by pitch θ (t = -tan θ), the nose tip is at
    the share r = (3.791 + 4.302 t) / (7.007 + 1.111 t) of the way from the eyes to the mouth. These are proxies: noses
    differ, and the corners of an open mouth fall, as they do when the head looks up. Yaw is good to some ten degrees,
    pitch to twenty.

    Returns:
        (yaw, pitch) with the signs of `ImageScores`; 0 if the points coincide.
    """
    eyes = points_68x2[OUTER_EYE_CORNERS]
    corners = points_68x2[MOUTH_CORNERS]
    half = (eyes[1] - eyes[0])[0] / 2
    beside, nose_fall = points_68x2[NOSE_TIP] - eyes.mean(0)
    mouth_fall = corners.mean(0)[1] - eyes.mean(0)[1]
    yaw = np.arctan2(beside, NOSE_DEPTH * abs(half))
    down = np.arctan2(MOUTH_FALL * nose_fall - NOSE_FALL * mouth_fall, NOSE_RISE * mouth_fall - MOUTH_RISE * nose_fall)
    return float(np.degrees(yaw)), float(np.degrees(-down))


def segment_scores(
    images: Sequence[ImageScores],
    points_T68x2: Float32,
    matrix_T33: Float32,
    detected_T: Bool,
    waveform: Float32,
    crop_width: int,
) -> dict[str, float]:
    """Measure everything about a segment that needs no network; all values are finite.

    Args:
        images: T results of `image_scores`.
        points_T68x2: landmarks in px of any one scale.
        matrix_T33: frame px → crop px.
        detected_T: whether the face of a frame was found rather than interpolated.
        waveform: the segment's audio, 16 kHz mono in [-1, 1], at least one sample.
        crop_width: px.

    Returns:
        face_px: mean width of the crop in frame px; scale_change: largest over smallest face size, at least 1;
        face_share: share of frames in which the face was found, 0 … 1; sharpness: median; brightness: mean, 0 … 255;
        yaw, pitch, roll: the largest by size in degrees, with its sign, except for the most extreme twentieth of the
        frames; mouth_motion: standard deviation of `lip_gap`, at least 0; and the scores of `audio_scores`.
    """
    values_T5 = np.array(images, np.float64)
    assert len(values_T5) == len(matrix_T33) == len(detected_T) > 0
    assert np.isfinite(values_T5).all()
    sharpness_T, brightness_T, *angles = values_T5.T
    yaw, pitch, roll = map(_extreme, angles)
    return {
        "face_px": float(crop_width / face_scale(matrix_T33).mean()),
        "scale_change": scale_change(matrix_T33),
        "face_share": float(np.mean(detected_T)),
        "sharpness": float(np.median(sharpness_T)),
        "yaw": yaw,
        "pitch": pitch,
        "roll": roll,
        "mouth_motion": float(np.nan_to_num(lip_gap(points_T68x2)).std()),
        "brightness": float(brightness_T.mean()),
        **audio_scores(waveform),
    }


def _extreme(values_T: NDArray[np.floating[Any]]) -> float:
    """Return the value whose size 95 % of the values do not exceed, with its sign."""
    order = np.argsort(np.abs(values_T), kind="stable")
    return float(values_T[order[int(0.95 * (len(order) - 1))]])


def audio_scores(waveform: Float32) -> dict[str, float]:
    """Measure how loud a 16 kHz waveform is, how much of it is silent, and how much is speech.

    Returns:
        loudness: root mean square in dBFS, -100 … 0 (a full-scale square wave); silence: share of 20 ms windows below
        -50 dBFS, 0 … 1; speech_ratio: share of 40 ms windows, one every 10 ms, with a voice (`voiced`) within 150 ms
        and a level above -50 dBFS, 0 … 1. It tells speech from silence, noise, hum and beeps; other harmonic sounds
        that are not pure tones (singing, a violin, a siren) count as speech.
    """
    assert waveform.ndim == 1
    assert len(waveform)
    level_K = _level(_frames(waveform, VOICE_WINDOW, VOICE_HOP))
    near_K = np.convolve(voiced(waveform), np.ones(2 * REACH + 1), "full")[REACH : REACH + len(level_K)] > 0.5
    return {
        "loudness": float(_level(waveform[None])[0]),
        "speech_ratio": float((near_K & (level_K > SILENCE_DB)).mean()),
        "silence": float((_level(_frames(waveform, SILENCE_WINDOW, SILENCE_WINDOW)) < SILENCE_DB).mean()),
    }


def voiced(waveform: Float32) -> Bool:
    """Whether a 40 ms window, one every 10 ms, has a voice: loud, periodic at 75 … 400 Hz, with more than one partial.

    Periodicity is the largest autocorrelation of the windowed signal divided by the window's own (Boersma 1993).
    """
    level_K = _level(_frames(waveform, VOICE_WINDOW, VOICE_HOP))
    loud_K = (level_K > SILENCE_DB) & (level_K > level_K.max() - SPEECH_DB)
    window_N, own_N = _window()
    bright = np.diff(waveform, prepend=waveform[:1])  # weakens rumble, whose slow waves look periodic
    power_KF = np.square(np.abs(np.fft.rfft(_frames(bright, VOICE_WINDOW, VOICE_HOP) * window_N, 2 * VOICE_WINDOW)))
    lag_KN = np.fft.irfft(power_KF, axis=1)[:, :VOICE_WINDOW] / own_N
    total_K = np.maximum(lag_KN[:, 0], 1e-12)
    shortest, longest = (SAMPLE_RATE // hz for hz in VOICE_HZ[::-1])
    periodic_K = lag_KN[:, shortest : longest + 1].max(1) > PERIODIC * total_K
    return loud_K & periodic_K & (_second_line(power_KF) > SECOND_PARTIAL)


def _second_line(power_KF: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Return the power of the strongest frequency outside the lobe of the very strongest, as a share of that."""
    peak_K1 = power_KF.argmax(1)[:, None]
    is_outside_KF = np.abs(np.arange(power_KF.shape[1]) - peak_K1) > LOBE
    peaks_K = np.take_along_axis(power_KF, peak_K1, axis=1)[:, 0]
    return np.where(is_outside_KF, power_KF, 0).max(1) / np.maximum(peaks_K, 1e-12)


@cache
def _window() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a Hann window and its autocorrelation, which is 1 at lag 0."""
    window_N = np.hanning(VOICE_WINDOW + 2)[1:-1]
    power_F = np.square(np.abs(np.fft.rfft(window_N, 2 * VOICE_WINDOW)))
    own_N = np.fft.irfft(power_F)[:VOICE_WINDOW]
    return window_N, own_N / own_N[0]


def _frames(waveform: Float32, length: int, hop: int) -> NDArray[np.float64]:
    """Return the K×N windows within the waveform; one that is too short is padded with silence."""
    padded = np.pad(waveform.astype(np.float64), (0, max(0, length - len(waveform))))
    return np.lib.stride_tricks.sliding_window_view(padded, length)[::hop]


def _level(windows_KN: NDArray[Any]) -> NDArray[np.float64]:
    """Return the level of each window in dBFS, at least -100."""
    power_K = np.square(windows_KN, dtype=np.float64).mean(1)
    return 10 * np.log10(np.maximum(power_K, 10 ** (FLOOR_DB / 10)))
