"""How a run is carried out: where its figures go, when it is saved and judged. Nothing here changes what is learnt."""

from __future__ import annotations

from dataclasses import dataclass, field

from lawdnet.training.gates import VALIDATION_METRICS, find_metric, parse_gate
from lawdnet.training.loggers import check_loggers
from lawdnet.training.virtual_ranks import Workers

DEFAULT_BEST = ("mouth_correlation", "sync_confidence", "accuracy")
"""What the best checkpoint is chosen by where nothing is said: the first that was measured."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Raises ValueError for what cannot be meant."""

    workers: Workers = field(default_factory=lambda: Workers(1, 1))
    gpu: bool = False
    """One for each worker."""
    save_every_epochs: int = 1
    """The last epoch of a stage is always saved."""
    save_every_steps: int = 0
    """Optimiser steps between two checkpoints within an epoch, and so the most that a crash costs; 0: none."""
    keep_last: int = 2
    """Checkpoints of a stage that stay, beside the best one; fewer than two leave nothing for a damaged one."""
    best: str = ""
    """Measure whose best checkpoint stays; see `lawdnet.training.gates.VALIDATION_METRICS`."""
    validate_every: int = 1
    """Epochs between two validations on held-out videos; 0: none. The last epoch of a stage is always validated."""
    validate_most: int = 64
    """Held-out segments that are measured, at most, spread evenly over the videos."""
    gates: tuple[str, ...] = ()
    """What a stage's last validation must show before the next stage begins."""
    loggers: tuple[str, ...] = ("jsonl",)
    init: str = ""
    """An old file or another run, whose generator the first generator stage starts from."""

    def __post_init__(self) -> None:
        for name in ("save_every_epochs", "keep_last", "validate_most"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1")
        for name in ("save_every_steps", "validate_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must be 0 (never) or positive")
        if self.best:
            find_metric(self.best)
        for gate in self.gates:
            parse_gate(gate)
        if self.gates and not self.validate_every:
            raise ValueError("gates need validation; leave validate_every above 0")
        check_loggers(self.loggers)

    def best_by(self, kind: str) -> tuple[str, ...]:
        """The measures that a stage's best checkpoint is chosen by: the first of them that was measured."""
        wanted = (self.best,) if self.best and VALIDATION_METRICS[self.best].kind == kind else DEFAULT_BEST
        return tuple(name for name in wanted if VALIDATION_METRICS[name].kind == kind)
