"""The running mean of a network's weights, which generates better images than the last weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class Ema:
    """Exponential moving average of a network's parameters.

    Update n (from 0) keeps a share of min(decay, (1 + n) / (10 + n)), so that the poor first weights are soon forgotten
    (the warm-up of TensorFlow's `ExponentialMovingAverage`).

    Args:
        network: is copied, so pass it before it is compiled or wrapped.
        decay: share of the mean that an update keeps after the warm-up, in [0, 1).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the mean towards the network's present weights."""
        kept = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - kept)
        self.updates += 1

    def restart(self, network: nn.Module) -> None:
        """Restart the mean from these weights."""
        self.network.load_state_dict(network.state_dict())
        self.updates = 0

    def state_dict(self) -> dict[str, Any]:
        """`network` and `updates`."""
        return {"network": self.network.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.network.load_state_dict(state["network"])
        self.updates = int(state["updates"])
