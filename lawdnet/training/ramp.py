"""When the sync loss may speak, and how loudly.

A sync network that cannot tell right from wrong, or a generator whose mouths mean nothing to it yet, gives gradients
that point anywhere; and a sync loss that outvotes all others draws whatever the sync network likes best. Either lets
the loss of LawDNet 2024 oscillate.
"""

from __future__ import annotations

import math
from typing import Any

MEMORY = 10
"""Steps that the means look back, and that it takes to trust those of the ramp."""


class SyncRamp:
    """Factor of the sync loss: 0 until it may, then linearly to 1, and never back.

    It may once the squared distance of the sync network's score from 1 (1 is chance for a cosine) is in the mean below
    a threshold for true pairs, so the network is to be trusted, and for generated ones, as in Wav2Lip, which waits for
    an evaluation loss of the generator below 0.75.

    Args:
        steps: from 0 to 1; 0: always 1, as LawDNet 2024.
        below: the threshold.
    """

    def __init__(self, steps: int, below: float) -> None:
        self.steps, self.below = steps, below
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
        """Takes the two losses of a step, over all ranks; they are ignored once it has begun."""
        if not self.is_waiting:
            self.taken += 1
            return
        self.seen += 1
        share = max(1 / self.seen, 1 / MEMORY)
        self.true += share * (true - self.true)
        self.made += share * (made - self.made)
        if self.seen >= MEMORY and max(self.true, self.made) < self.below:
            self.taken = 1

    def state_dict(self) -> dict[str, Any]:
        """Counts and means."""
        return {"taken": self.taken, "seen": self.seen, "true": self.true, "made": self.made}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.taken, self.seen = int(state["taken"]), int(state["seen"])
        self.true, self.made = float(state["true"]), float(state["made"])


class SyncBound:
    """Factor of the sync loss that keeps it from outvoting the others, after EnCodec's loss balancer (Défossez et al.
    2022, arXiv 2210.13438).

    Both sides are measured where they meet, by the norms of their gradients at the drawn picture. The factor follows
    from the running means before a step, so that it is one for all batches and ranks of the step.

    Args:
        share: of the two norms' sum, the most that the sync loss may have, in (0, 1]; 1: no bound.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.seen = 0
        self.sync = self.rest = 0.0

    def factor(self, weight: float) -> float:
        """In (0, 1]; 1 where the bound does not bind, where there are no others, and before anything has been seen.

        Args:
            weight: of the sync loss otherwise.
        """
        wanted, allowed = (1 - self.share) * weight * math.sqrt(self.sync), self.share * math.sqrt(self.rest)
        return allowed / wanted if wanted > allowed > 0 else 1.0

    def see(self, sync: float, rest: float) -> None:
        """Takes the squared norms of a step: of the sync loss's pull without its weight, and of the others' together.

        What is not finite (a gradient scaler trying a scale) is passed over.
        """
        if not math.isfinite(sync + rest):
            return
        self.seen += 1
        step = max(1 / self.seen, 1 / MEMORY)
        self.sync += step * (sync - self.sync)
        self.rest += step * (rest - self.rest)

    def state_dict(self) -> dict[str, Any]:
        """Count and means."""
        return {"seen": self.seen, "sync": self.sync, "rest": self.rest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.seen, self.sync, self.rest = int(state["seen"]), float(state["sync"]), float(state["rest"])
