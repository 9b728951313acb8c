"""When the sync loss may speak, and how loudly.

A sync network that cannot tell right from wrong, or a generator whose mouths mean nothing to it yet, gives gradients
that point anywhere; a large weight from the first step is what lets the loss of LawDNet 2024 oscillate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MEMORY = 10
"""Steps that the means look back, and that it takes to trust them."""


class SyncRamp:
    """Factor of the sync loss: 0 until it may, then linearly to 1, and never back.

    It may once the squared distance of the sync network's score from 1 (1 is chance for a cosine) is in the mean below
    a threshold for true pairs, so the network is to be trusted, and for generated ones, as in Wav2Lip, which waits for
    an evaluation loss of the generator below 0.75.

    Args:
        steps: from 0 to 1; 0: always 1, as LawDNet 2024.
        below: the threshold.
        agree: whether a flag is up on any rank; all ranks begin in the same step.
    """

    def __init__(self, steps: int, below: float, agree: Callable[[bool], bool] = lambda flag: flag) -> None:
        self.steps, self.below, self.agree = steps, below, agree
        self.taken = self.seen = 0
        self.true = self.made = 0.0

    @property
    def factor(self) -> float:
        """In [0, 1]."""
        return min(1.0, self.taken / self.steps) if self.steps else 1.0

    @property
    def is_waiting(self) -> bool:
        """Whether it needs the losses of true and of generated pairs."""
        return self.steps > 0 and self.taken == 0

    def see(self, true: float, made: float) -> None:
        """Takes the two losses of a step; they are ignored once it has begun."""
        if not self.is_waiting:
            self.taken += 1
            return
        self.seen += 1
        share = max(1 / self.seen, 1 / MEMORY)
        self.true += share * (true - self.true)
        self.made += share * (made - self.made)
        is_ready = self.seen >= MEMORY and max(self.true, self.made) < self.below
        if not self.agree(not is_ready):
            self.taken = 1

    def state_dict(self) -> dict[str, Any]:
        """Counts and means."""
        return {"taken": self.taken, "seen": self.seen, "true": self.true, "made": self.made}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.taken, self.seen = int(state["taken"]), int(state["seen"])
        self.true, self.made = float(state["true"]), float(state["made"])
