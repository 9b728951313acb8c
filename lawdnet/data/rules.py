"""Rules on a dataset's index: which measured segments are in the dataset, and how many each rule dropped.

Shape letter: R rows of an index.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lawdnet.conditions import Condition, parse_conditions
from lawdnet.data.schema import SCORE
from lawdnet.types import Bool

SCORES = {
    "face_px": "mean face size in the source, px",
    "scale_change": "largest over smallest face size",
    "face_share": "share of frames in which a face was found",
    "sharpness": "sharpness of the face",
    "yaw": "head turned to the side, degrees",
    "pitch": "head turned up or down, degrees",
    "roll": "head tilted, degrees",
    "mouth_motion": "how much the mouth opens and closes, in eye distances",
    "brightness": "mean brightness of the face, 0 … 255",
    "loudness": "loudness of the audio, dBFS",
    "speech_ratio": "share of the audio that is speech",
    "silence": "share of the audio that is silent",
    "sync_offset": "frames by which the audio is late",
    "sync_confidence": "confidence of the offset",
    "sync_distance": "distance of audio and face at the offset",
}
"""Score → its meaning. A build measures the sync_ scores only if it has a sync network."""
NUMBERS = ("num_frames", "start_frame", "track")
TEXTS = ("split", "video_id")
COMPARISONS: dict[str, Callable[..., pa.ChunkedArray]] = {
    ">=": pc.greater_equal,
    "<=": pc.less_equal,
    "==": pc.equal,
    "!=": pc.not_equal,
    ">": pc.greater,
    "<": pc.less,
}
"""Operator of a condition → its function on a column of the index."""


@dataclass(frozen=True)
class Rule:
    """A segment is kept if all conditions hold. `str` gives the text that parses to the same rule."""

    conditions: tuple[Condition, ...]

    def __str__(self) -> str:
        return " and ".join(map(str, self.conditions))


@dataclass(frozen=True)
class FunnelStep:
    """What one rule did to the segments that the rules before it had left."""

    rule: str
    """Text of the rule; empty for the first step, which counts all segments."""
    dropped: int
    left: int
    not_measured: int = 0
    """How many of the dropped segments have no value for this rule."""


def parse_rule(text: str, scores: Collection[str] = tuple(SCORES)) -> Rule:
    """Parse a rule such as "face_px>=100 and abs(yaw)<30", "split==val" or "video_id!='a b'".

    Args:
        scores: scores that may be used besides num_frames, start_frame, track, split and video_id.

    Raises:
        ValueError: `text` is not a list of conditions, a name is unknown (the message lists the valid ones), or a value
            does not fit its name.
    """
    known = [*scores, *NUMBERS, *TEXTS]
    conditions = parse_conditions(text, "rule", "abs(sync_offset)<=6 and split==train", TEXTS)
    for condition in conditions:
        if condition.name not in known:
            raise ValueError(f"rule {text!r}: unknown name {condition.name!r}; choose from {', '.join(known)}")
    return Rule(conditions)


def parse_rules(texts: Iterable[str], scores: Collection[str] = tuple(SCORES)) -> list[Rule]:
    """Parse several rules; see `parse_rule`."""
    return [parse_rule(text, scores) for text in texts]


def column_of(condition: Condition) -> str:
    """Return the column of the index that a condition compares."""
    return condition.name if condition.name in (*NUMBERS, *TEXTS) else SCORE + condition.name


def score_names(index: pa.Table) -> list[str]:
    """Return the scores in an index, without their prefix."""
    return [name.removeprefix(SCORE) for name in index.column_names if name.startswith(SCORE)]


def apply_rules(index: pa.Table, rules: Sequence[Rule]) -> tuple[pa.Table, list[FunnelStep]]:
    """Mark each row in column `dropped` with the first rule that it does not meet.

    A row does not meet a rule if a condition does not hold or its value was not measured (null or NaN). Rows that are
    already marked stay so and are not counted.

    Args:
        index: R rows in the columns of `lawdnet.data.manifest.index_schema`.

    Returns:
        The marked index, and the funnel: a first step with all rows that were not marked before, then one per rule.

    Raises:
        ValueError: a rule uses a score that the index does not have.
    """
    dropped_R = np.zeros(len(index), np.int32)
    left_R = _to_bool(pc.equal(index["dropped"], ""))
    steps = [FunnelStep("", 0, int(left_R.sum()))]
    for number, rule in enumerate(rules, 1):
        keep_R, measured_R = _meets(index, rule)
        out_R = left_R & ~keep_R
        dropped_R[out_R] = number
        left_R &= keep_R
        steps.append(FunnelStep(str(rule), int(out_R.sum()), int(left_R.sum()), int((out_R & ~measured_R).sum())))
    return mark(index, dropped_R, [str(rule) for rule in rules]), steps


def mark(index: pa.Table, dropped_R: np.ndarray, texts: Sequence[str]) -> pa.Table:
    """Return the index with `texts[k - 1]` in column `dropped` where dropped_R is k > 0; the other rows stay."""
    new = pa.array(["", *texts], pa.string()).take(pa.array(dropped_R))
    marks = pc.if_else(pa.array(dropped_R > 0), new, index["dropped"])
    return index.set_column(index.column_names.index("dropped"), "dropped", marks)


def _meets(index: pa.Table, rule: Rule) -> tuple[Bool, Bool]:
    """Return, for R rows, whether every condition holds and whether every value was measured."""
    keep_R = np.ones(len(index), np.bool_)
    measured_R = keep_R.copy()
    for condition in rule.conditions:
        name = column_of(condition)
        if name not in index.column_names:
            measured = ", ".join([*score_names(index), *NUMBERS, *TEXTS])
            raise ValueError(f"rule {str(rule)!r}: {condition.name} was not measured; choose from {measured}")
        column = index[name]
        values = pc.abs(column) if condition.is_absolute else column
        # scores are float32, so 0.7 must be rounded to float32 as well
        wanted = pa.scalar(condition.value, pa.float32() if pa.types.is_float32(column.type) else None)
        known_R = ~_to_bool(pc.is_null(column, nan_is_null=True))
        measured_R &= known_R
        keep_R &= known_R & _to_bool(COMPARISONS[condition.operator](values, wanted))
    return keep_R, measured_R


def _to_bool(column: pa.ChunkedArray) -> Bool:
    """Return R truth values; null becomes False."""
    return np.asarray(pc.fill_null(column, False).to_numpy(), np.bool_)
