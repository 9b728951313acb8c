"""What a validation measures, which direction is better, and the gates that a stage must pass.

A picture can be close to the truth without the mouth having anything to do with the sound: most of a mouth square is
skin, and a mouth that is always half open is never far off. So no gate may rest on such measures alone.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """One figure of a validation."""

    text: str
    is_higher_better: bool = True
    needs_sound: bool = True
    """Whether a generator that ignores the sound must do badly."""
    kind: str = "gan"
    """The kind of stage that has it."""
    needs: str = ""
    """What it cannot be measured without."""


_DRAWN = "drawn heads, whose mouth can be measured in the picture"
_NETWORK = "a sync network (--sync)"

MEASURES = {
    "psnr": Measure("dB over the mouth square", needs_sound=False),
    "ssim": Measure("structural similarity of the mouth square", needs_sound=False),
    "pixel": Measure("mean absolute error over the mouth square, 0 … 1", is_higher_better=False, needs_sound=False),
    "mouth_correlation": Measure("the mouth's opening over time against the truth's, -1 … 1", needs=_DRAWN),
    "silence": Measure(
        "the mouth's opening while nothing is said, half crop widths", is_higher_better=False, needs_sound=False,
        needs=f"mel features and {_DRAWN}",
    ),
    "sync_distance": Measure("of mouth and sound under the sync network", is_higher_better=False, needs=_NETWORK),
    "sync_confidence": Measure("how sure the sync network is of the offset", needs=_NETWORK),
    "sync_in_time": Measure("share of segments within a frame of offset 0", needs=_NETWORK),
    "accuracy": Measure("share of right choices between the own and another sound", kind="syncnet"),
    "offset_within_one": Measure("share of segments found within a frame of offset 0", kind="syncnet"),
}  # fmt: skip
"""Every figure that may be gated or chosen by; `truth_…` and `baseline_…` of the same names are for comparison."""

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"\s*(\w+)\s*(>=|<=|>|<)\s*([^\s<>=]+)\s*")


@dataclass(frozen=True)
class Condition:
    """`name operator value`."""

    name: str
    operator: str
    value: float

    def __str__(self) -> str:
        return f"{self.name}{self.operator}{self.value:g}"


@dataclass(frozen=True)
class Gate:
    """All conditions must hold; `str` gives the text that parses to the same gate."""

    conditions: tuple[Condition, ...]

    def __str__(self) -> str:
        return " and ".join(map(str, self.conditions))

    @property
    def kind(self) -> str:
        """The kind of stage that it guards."""
        return MEASURES[self.conditions[0].name].kind


def parse_gate(text: str) -> Gate:
    """`NAME OP VALUE`, several joined by `and`: "mouth_correlation>=0.8", "sync_in_time>0.7 and psnr>=20".

    Raises:
        ValueError: not of this form, an unknown name (the message lists the valid ones), the wrong direction, measures
            of different kinds of stages, or nothing that a generator could not pass without listening.
    """
    gate = Gate(tuple(_condition(part, text) for part in re.split(r"\band\b", text)))
    names = [condition.name for condition in gate.conditions]
    if len({MEASURES[name].kind for name in names}) > 1:
        raise ValueError(f"gate {text!r}: {' and '.join(names)} belong to different kinds of stages; write two gates")
    if not any(MEASURES[name].needs_sound for name in names):
        listeners = ", ".join(n for n, m in MEASURES.items() if m.needs_sound and m.kind == gate.kind)
        raise ValueError(f"gate {text!r}: a generator that ignores the sound can pass this; "
                         f"add one of {listeners} with `and`")  # fmt: skip
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
        raise ValueError(f"gate {text!r}: {value!r} is no number")
    if MEASURES[name].is_higher_better != (sign in (">=", ">")):
        better = ">=" if MEASURES[name].is_higher_better else "<="
        raise ValueError(f"gate {text!r}: only the worse would pass; write {name}{better}{value}")
    return Condition(name, sign, number)


def measure(name: str) -> Measure:
    """What a name stands for.

    Raises:
        ValueError: unknown; the message lists the valid ones.
    """
    if name not in MEASURES:
        raise ValueError(f"unknown measure {name!r}: choose from {', '.join(MEASURES)}")
    return MEASURES[name]


def check_gates(gates: Sequence[Gate], metrics: Mapping[str, float], kind: str = "gan") -> list[str]:
    """A sentence for every condition that does not hold; empty where all gates are passed.

    Args:
        gates: those of another kind of stage are left out.
        metrics: of `lawdnet.evaluation.validation.metrics`; what is missing there has not been measured, and fails.
        kind: of the stage, `gan` or `syncnet`.
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
    """Whether `new` beats `old` in the measure's own direction; a NaN never does, and anything beats None or NaN.

    Raises:
        ValueError: unknown measure.
    """
    direction = 1 if measure(name).is_higher_better else -1
    if math.isnan(new):
        return False
    return old is None or math.isnan(old) or direction * (new - old) > 0
