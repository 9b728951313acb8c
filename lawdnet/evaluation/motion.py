"""How the mouth moves, from landmarks found by one network in true and in generated frames, in sums that add up.

A frame in which no face was found counts: for `landmarks_found`, and as a mouth that does not follow the truth. Its
distances are not known, so look at `landmarks_found` beside them.

Shape letters: T frames, P points of the mouth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lawdnet.evaluation.choices import accuracies, choice_sums, level_score
from lawdnet.face.lips import lip_gap
from lawdnet.face.points import MOUTH, OUTER_EYE_CORNERS
from lawdnet.types import Bool, Float32, Landmarks

REFERENCE_WIDTH = 256
"""Width in px of the crop in whose px distances are given, whatever the size of the frames."""
ROWS = ("", "truth_", "baseline_", "cross_")
SHARE_FOUND = 0.5
"""Least share of the true frames in which the network must find the face for the landmarks to be measured."""


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What is heard while a mouth moves."""

    quiet_T: Bool
    """Whether nobody speaks."""
    level_A: Float32
    """Mean mel level of the whole segment; empty if there are no mel features."""
    start: int
    """Frame of the segment at which the window begins."""
    seed: tuple[int, ...]
    """Seed of the choices between own and other audio."""


def motion_sums(rows: Mapping[str, Landmarks], exact_T68x2: Float32, heard: Heard) -> dict[str, float]:
    """Return sums for `motion_metrics`, of consecutive frames of one face.

    Args:
        rows: "" (generated), "truth_" and perhaps "baseline_" → landmarks of equal length, in px of a crop
            `REFERENCE_WIDTH` wide.
        exact_T68x2: the stored landmarks of the true frames, which tell how good the network is.
        heard: what is heard meanwhile.
    """
    truth = rows["truth_"]
    true_T = _gap(truth)
    sums: dict[str, float] = {}
    for row, landmarks in rows.items():
        found = row_sums(landmarks, heard)
        found |= _opening_sums(_gap(landmarks), lip_gap(exact_T68x2) if row == "truth_" else true_T)
        if row != "truth_":
            found |= _distance_sums(truth, landmarks)
        sums |= {row + name: value for name, value in found.items()}
    return sums


def row_sums(landmarks: Landmarks, heard: Heard) -> dict[str, float]:
    """Return the sums that need no truth.

    Args:
        landmarks: in px of a crop `REFERENCE_WIDTH` wide.
        heard: what is heard meanwhile.
    """
    gap_T = _gap(landmarks)
    sums: dict[str, float] = {"landmark_frames": len(gap_T), "landmarks_found": int(landmarks.valid_T.sum())}
    sums |= _silence_sums(gap_T, heard.quiet_T) | _jitter_sums(landmarks)
    if len(heard.level_A):
        sums |= choice_sums(
            "level_",
            level_score(gap_T, heard.level_A),
            None,
            mouths=len(gap_T),
            audio=len(heard.level_A),
            start=heard.start,
            seed=heard.seed,
        )
    return sums


def _gap(landmarks: Landmarks) -> Float32:
    gap_T = lip_gap(landmarks.points_T68x2)
    gap_T[~landmarks.valid_T] = np.nan
    return gap_T


def _opening_sums(gap_T: Float32, against_T: Float32) -> dict[str, float]:
    """Return squares and products about the means; a mouth that was not found is at its mean."""
    first_T, second_T = (_centred(values_T) for values_T in (gap_T, against_T))
    return {
        "opening_xx": float(first_T @ first_T),
        "opening_xy": float(first_T @ second_T),
        "opening_yy": float(second_T @ second_T),
    }


def _centred(values_T: Float32) -> np.ndarray:
    known_T = np.isfinite(values_T)
    mean = values_T[known_T].mean(dtype=np.float64) if known_T.any() else 0.0
    return np.where(known_T, values_T - mean, 0.0)


def _silence_sums(gap_T: Float32, quiet_T: Bool) -> dict[str, float]:
    heard_T = quiet_T & np.isfinite(gap_T)
    return {"silence_opening": float(gap_T[heard_T].sum()), "silence_frames": int(heard_T.sum())}


def _jitter_sums(landmarks: Landmarks) -> dict[str, float]:
    mouth_TP2 = np.asarray(landmarks.points_T68x2[:, MOUTH], np.float64)
    bend_TP2 = np.diff(mouth_TP2, 2, axis=0)
    square_T = (bend_TP2**2).sum(2).mean(1)
    known_T = np.isfinite(square_T)
    return {"landmark_bend": float(square_T[known_T].sum()), "bend_frames": int(known_T.sum())}


def _distance_sums(truth: Landmarks, shown: Landmarks) -> dict[str, float]:
    mouths = [np.asarray(landmarks.points_T68x2[:, MOUTH], np.float64) for landmarks in (truth, shown)]
    distance_T = np.linalg.norm(mouths[0] - mouths[1], axis=-1).mean(1)
    left_T2, right_T2 = (truth.points_T68x2[:, point] for point in OUTER_EYE_CORNERS)
    eyes_T = np.linalg.norm(np.asarray(left_T2 - right_T2, np.float64), axis=-1)
    known_T = np.isfinite(distance_T) & (eyes_T > 0)
    return {
        "lmd": float(distance_T[known_T].sum()),
        "lmd_eye": float((distance_T[known_T] / eyes_T[known_T]).sum()),
        "lmd_frames": int(known_T.sum()),
    }


def motion_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics behind merged sums of `motion_sums`; none if the network finds too few of the true faces.

    Their names and meanings are in `lawdnet.training.gates.VALIDATION_METRICS`.
    """
    frames = sums.get("truth_landmark_frames", 0)
    if not frames or sums["truth_landmarks_found"] < SHARE_FOUND * frames:
        return {}
    found: dict[str, float] = {}
    for row in ROWS:
        if f"{row}landmarks_found" in sums:
            found |= {row + name: value for name, value in _row_metrics(sums, row).items()}
    return found


def _row_metrics(sums: Mapping[str, float], row: str) -> dict[str, float]:
    found = {"landmarks_found": sums[f"{row}landmarks_found"] / sums[f"{row}landmark_frames"]}
    if f"{row}opening_xx" in sums:
        xx, xy, yy = (sums[f"{row}opening_{part}"] for part in ("xx", "xy", "yy"))
        found["opening_correlation"] = xy / (xx * yy) ** 0.5 if xx > 0 and yy > 0 else 0.0
        if row != "truth_" and yy > 0:
            found["articulation"] = (xx / yy) ** 0.5
    if count := sums.get(f"{row}lmd_frames"):
        found |= {name: sums[row + name] / count for name in ("lmd", "lmd_eye")}
    if count := sums[f"{row}silence_frames"]:
        found["silence_opening"] = sums[f"{row}silence_opening"] / count
    if count := sums[f"{row}bend_frames"]:
        found["landmark_jitter"] = (sums[f"{row}landmark_bend"] / count) ** 0.5
    return found | accuracies(sums, f"{row}level_", "shifted", "opening_level")
