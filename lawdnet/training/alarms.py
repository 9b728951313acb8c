"""What a person should be told while a run trains: losses that are not finite, and a network that does not learn."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from math import isfinite

Alarm = Callable[[str], None]
"""Takes a sentence for a person: what happened, where, and what to do."""
CHECK_OFFSETS = (
    "look at the histogram of offsets of `lawdnet inspect DATASET`, and keep what is in sync with `lawdnet select`"
)
AT_CHANCE = 0.02
"""A network whose loss is within this share of its chance value has learnt nothing yet."""


class WarningAlarms(logging.Handler):
    """Makes alarms of warnings: what a worker logs stays on its node."""

    def __init__(self, alarm: Alarm) -> None:
        super().__init__(logging.WARNING)
        self.alarm = alarm

    def emit(self, record: logging.LogRecord) -> None:
        """Tell a warning as an alarm."""
        self.alarm(record.getMessage())


class NonFiniteLoss(RuntimeError):
    """A loss or gradient is NaN or infinite; no rank has taken that step."""


def check_finite(values: Mapping[str, float], *, is_elsewhere: bool = False) -> None:
    """Raise if a loss or gradient is not finite.

    Args:
        values: losses and lengths of gradients, by name.
        is_elsewhere: whether one of another rank is not finite.

    Raises:
        NonFiniteLoss: names those of this rank, or says that it was another rank.
    """
    bad = [name for name, value in values.items() if not isfinite(value)]
    if bad or is_elsewhere:
        raise NonFiniteLoss(f"not finite: {', '.join(bad) if bad else 'a loss on another rank'}")


class Plateau:
    """Raises one alarm if a loss stays at its chance value.

    Args:
        steps: number of steps whose mean is watched; 0: never.
        alarm: called with the message.
        advice: end of the message: the likely cause and what to do.
    """

    def __init__(self, steps: int, alarm: Alarm, advice: str) -> None:
        self.alarm, self.advice = alarm, advice
        self.ratios: deque[float] = deque(maxlen=steps)
        self.is_armed = steps > 0

    def update(self, loss: float, chance: float) -> None:
        """Take the loss of a step, and the loss of guessing: 0 where there is nothing to choose from, as in silence."""
        if not self.is_armed:
            return
        self.ratios.append(loss / chance if chance else 1.0)
        if len(self.ratios) == self.ratios.maxlen and (ratio := sum(self.ratios) / len(self.ratios)) >= 1 - AT_CHANCE:
            self.is_armed = False
            self.alarm(
                f"the loss has been at chance for {len(self.ratios)} steps "
                f"({ratio * chance:.3f}, guessing gives {chance:.3f}): {self.advice}"
            )
