"""The metrics of a validation, which direction is better, and the gates that a stage must pass.

An image can be close to the truth while the mouth ignores the audio: most of a mouth square is skin, and a mouth that
is always half open is never far off. So no gate may rest on such metrics alone.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """One metric of a validation."""

    text: str
    is_higher_better: bool = True
    needs_audio: bool = True
    """Whether a generator that ignores the audio must do badly."""
    kind: str = "gan"
    """Kind of the stages that have it."""
    needs: str = ""
    """What is needed to measure it."""


_DRAWN = "drawn heads, whose mouth can be measured in the image"
_NETWORK = "a sync network (--sync)"

MEASURES = {
    "psnr": Measure("dB over the mouth square", needs_audio=False),
    "ssim": Measure("structural similarity of the mouth square", needs_audio=False),
    "pixel": Measure("mean absolute error over the mouth square, 0 … 1", is_higher_better=False, needs_audio=False),
    "mouth_correlation": Measure("correlation of the mouth's opening over time with the truth's, -1 … 1", needs=_DRAWN),
    "silence": Measure(
        "opening of the mouth while nothing is said, half crop widths",
        is_higher_better=False,
        needs_audio=False,
        needs=f"mel features and {_DRAWN}",
    ),
    "sync_distance": Measure("distance of mouth and audio by the sync network", is_higher_better=False, needs=_NETWORK),
    "sync_confidence": Measure("confidence of the sync network in the offset", needs=_NETWORK),
    "sync_in_time": Measure("share of segments within a frame of offset 0", needs=_NETWORK),
    "accuracy": Measure("share of right choices between the right audio and another", kind="syncnet"),
    "offset_within_one": Measure("share of segments found within a frame of offset 0", kind="syncnet"),
}
"""All metrics for gates and for the best checkpoint; `truth_…` and `baseline_…` of these names are for comparison."""

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"\s*(\w+)\s*(>=|<=|>|<)\s*([^\s<>=]+)\s*")


@dataclass(frozen=True)
class Condition:
    """A condition `name operator value` on a metric."""

    name: str
    operator: str
    value: float

    def __str__(self) -> str:
        return f"{self.name}{self.operator}{self.value:g}"


@dataclass(frozen=True)
class Gate:
    """Conditions that must all hold; `str` gives text that parses to the same gate."""

    conditions: tuple[Condition, ...]

    def __str__(self) -> str:
        return " and ".join(map(str, self.conditions))

    @property
    def kind(self) -> str:
        """Kind of the stages that must pass it."""
        return MEASURES[self.conditions[0].name].kind


def parse_gate(text: str) -> Gate:
    """Parse `NAME OP VALUE`, or several joined by `and`: "mouth_correlation>=0.8", "sync_in_time>0.7 and psnr>=20".

    Raises:
        ValueError: the form is wrong, a name is unknown (the message lists the valid ones), a direction is wrong, the
            metrics belong to different kinds of stages, or a generator that ignores the audio could pass.
    """
    gate = Gate(tuple(_condition(part, text) for part in re.split(r"\band\b", text)))
    names = [condition.name for condition in gate.conditions]
    if len({MEASURES[name].kind for name in names}) > 1:
        raise ValueError(f"gate {text!r}: {' and '.join(names)} belong to different kinds of stages; write two gates")
    if not any(MEASURES[name].needs_audio for name in names):
        others = ", ".join(n for n, m in MEASURES.items() if m.needs_audio and m.kind == gate.kind)
        raise ValueError(
            f"gate {text!r}: a generator that ignores the audio can pass this; add one of {others} with `and`"
        )
    return gate


def _condition(part: str, text: str) -> Condition:
    match = _CONDITION.fullmatch(part)
    if not match:
        raise ValueError(f"gate {text!r}: write NAME>=VALUE or NAME<=VALUE, several joined by `and`")
    name, sign, value = match.groups()
    measure(name)
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"gate {text!r}: {value!r} is not a number")
    if MEASURES[name].is_higher_better != (sign in (">=", ">")):
        better = ">=" if MEASURES[name].is_higher_better else "<="
        raise ValueError(f"gate {text!r}: only bad values would pass; write {name}{better}{value}")
    return Condition(name, sign, number)


def measure(name: str) -> Measure:
    """The metric of that name.

    Raises:
        ValueError: the name is unknown; the message lists the valid ones.
    """
    if name not in MEASURES:
        raise ValueError(f"unknown metric {name!r}: choose from {', '.join(MEASURES)}")
    return MEASURES[name]


def check_gates(gates: Sequence[Gate], metrics: Mapping[str, float], kind: str = "gan") -> list[str]:
    """A sentence for every condition that does not hold; empty if all gates are passed.

    Args:
        gates: gates for another kind of stage are ignored.
        metrics: from `lawdnet.evaluation.validation.metrics`; a metric that was not measured fails.
        kind: kind of the stage, `gan` or `syncnet`.
    """
    failed = []
    for condition in (c for gate in gates if gate.kind == kind for c in gate.conditions):
        value = metrics.get(condition.name, math.nan)
        if math.isnan(value):
            needs = MEASURES[condition.name].needs
            failed.append(f"{condition}: it was not measured" + (f", which needs {needs}" if needs else ""))
        elif not _OPERATORS[condition.operator](value, condition.value):
            failed.append(f"{condition}: it is {value:.4g}")
    return failed


def is_better(name: str, new: float, old: float | None) -> bool:
    """Whether `new` is better than `old`; NaN never is, and any number is better than None or NaN.

    Raises:
        ValueError: the metric is unknown.
    """
    direction = 1 if measure(name).is_higher_better else -1
    if math.isnan(new):
        return False
    return old is None or math.isnan(old) or direction * (new - old) > 0
