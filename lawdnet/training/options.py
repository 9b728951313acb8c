"""How a run is carried out: workers, checkpoints, validation, loggers. Nothing here changes what is learnt."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from lawdnet.training.gates import LANDMARK_METRICS, VALIDATION_METRICS, find_metric, parse_gate
from lawdnet.training.loggers import check_loggers
from lawdnet.training.virtual_ranks import Workers

DEFAULT_BEST = ("opening_correlation", "mouth_correlation", "sync_confidence", "accuracy")
"""Metrics that choose the best checkpoint unless `best` names one: the first that was measured counts."""


_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


def parse_duration(text: str) -> float:
    """Read seconds from `90`, `30s`, `5m` or `1h`.

    Raises:
        ValueError: the text is none of them.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not found:
        raise ValueError(f"save_every: {text!r} is no time; write 30s, 5m or 1h")
    return float(found[1]) * _SECONDS[found[2]]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of a run; values out of range raise ValueError."""

    workers: Workers = field(default_factory=lambda: Workers(1, 1))
    gpu: bool = False
    """Use one GPU for each worker."""
    loaders: int | None = None
    """Processes of each worker that draw its samples, a CPU each; 0: it draws them itself. None: as there is room."""
    save_every: float = 300.0
    """Seconds between two checkpoints, and so about the most that a crash costs; 0: none by time."""
    save_every_epochs: int = 1
    """The last epoch of a stage is always saved."""
    save_every_steps: int = 0
    """Optimiser steps between two checkpoints within an epoch; 0: none by number."""
    keep_last: int = 2
    """Newest checkpoints of a stage to keep, besides the best; at least two, or a damaged one has no predecessor."""
    best: str = ""
    """Metric whose best checkpoint is kept; see `lawdnet.training.gates.VALIDATION_METRICS`."""
    validate_every: int = 1
    """Epochs between two validations on held-out videos; 0: never. Otherwise the last epoch is always validated."""
    validate_most: int = 64
    """Largest number of held-out segments to measure, spread evenly over the videos."""
    gates: tuple[str, ...] = ()
    """Conditions on a stage's last validation that must hold before the next stage starts."""
    loggers: tuple[str, ...] = ("jsonl",)
    init: str = ""
    """An old file or another run, from whose generator the first generator stage starts."""

    def __post_init__(self) -> None:
        for name in ("save_every_epochs", "keep_last", "validate_most"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1")
        for name in ("save_every", "save_every_steps", "validate_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must be 0 (never) or positive")
        if self.loaders is not None and self.loaders < 0:
            raise ValueError("loaders: must be 0 (none) or positive")
        if self.best:
            find_metric(self.best)
        for gate in self.gates:
            parse_gate(gate)
        if self.gates and not self.validate_every:
            raise ValueError("gates need validation; leave validate_every above 0")
        check_loggers(self.loggers)

    @property
    def cpus(self) -> int:
        """CPUs that the workers need at least."""
        return self.workers.most * (1 + (self.loaders or 0))

    def best_by(self, kind: str) -> tuple[str, ...]:
        """The metrics that choose a stage's best checkpoint: the first of them that was measured counts."""
        wanted = (self.best,) if self.best and VALIDATION_METRICS[self.best].kind == kind else DEFAULT_BEST
        return tuple(name for name in wanted if VALIDATION_METRICS[name].kind == kind)

    @property
    def needs_landmarks(self) -> bool:
        """Whether a gate or the choice of the best checkpoint rests on landmarks of generated frames."""
        named = {condition.name for gate in self.gates for condition in parse_gate(gate).conditions}
        return bool((named | {self.best}) & LANDMARK_METRICS)
