"""Conditions such as `face_px>=100 and abs(yaw)<30`: the language of dataset rules and of training gates."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

OPERATORS: dict[str, Callable[[float | str, float | str], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(
    r"""\s* (?P<abs>abs\s*\()? \s* (?P<name>\w+) \s* (?(abs)\)) \s* (?P<op>>=|<=|==|!=|>|<) \s*
    (?: '(?P<single>[^']*)' | "(?P<double>[^"]*)" | (?P<plain>[^\s<>=!'"]+) ) \s*""",
    re.VERBOSE,
)
_AND = re.compile(r"and\b")


@dataclass(frozen=True)
class Condition:
    """One comparison. `str` gives the text that parses to the same condition."""

    name: str
    operator: str
    """A key of `OPERATORS`."""
    value: float | str
    is_absolute: bool = False
    """Whether the absolute value is compared."""

    def holds(self, value: float) -> bool:
        """Whether `value` meets the condition; NaN meets only `!=`."""
        return OPERATORS[self.operator](abs(value) if self.is_absolute else value, self.value)

    def __str__(self) -> str:
        name = f"abs({self.name})" if self.is_absolute else self.name
        if isinstance(self.value, float):
            return f"{name}{self.operator}{self.value:.10g}"
        quote = '"' if "'" in self.value else "'" if re.search(r'[\s<>=!"]|^$', self.value) else ""
        return f"{name}{self.operator}{quote}{self.value}{quote}"


def parse_conditions(text: str, kind: str, example: str, texts: Collection[str] = ()) -> tuple[Condition, ...]:
    """Parse `NAME OP VALUE`, or several of these joined by `and`. NAME may be `abs(NAME)`, VALUE may be quoted.

    Args:
        kind: what `text` is called in errors, such as "rule".
        example: a valid text, for errors.
        texts: names whose values are text; all other values must be finite numbers.

    Raises:
        ValueError: `text` has another form, or a value or operator does not fit its name.
    """
    conditions: list[Condition] = []
    position = 0
    while match := _CONDITION.match(text, position):
        conditions.append(_condition(text, kind, match, texts))
        if match.end() == len(text):
            return tuple(conditions)
        joint = _AND.match(text, match.end())
        if not joint:
            break
        position = joint.end()
    raise ValueError(f"{kind} {text!r}: write NAME OP VALUE, for example {example!r}; OP is {' or '.join(OPERATORS)}")


def _condition(text: str, kind: str, match: re.Match[str], texts: Collection[str]) -> Condition:
    name, sign = match["name"], match["op"]
    value = next(match[group] for group in ("single", "double", "plain") if match[group] is not None)
    if name in texts:
        if sign not in ("==", "!=") or match["abs"]:
            raise ValueError(f"{kind} {text!r}: {name} is text; compare it with == or !=")
        return Condition(name, sign, value)
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{kind} {text!r}: {value!r} is not a number")
    return Condition(name, sign, number, bool(match["abs"]))
