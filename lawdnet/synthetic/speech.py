"""Synthesised speech and the lip movements that produce it.

A random sequence of phoneme-like gestures sets targets for a few articulators (lip opening, lip spread, voice, hiss).
The targets are smoothed into trajectories, as inertia smooths the movement of a jaw, and the *same* trajectories drive
the formants of the audio and the lips in the frames: every movement of the mouth can be heard.

Letters: S audio samples at 16 kHz, T video frames at 25 fps, K control steps at 1 kHz, P glottal pulses, F formants.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lawdnet.types import FPS, SAMPLE_RATE, Float32

Track = NDArray[np.floating[Any]]

CONTROL_RATE = 1000
INERTIA = 0.12
"""Seconds in which an articulator reaches its target; neighbouring gestures blend over this time."""
MAX_PHRASE_SYLLABLES = 8
PULSE_SECONDS = 0.025
NOISE_FLOOR = 3e-4
SILENT_VOICE = 0.02
BANDS_HZ = {"hiss": (4200.0, 7600.0), "hush": (1800.0, 4200.0)}


@dataclass(frozen=True, kw_only=True)
class Speech:
    """Audio and the mouth movements that produced it; frame t of the tracks is at time t / 25 s."""

    audio_S: Float32
    """16 kHz mono in [-1, 1]; S = 640·T."""
    opening_T: Float32
    """Lip opening in [0, 1]; exactly 0 while the lips touch."""
    spread_T: Float32
    """-1 rounded as in "oo" … 1 spread as in "ee"."""


@dataclass(frozen=True, kw_only=True)
class Gesture:
    """Targets that are held for some seconds. An opening below 0 presses the lips together, so that they stay shut."""

    seconds: tuple[float, float]
    opening: float
    spread: float
    voice: float = 0.0
    hiss: float = 0.0
    hush: float = 0.0
    burst: float = 0.0
    """Loudness of the noise when the lips open."""


VOWELS = (
    Gesture(seconds=(0.15, 0.26), opening=1.0, spread=0.1, voice=1.0),
    Gesture(seconds=(0.15, 0.24), opening=0.82, spread=0.5, voice=1.0),
    Gesture(seconds=(0.13, 0.2), opening=0.56, spread=0.65, voice=0.9),
    Gesture(seconds=(0.11, 0.18), opening=0.3, spread=1.0, voice=0.85),
    Gesture(seconds=(0.14, 0.22), opening=0.62, spread=-0.7, voice=0.95),
    Gesture(seconds=(0.11, 0.18), opening=0.28, spread=-1.0, voice=0.85),
    Gesture(seconds=(0.09, 0.14), opening=0.45, spread=0.0, voice=0.8),
)
LIP_CLOSERS = (
    Gesture(seconds=(0.14, 0.17), opening=-0.5, spread=0.0, burst=1.0),  # p
    Gesture(seconds=(0.13, 0.16), opening=-0.5, spread=0.0, voice=0.12, burst=0.6),  # b
    Gesture(seconds=(0.13, 0.17), opening=-0.5, spread=0.0, voice=0.5),  # m
)
OTHER_CONSONANTS = (
    Gesture(seconds=(0.08, 0.13), opening=0.12, spread=0.5, hiss=1.0),  # s
    Gesture(seconds=(0.08, 0.13), opening=0.18, spread=-0.45, hush=1.0),  # sh
    Gesture(seconds=(0.07, 0.11), opening=0.08, spread=0.2, hiss=0.35, hush=0.25),  # f
    Gesture(seconds=(0.05, 0.09), opening=0.3, spread=0.2, voice=0.6),  # l
)
RESTS = (
    Gesture(seconds=(0.2, 0.4), opening=-0.2, spread=0.0),
    Gesture(seconds=(0.2, 0.4), opening=-0.2, spread=0.0),
    Gesture(seconds=(0.5, 1.0), opening=-0.2, spread=0.0),
)


def make_speech(seconds: float, seed: int) -> Speech:
    """Synthesise `seconds` of babble in the voice of `seed`: phrases of 3 … 5 syllables per second, with pauses
    between.

    Raises:
        ValueError: `seconds` is shorter than one video frame.
    """
    frames = round(seconds * FPS)
    if frames < 1:
        raise ValueError(f"seconds: {seconds} is shorter than one frame; give at least {1 / FPS}")
    rng = np.random.default_rng((seed, 1))
    gestures, lengths = _plan(frames / FPS, rng)
    tracks = _trajectories(gestures, lengths, frames * CONTROL_RATE // FPS)
    audio_S = _synthesise(tracks, _burst_track(gestures, lengths, len(tracks["opening"])), rng)
    step = CONTROL_RATE // FPS
    opening_T, spread_T = (tracks[name][::step].astype(np.float32) for name in ("opening", "spread"))
    return Speech(audio_S=audio_S, opening_T=opening_T, spread_T=spread_T)


def _plan(seconds: float, rng: np.random.Generator) -> tuple[list[Gesture], list[int]]:
    """Choose gestures that last at least `seconds`, and the number of control steps of each."""
    gestures: list[Gesture] = []
    lengths: list[int] = []

    def add(gesture: Gesture) -> None:
        gestures.append(gesture)
        lengths.append(round(rng.uniform(*gesture.seconds) * CONTROL_RATE))

    if rng.random() < 0.4:
        add(_choice(RESTS, rng))
    while sum(lengths) < seconds * CONTROL_RATE:
        loudness = rng.uniform(0.6, 1.0)
        for _ in range(rng.integers(4, MAX_PHRASE_SYLLABLES + 1)):
            for gesture in _syllable(rng):
                add(_stressed(gesture, loudness * rng.uniform(0.75, 1.0), rng.uniform(0.85, 1.0)))
        add(_choice(RESTS, rng))
    return gestures, lengths


def _choice(gestures: tuple[Gesture, ...], rng: np.random.Generator) -> Gesture:
    return gestures[rng.integers(len(gestures))]


def _syllable(rng: np.random.Generator) -> list[Gesture]:
    """Choose a vowel, mostly with a consonant before it."""
    vowel = _choice(VOWELS, rng)
    kind = rng.random()
    if kind < 0.12:
        return [vowel]
    return [_choice(LIP_CLOSERS if kind < 0.42 else OTHER_CONSONANTS, rng), vowel]


def _stressed(gesture: Gesture, loudness: float, effort: float) -> Gesture:
    """Return the gesture spoken more quietly and with less effort."""
    opening = gesture.opening * effort if gesture.opening > 0 else gesture.opening
    levels = {name: getattr(gesture, name) * loudness for name in ("voice", "hiss", "hush", "burst")}
    return replace(gesture, opening=opening, **levels)


def _trajectories(gestures: list[Gesture], lengths: list[int], steps: int) -> dict[str, Track]:
    """Return a smooth track of K control steps for each articulator."""
    kernel = np.hanning(round(INERTIA * CONTROL_RATE) + 2)[1:-1]
    kernel /= kernel.sum()
    tracks = {}
    for name in ("opening", "spread", "voice", "hiss", "hush"):
        target_K = np.repeat([getattr(gesture, name) for gesture in gestures], lengths)
        padded = np.pad(target_K, len(kernel) // 2, mode="edge")
        smooth_K = np.convolve(padded, kernel, mode="same")[len(kernel) // 2 :][:steps]
        tracks[name] = smooth_K.astype(np.float32)
    tracks["opening"] = np.clip(tracks["opening"], 0.0, 1.0)
    tracks["spread"] = np.clip(tracks["spread"], -1.0, 1.0)
    return tracks


def _burst_track(gestures: list[Gesture], lengths: list[int], steps: int) -> Track:
    """Return the loudness of the short noise that follows the release of p and b; it decays in 10 ms."""
    impulse_K = np.zeros(sum(lengths) + 1)
    impulse_K[np.cumsum(lengths)] = [gesture.burst for gesture in gestures]
    decay = np.exp(-np.arange(60) / 10)
    return np.convolve(impulse_K, decay)[:steps].astype(np.float32)


def _synthesise(tracks: dict[str, Track], burst_K: Track, rng: np.random.Generator) -> Float32:
    """Return the audio for the trajectories: voice through the formants of the mouth, and noise at the teeth."""
    samples = len(burst_K) * SAMPLE_RATE // CONTROL_RATE
    times_S = np.arange(samples) * (CONTROL_RATE / SAMPLE_RATE)
    steps = np.arange(len(burst_K))
    wide = {name: np.interp(times_S, steps, track) for name, track in {**tracks, "burst": burst_K}.items()}
    audio_S = _voice(wide, rng)
    for name, level in (("hiss", wide["hiss"]), ("hush", wide["hush"] + 0.7 * wide["burst"])):
        audio_S += 0.12 * level * _band_noise(samples, BANDS_HZ[name], rng)
    peak = max(float(np.abs(audio_S).max()), 0.5)
    audio_S *= rng.uniform(0.45, 0.8) / peak
    audio_S += NOISE_FLOOR * rng.standard_normal(samples)
    return audio_S.astype(np.float32)


def _voice(wide: dict[str, Track], rng: np.random.Generator) -> Track:
    """Sum one damped sinusoid per formant for every glottal pulse (formant wave functions, Rodet 1984)."""
    samples = len(wide["voice"])
    pulse_P = _pulse_times(samples, rng)
    pulse_P = pulse_P[wide["voice"][pulse_P.astype(int)] > SILENT_VOICE]
    index_P = pulse_P.astype(int)
    formant_PF, width_F, level_PF = _formants(
        wide["opening"][index_P], wide["spread"][index_P], rng.uniform(0.96, 1.05)
    )
    length = round(PULSE_SECONDS * SAMPLE_RATE)
    seconds_PL = (np.arange(1, length + 1) - (pulse_P - index_P)[:, None]) / SAMPLE_RATE
    shape_PL = np.zeros_like(seconds_PL)
    for f, width in enumerate(width_F):
        ring = np.exp(-np.pi * width * seconds_PL) * np.sin(2 * np.pi * formant_PF[:, f, None] * seconds_PL)
        shape_PL += level_PF[:, f, None] * ring
    shape_PL *= wide["voice"][index_P, None] * 0.5 * (1 + np.cos(np.pi * np.arange(length) / length))
    voice = np.zeros(samples + length + 1)
    np.add.at(voice, index_P[:, None] + np.arange(1, length + 1), shape_PL)
    return voice[:samples]


def _pulse_times(samples: int, rng: np.random.Generator) -> Track:
    """Return when the glottis closes, in samples: the speaker's pitch with the slow changes of speech."""
    seconds_S = np.arange(samples) / SAMPLE_RATE
    pitch = rng.uniform(95, 220)
    melody_S = np.zeros(samples)
    for rate, depth in ((0.35, 0.09), (1.1, 0.05), (2.7, 0.03), (5.5, 0.008)):
        melody_S += depth * np.sin(2 * np.pi * (rate * rng.uniform(0.8, 1.2) * seconds_S + rng.random()))
    phase_S = np.cumsum(pitch * (1 + melody_S)) / SAMPLE_RATE
    return np.interp(np.arange(1, int(phase_S[-1]) + 1), phase_S, np.arange(samples))


def _formants(opening_P: Track, spread_P: Track, tract: float) -> tuple[Track, Track, Track]:
    """Return frequencies P×F in Hz, bandwidths F in Hz and levels P×F.

    F1 rises as the jaw opens and F2 as the lips spread; closed lips let only the lowest formant through (a nasal hum).
    """
    f1 = 260 + 580 * opening_P
    f2 = 1450 + np.where(spread_P > 0, 800, 600) * spread_P
    f3 = 2650 + 200 * spread_P
    formant_PF = tract * np.stack([f1, f2, f3, np.full_like(f1, 3600)], axis=1)
    openness = 0.06 + 0.94 * np.minimum(1, opening_P / 0.25)
    loud = 0.35 + 0.65 * opening_P
    level_PF = np.stack([loud, 0.5 * loud * openness, 0.25 * loud * openness, 0.1 * loud * openness], axis=1)
    return formant_PF, np.array([70.0, 100.0, 140.0, 220.0]), level_PF


def _band_noise(samples: int, band_hz: tuple[float, float], rng: np.random.Generator) -> Track:
    """Return noise of unit deviation between two frequencies."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    low, high = band_hz
    spectrum *= np.exp(-((np.maximum(0, low - frequency) + np.maximum(0, frequency - high)) ** 2) / 300**2)
    noise_S = np.fft.irfft(spectrum, samples)
    return noise_S / max(float(noise_S.std()), 1e-9)
