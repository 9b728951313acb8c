"""Pairwise choices: does a mouth fit its own audio better than other audio?

A judge that picks at random is right in half of the cases. The other audio comes from the same segment, at least
`MIN_SHIFT` frames away (`shifted`), or from another person (`foreign`). A judge that recognises voices and faces is
good at the second and no better than chance at the first.

Shape letters: T frames of the mouth, A frames of audio, K choices.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lawdnet.data.sampling import MIN_SHIFT
from lawdnet.types import Float32

SPANS = (9, 25, 50)
"""Lengths in frames over which a choice is made."""
SAME = 1e-5
"""Scores that differ by less are taken for equal and are no choice, as in silence."""

Score = Callable[[int, int, int], float]
"""(first position of the mouth, first position of the audio, number of positions) → how well they fit."""


def choice_sums(
    prefix: str,
    score: Score,
    other: Score | None,
    *,
    mouths: int,
    audio: int,
    start: int,
    others: int = 0,
    lost: int = 0,
    seed: tuple[int, ...],
) -> dict[str, float]:
    """Return sums of choices over every span that fits: `{prefix}shifted_25_right`, `…_choices`, and `foreign`.

    Args:
        prefix: of the names.
        score: of a mouth and audio of its own segment.
        other: of a mouth and foreign audio; None if there is none.
        mouths: number of positions of the mouth; its position p belongs to position start + p of the audio.
        audio: number of positions of the segment's audio.
        start: see `mouths`.
        others: number of positions of the foreign audio.
        lost: by how much a span of frames has fewer positions than frames.
        seed: of the choice of other audio.
    """
    sums: dict[str, float] = {}
    for span in SPANS:
        rng = np.random.default_rng([*seed, span])
        length = span - lost
        for first in range(mouths - length + 1):
            begins = np.arange(audio - length + 1)
            begins = begins[np.abs(begins - start - first) >= MIN_SHIFT]
            own = score(first, start + first, length)
            if len(begins):
                _add(sums, f"{prefix}shifted_{span}", own, score(first, int(rng.choice(begins)), length))
            if other and others >= length:
                begin = int(rng.integers(others - length + 1))
                _add(sums, f"{prefix}foreign_{span}", own, other(first, begin, length))
    return sums


def _add(sums: dict[str, float], name: str, own: float, other: float) -> None:
    """Count a choice; scores that are not finite (a mouth that was not found) make a wrong one."""
    if abs(own - other) <= SAME:
        return
    sums[f"{name}_choices"] = sums.get(f"{name}_choices", 0) + 1
    sums[f"{name}_right"] = sums.get(f"{name}_right", 0) + float(own > other)


def seed_of(segment_id: str, seed: int) -> tuple[int, int, int]:
    """Return the seed of a segment's choices."""
    return seed, zlib.crc32(segment_id.encode()), 1


def accuracies(
    sums: Mapping[str, float], prefix: str, kind: str, name: str, spans: Sequence[int] = SPANS
) -> dict[str, float]:
    """Return the shares of right choices, `{name}_25` and so on, for the spans that were measured.

    Args:
        sums: merged sums of `choice_sums`.
        prefix: as given there.
        kind: of the other audio, `shifted` or `foreign`.
        name: of the metric, without the span.
        spans: in frames.
    """
    return {
        f"{name}_{span}": sums[f"{prefix}{kind}_{span}_right"] / choices
        for span in spans
        if (choices := sums.get(f"{prefix}{kind}_{span}_choices"))
    }


def level_score(gap_T: Float32, level_A: Float32) -> Score:
    """Return how well the lip gap follows the mean mel level: Pearson's correlation, 0 if one is constant.

    It needs no network, so it is the floor that every sync network must beat.
    """
    gap = np.asarray(gap_T, np.float64)
    level = np.asarray(level_A, np.float64)

    def score(mouth: int, audio: int, length: int) -> float:
        a, b = gap[mouth : mouth + length], level[audio : audio + length]
        known = np.isfinite(a)
        if known.sum() < 2:
            return float("nan")
        a, b = a[known] - a[known].mean(), b[known] - b[known].mean()
        size = float(np.linalg.norm(a) * np.linalg.norm(b))
        return float(a @ b) / size if size > 0 else 0.0

    return score
