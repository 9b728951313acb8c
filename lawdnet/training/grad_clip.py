"""Clipping of gradients that are much longer than usual."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

MEMORY = 100
"""Steps that the running mean looks back."""


class GradClipper:
    """Clips a network's gradient to a multiple of the running mean of its norm.

    A fixed limit would depend on the losses' weights and on the network's size. A limit that always binds makes all
    gradients equally long, so that Adam no longer takes smaller steps where they vary: the sync loss then oscillates
    far more than without clipping.

    Args:
        times: the multiple; 0: no clipping.
    """

    def __init__(self, times: float) -> None:
        self.times = times
        self.seen: dict[str, int] = {}
        self.means: dict[str, float] = {}

    def __call__(self, name: str, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Clip in place; returns the norm before clipping. The first gradient of a name is not clipped.

        The host does not wait for the device: whoever reads the norm gives it to `update`.
        """
        found = list(parameters)
        norm = nn.utils.get_total_norm([p.grad for p in found if p.grad is not None])
        if self.times and name in self.means:
            nn.utils.clip_grads_with_norm_(found, self.times * self.means[name], norm)
        return norm

    def update(self, name: str, length: float) -> None:
        """Count the norm of a gradient before clipping in the mean; one that is not finite is ignored."""
        if not self.times or not math.isfinite(length):
            return
        mean = self.means.get(name, 0.0)
        length = min(length, self.times * mean) if name in self.means else length
        self.seen[name] = self.seen.get(name, 0) + 1
        self.means[name] = mean + max(1 / self.seen[name], 1 / MEMORY) * (length - mean)

    def state_dict(self) -> dict[str, Any]:
        """Counts and means by name."""
        return {"seen": dict(self.seen), "means": dict(self.means)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.seen, self.means = dict(state["seen"]), dict(state["means"])
