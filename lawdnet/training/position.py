"""How far the training of a stage has come."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Position:
    """The next optimiser step to take; positions compare in the order of training."""

    epoch: int = 0
    """Number of complete epochs."""
    step: int = 0
    """Number of optimiser steps taken in the epoch that follows."""

    def __str__(self) -> str:
        return f"epoch {self.epoch}, step {self.step}"


START = Position()
