"""The shape of a drawn face: 68 iBUG points in three dimensions, their projection, and smooth curves through them.

Letters: K points, M points of a sampled curve. Units as in `identity`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lawdnet.face import points as ibug
from lawdnet.synthetic.identity import Identity, Pose

Points = NDArray[np.floating[Any]]

JAW = (
    *((-0.93, -0.52), (-0.92, -0.31), (-0.89, -0.1), (-0.84, 0.11), (-0.75, 0.32)),
    *((-0.61, 0.5), (-0.43, 0.655), (-0.22, 0.77), (0.0, 0.8)),
)
BROW = ((-0.783, -0.875), (-0.663, -0.983), (-0.494, -1.016), (-0.319, -0.99), (-0.155, -0.922))
NOSE = ((0.0, -0.721), (0.0, -0.555), (0.0, -0.391), (0.0, -0.221))
NOSTRILS = ((-0.197, -0.107), (-0.102, -0.072), (0.0, -0.042))
EYE = ((-0.589, -0.69), (-0.5, -0.76), (-0.35, -0.765), (-0.249, -0.67), (-0.35, -0.632), (-0.49, -0.635))
MOUTH_Y = 0.21
UPPER_SHARE = 0.22
"""Fraction of the gap by which the upper lip rises; the lower lip falls by the rest."""
JAW_DROP = 0.6
"""How far the chin falls for a gap of 1."""


def _mirror(points: Points) -> Points:
    return points * (-1, 1)


def face_shape(identity: Identity, pose: Pose, opening: float, spread: float) -> Points:
    """Return the 68 points (x, y, z) of a person whose lips are open by `opening` in [0, 1]."""
    jaw = np.array(JAW) * (identity.jaw_width, identity.chin_length)
    fall = np.clip((jaw[:, 1] + 0.1) / 0.9, 0, 1) ** 1.3
    jaw[:, 1] += fall * JAW_DROP * identity.widest_gap * opening
    brow = np.array(BROW) - (0, 0.05 * pose.brow)
    nostrils = np.array(NOSTRILS) * (identity.nose_width, 1)
    eye = _eye(identity, pose)
    mouth = mouth_shape(identity, opening, spread)
    parts = [jaw, _mirror(jaw[-2::-1]), brow, _mirror(brow[::-1]), np.array(NOSE), nostrils, _mirror(nostrils[1::-1])]
    points = np.concatenate([*parts, eye, _mirror(eye[[3, 2, 1, 0, 5, 4]]), mouth])
    return np.column_stack([points, _depth(points)])


def _eye(identity: Identity, pose: Pose) -> Points:
    """Return one eye, with the upper lid lowered by a blink."""
    eye = np.array(EYE)
    middle = eye[[0, 3]].mean(0)
    eye[[1, 2, 4, 5]] = middle + (eye[[1, 2, 4, 5]] - middle) * (1, identity.eye_size)
    eye[[1, 2]] += pose.blink * (eye[[5, 4]] - eye[[1, 2]])
    return eye


def mouth_shape(identity: Identity, opening: float, spread: float) -> Points:
    """Return the 20 points of the mouth; at opening 0 the inner lips coincide."""
    half = 0.37 * identity.mouth_width * (1 + 0.14 * spread - 0.05 * opening)
    gap = identity.widest_gap * opening
    thick = identity.lip_thickness * (1 - 0.12 * spread - 0.15 * opening)
    rise, sink = -UPPER_SHARE * gap, (1 - UPPER_SHARE) * gap
    corner = 0.25 * gap - identity.smile
    ys = [corner, *(rise * np.array([0.6, 0.95, 1, 0.95, 0.6]) - thick * np.array([85, 130, 112, 130, 85]) / 1000)]
    ys += [corner, *(sink * np.array([0.66, 0.95, 1, 0.95, 0.66]) + thick * np.array([90, 140, 150, 140, 90]) / 1000)]
    ys += [corner, *(rise * np.array([0.8, 1, 0.8])), corner, *(sink * np.array([0.8, 1, 0.8]))]
    xs = [-1, -0.62, -0.28, 0, 0.28, 0.62, 1, 0.62, 0.28, 0, -0.28, -0.62, -0.88, -0.48, 0, 0.48, 0.88, 0.48, 0, -0.48]
    return np.column_stack([half * np.array(xs), MOUTH_Y + np.array(ys)])


def _depth(points_68x2: Points) -> Points:
    """Return the height of the 68 points above the plane of the eyes: a head is round, and the nose sticks out."""
    z = 0.25 - 0.75 * points_68x2[:, 0] ** 2
    z[ibug.NOSE_BRIDGE] = (0.25, 0.36, 0.46, 0.55)
    z[ibug.NOSTRILS] = (0.3, 0.36, 0.4, 0.36, 0.3)
    return z


def project(points_Kx3: Points, pose: Pose, unit: float, centre: tuple[float, float]) -> Points:
    """Project head points to px (pixel centres at integers): parallax of yaw and pitch, then roll, scale and shift."""
    points = np.asarray(points_Kx3, float)
    turned = points[:, :2] + points[:, 2:] * (pose.yaw, pose.pitch)
    cos = np.cos(pose.roll)
    sin = np.sin(pose.roll)
    return turned @ np.array([[cos, sin], [-sin, cos]]) * (unit * pose.scale) + centre


@cache
def _curve_weights(points: int, closed: bool, steps: int) -> Points:
    """Return M×K weights of a Catmull-Rom spline, which maps its points linearly to samples and passes through each."""
    t = np.arange(steps)[:, None] / steps
    basis = np.hstack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2]) / 2
    segments = points if closed else points - 1
    weights = np.zeros((segments * steps + (not closed), points))
    for segment in range(segments):
        rows = np.arange(segment * steps, (segment + 1) * steps)
        for k in range(4):
            point = segment + k - 1
            point = point % points if closed else min(max(point, 0), points - 1)
            weights[rows, point] += basis[:, k]
    if not closed:
        weights[-1, -1] = 1
    return weights


def curve(points_Kx2: Points, *, closed: bool = False, steps: int = 6) -> Points:
    """Return a smooth line (M×2) through K points, sampled at `steps` points per segment."""
    points = np.asarray(points_Kx2, float)
    return _curve_weights(len(points), closed, steps) @ points


def lens(points_Kx2: Points, upper: list[int], lower: list[int]) -> tuple[Points, Points]:
    """Return the two arcs, left to right, of a shape with pointed corners, such as an eye or a mouth."""
    return curve(points_Kx2[upper]), curve(points_Kx2[lower])
