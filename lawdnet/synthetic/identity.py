"""Appearance and motion of a drawn talking head: everything that its seeds determine, except speech.

Lengths are in half widths of the aligned crop, the unit of the alignment template (x right, y down, z towards the
viewer; the origin is the middle of the crop, just below the nose).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lawdnet.types import FPS

Colour = tuple[int, int, int]

PALE_SKIN, DARK_SKIN = (240, 204, 180), (108, 70, 52)
HAIR_COLOURS = ((30, 24, 22), (62, 40, 26), (110, 72, 40), (196, 156, 92), (140, 62, 32), (150, 148, 146))
IRIS_COLOURS = ((74, 48, 30), (92, 112, 62), (70, 110, 150), (96, 100, 108))
HAIR_STYLES = ("short", "short", "long", "long", "bob", "bob", "parted", "parted", "bald")
BEARD_STYLES = ("none", "none", "none", "stubble", "full", "moustache")
ROOM_COLOURS = ((92, 120, 140), (150, 142, 128), (70, 78, 92), (120, 140, 112), (168, 152, 150), (58, 84, 82))


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Colours and proportions of a person, the room and the light, chosen at random by `make_identity`."""

    skin: Colour
    lip: Colour
    hair: Colour
    iris: Colour
    clothes: Colour
    room: tuple[Colour, Colour]
    hair_style: str
    beard: str
    glasses: bool
    face_width: float
    """Width at the jaw, as a fraction of the frame's width."""
    jaw_width: float
    chin_length: float
    eye_size: float
    nose_width: float
    mouth_width: float
    lip_thickness: float
    smile: float
    brow_weight: float
    widest_gap: float
    """Distance between the lips at opening 1."""
    teeth: float
    """Fraction of the gap that the upper teeth cover."""
    light_angle: float
    light_strength: float
    grain: float
    """Standard deviation of the film grain in grey levels."""
    room_drift: float
    """How far the background moves, as a fraction of its size; 0 means that it stands still."""
    seed: int


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Position of the head in one frame, and state of the upper face; the defaults are a neutral, frontal head."""

    tick: int = 0
    """Number of the frame; it moves the background and the grain."""
    shift: tuple[float, float] = (0.0, 0.0)
    """In fractions of the distance that the head can move without leaving the frame: -1 … 1."""
    scale: float = 1.0
    roll: float = 0.0
    """Radians, clockwise."""
    yaw: float = 0.0
    pitch: float = 0.0
    """Yaw and pitch are small angles in radians: features are displaced by angle × depth."""
    blink: float = 0.0
    """0 open … 1 shut."""
    brow: float = 0.0
    gaze: tuple[float, float] = (0.0, 0.0)
    """-1 … 1 across the eye."""


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """Mix a fraction `share` of colour b into colour a."""
    red, green, blue = (round((1 - share) * x + share * y) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _lip(skin: Colour, redness: float) -> Colour:
    """Return a lip colour as bright as the skin in the red channel, so that only the open mouth is dark in red."""
    red, green, blue = skin
    return red, round(green * (1 - redness)), round(blue * (1 - 0.85 * redness))


def make_identity(seed: int) -> Identity:
    """Return the person for this seed."""
    rng = np.random.default_rng((seed, 2))

    def jitter(colour: Colour, spread: float) -> Colour:
        red, green, blue = np.clip(colour + rng.normal(0, spread, 3), 0, 255).round().astype(int).tolist()
        return red, green, blue

    def pick(choices: Sequence[Colour]) -> Colour:
        return choices[int(rng.integers(len(choices)))]

    tone = rng.beta(0.8, 1.2)
    skin = jitter(mix(PALE_SKIN, DARK_SKIN, tone), 4)
    return Identity(
        skin=skin,
        lip=_lip(skin, rng.uniform(0.3, 0.5)),
        hair=jitter(pick(HAIR_COLOURS[: 3 if tone > 0.5 else None]), 5),
        iris=pick(IRIS_COLOURS),
        clothes=jitter((104, 102, 112), 34),
        room=(jitter(pick(ROOM_COLOURS), 14), jitter(pick(ROOM_COLOURS), 14)),
        hair_style=str(rng.choice(HAIR_STYLES)),
        beard=str(rng.choice(BEARD_STYLES)),
        glasses=bool(rng.random() < 0.25),
        face_width=rng.uniform(0.46, 0.54),
        jaw_width=rng.uniform(0.9, 1.06),
        chin_length=rng.uniform(0.94, 1.03),
        eye_size=rng.uniform(0.9, 1.15),
        nose_width=rng.uniform(0.85, 1.2),
        mouth_width=rng.uniform(0.9, 1.08),
        lip_thickness=rng.uniform(0.92, 1.25),
        smile=rng.uniform(-0.01, 0.03),
        brow_weight=rng.uniform(0.7, 1.4),
        widest_gap=rng.uniform(0.33, 0.4),
        teeth=rng.uniform(0.14, 0.26),
        light_angle=rng.uniform(0, 2 * np.pi),
        light_strength=rng.uniform(0.05, 0.2),
        grain=rng.uniform(0.8, 2.0),
        room_drift=float(rng.choice([0.0, 0.04, 0.1])),
        seed=seed,
    )


def make_motion(seed: int, frames: int) -> list[Pose]:
    """Return the poses of a head that sways, nods, tilts, blinks and looks around, for `frames` frames at 25 fps."""
    rng = np.random.default_rng((seed, 3))
    seconds_T = np.arange(frames) / FPS

    def sway(amplitude: float, rates: tuple[float, ...] = (0.07, 0.19, 0.43)) -> NDArray[np.float64]:
        weights = rng.dirichlet(np.full(len(rates), 2.0))
        waves = [
            weight * np.sin(2 * np.pi * (rate * rng.uniform(0.7, 1.3) * seconds_T + rng.random()))
            for weight, rate in zip(weights, rates, strict=True)
        ]
        return np.asarray(amplitude * np.sum(waves, axis=0), np.float64)

    still = rng.uniform(0.3, 1.0)
    right_T, down_T, gaze_right_T, gaze_down_T = sway(still), sway(still), sway(0.5), sway(0.2)
    scale_T = 1 + sway(0.1 * still)
    roll_T = sway(np.deg2rad(10) * still)
    yaw_T, pitch_T, brow_T = sway(0.22 * still), sway(0.14 * still), sway(0.8)
    blink_T = _blinks(frames, rng)
    return [
        Pose(
            tick=t,
            shift=(right_T[t], down_T[t]),
            scale=scale_T[t],
            roll=roll_T[t],
            yaw=yaw_T[t],
            pitch=pitch_T[t],
            blink=blink_T[t],
            brow=brow_T[t],
            gaze=(gaze_right_T[t], gaze_down_T[t]),
        )
        for t in range(frames)
    ]


def _blinks(frames: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return how far the lids are shut: for about 0.2 s every 1.5 … 4.5 s."""
    blink_T = np.zeros(frames)
    shape = np.array([0.4, 0.95, 1.0, 0.7, 0.3])
    start = int(rng.uniform(0.5, 3) * FPS)
    while start < frames:
        stop = min(frames, start + len(shape))
        blink_T[start:stop] = shape[: stop - start]
        start += int(rng.uniform(1.5, 4.5) * FPS)
    return blink_T
