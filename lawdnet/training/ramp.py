"""How much the sync loss counts: a ramp at the start, and a bound throughout.

The gradient of a sync network that cannot tell right from wrong yet, or that sees mouths it can make nothing of yet,
points anywhere; and a sync loss that outweighs all others produces whatever the sync network likes best. Both make the
sync loss of LawDNet 2024 oscillate.
"""

from __future__ import annotations

import math
from typing import Any

from lawdnet.training.alarms import CHECK_OFFSETS, Alarm

MEMORY = 10
"""Steps that the running means look back, and the fewest steps before the ramp trusts its means."""
TRUE_ADVICE = (
    "the sync network does not recognise true pairs. Train it longer (--set syncnet.epochs_constant=…), or "
    f"{CHECK_OFFSETS}"
)
MADE_ADVICE = (
    "the sync network recognises true pairs, but not generated ones. Train the frame stages longer, or the sync "
    "network (--set syncnet.epochs_constant=…)"
)


class SyncRamp:
    """Factor of the sync loss: 0 while it waits, then linearly to 1, and never back.

    It waits until the squared distance of the sync network's score from 1 (1 is chance for a cosine) is in the mean
    below a threshold for true pairs, so that the network can be trusted, and for generated ones, as in Wav2Lip, which
    waits for an evaluation loss of the generator below 0.75.

    Meanwhile it learns the mean score of true pairs, the target of generated ones from then on: a mouth that scores
    higher than true ones do is what the network likes, and not what people see.

    Args:
        steps: length of the ramp; 0: the factor is always 1, as in LawDNet 2024.
        below: the threshold.
        patience: steps of waiting after which there is one alarm; 0: never.
        alarm: told which mean is too high, and what to do.
    """

    def __init__(self, steps: int, below: float, patience: int = 0, alarm: Alarm = lambda text: None) -> None:
        self.steps, self.below = steps, below
        self.patience, self.alarm = patience, alarm
        self.taken = self.seen = 0
        self.true = self.made = 0.0
        self.score = 1.0

    @property
    def target(self) -> float:
        """The score that generated pairs shall have: 1 (LawDNet 2024) until the ramp has begun, and without one."""
        return self.score if self.steps and not self.is_waiting else 1.0

    @property
    def factor(self) -> float:
        """The factor, in [0, 1]."""
        return min(1.0, self.taken / self.steps) if self.steps else 1.0

    @property
    def is_waiting(self) -> bool:
        """Whether the ramp has not begun, and needs the losses of true and of generated pairs."""
        return self.steps > 0 and self.taken == 0

    def update(self, true: float, made: float, score: float) -> None:
        """Take the losses of a step on true and on generated pairs, over all ranks; ignored once the ramp has begun.

        Args:
            score: mean score of the true pairs.
        """
        if not self.is_waiting:
            self.taken += 1
            return
        self.seen += 1
        share = max(1 / self.seen, 1 / MEMORY)
        self.true += share * (true - self.true)
        self.made += share * (made - self.made)
        self.score += (score - self.score) / self.seen
        if self.seen >= MEMORY and max(self.true, self.made) < self.below:
            self.taken = 1
        elif self.patience and self.seen == max(self.patience, MEMORY):
            self.alarm(self._complaint())

    def _complaint(self) -> str:
        """Say why the ramp has not begun."""
        both = {"true": self.true, "generated": self.made}
        means = " and ".join(f"{value:.3f} on {name} pairs" for name, value in both.items() if not value < self.below)
        return (
            f"the sync loss still does not count after {self.seen} steps: its mean is {means}, and must be below "
            f"sync_below ({self.below:g}; chance is 1): {MADE_ADVICE if self.true < self.below else TRUE_ADVICE}. "
            "A new run may start it earlier with --set sync_below=…"
        )

    def state_dict(self) -> dict[str, Any]:
        """Counts and means."""
        counts = {"taken": self.taken, "seen": self.seen}
        return counts | {"true": self.true, "made": self.made, "score": self.score}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.taken, self.seen = int(state["taken"]), int(state["seen"])
        self.true, self.made = float(state["true"]), float(state["made"])
        self.score = float(state.get("score", 1.0))  # older checkpoints went on with 1


class SyncBound:
    """Factor of the sync loss that keeps it from outweighing the others, after EnCodec's loss balancer (Défossez et al.
    2022, arXiv 2210.13438).

    Both sides are measured by the norms of their gradients at the generated image. The factor follows from the running
    means before a step, so that it is the same for all batches and ranks of the step.

    Args:
        share: largest share of the sync loss in the sum of the two norms, in (0, 1]; 1: no bound.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.seen = 0
        self.sync = self.rest = 0.0

    def factor(self, weight: float) -> float:
        """The factor, in (0, 1]; 1 if the bound does not bind, there are no other losses, or nothing was measured yet.

        Args:
            weight: weight of the sync loss without the bound.
        """
        wanted, allowed = (1 - self.share) * weight * math.sqrt(self.sync), self.share * math.sqrt(self.rest)
        return allowed / wanted if wanted > allowed > 0 else 1.0

    def update(self, sync: float, rest: float) -> None:
        """Take the squared gradient norms of a step: of the sync loss without its weight, and of the others together.

        Values that are not finite (a gradient scaler trying a scale) are ignored.
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
