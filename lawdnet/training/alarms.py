"""What a person should hear of while a run trains: numbers that are none, and a network that does not learn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Alarm = Callable[[str], None]
"""Takes a sentence for a person: what, where, what to do."""
AT_CHANCE = 0.02
"""A loss within this share of its chance value has learned nothing yet."""


class NonFiniteLoss(RuntimeError):
    """A loss or a gradient is NaN or infinite; no rank has taken the step that it belongs to."""


def check_finite(losses: Mapping[str, Tensor], agree: Callable[[bool], bool] = lambda flag: flag) -> None:
    """Stops every rank before anyone steps.

    Args:
        losses: scalars by name.
        agree: whether any rank has found one that is not finite.

    Raises:
        NonFiniteLoss: names the losses of this rank, or says that it was another one.
    """
    is_bad_L = (~torch.isfinite(torch.stack([loss.detach().float() for loss in losses.values()]))).tolist()
    if agree(any(is_bad_L)):
        bad = [name for name, is_bad in zip(losses, is_bad_L, strict=True) if is_bad]
        raise NonFiniteLoss(f"not finite: {', '.join(bad) if bad else 'a loss on another rank'}")


class Plateau:
    """Says once that a loss has stayed at its chance value.

    Args:
        steps: this many in a row, in the mean; 0: never.
        alarm: gets the sentence.
        advice: its end, the likely cause and what to do.
    """

    def __init__(self, steps: int, alarm: Alarm, advice: str) -> None:
        self.alarm, self.advice = alarm, advice
        self.ratios: deque[float] = deque(maxlen=steps)
        self.is_armed = steps > 0

    def see(self, loss: float, chance: float) -> None:
        """Takes the loss of a step and what guessing would give; no learning reaches below that."""
        if not self.is_armed:
            return
        self.ratios.append(loss / chance)
        if len(self.ratios) == self.ratios.maxlen and (ratio := sum(self.ratios) / len(self.ratios)) >= 1 - AT_CHANCE:
            self.is_armed = False
            self.alarm(
                f"the loss has been at chance for {len(self.ratios)} steps "
                f"({ratio * chance:.3f}, guessing gives {chance:.3f}): {self.advice}"
            )
