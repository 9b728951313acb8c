"""Reading the files of a run: its stages, and whether they are finished, at work, interrupted or damaged."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from lawdnet.models.saved import RUN, read_meta, stage_checkpoints
from lawdnet.storage import Location, read_json
from lawdnet.training.loggers import METRICS, SAMPLES, parse_jsonl

SHARE = "share_"
"""Prefix of the columns with a loss's share of the gradient of the generated images."""
STOPPED = "stopped.txt"
"""File that says why the workers stopped together."""
QUIET_SECONDS = 120.0
QUIET_FACTOR = 5
"""A stage is at work if its last row is no older than this, or than this many of its longest pauses."""


LogRow = Mapping[str, Any]
"""A row of metrics.jsonl: `kind`, `time`, often `epoch` and `step`, and whatever was measured."""


@dataclass(frozen=True, kw_only=True)
class StageLog:
    """One stage of a run."""

    name: str
    row: Mapping[str, Any]
    """The stage's row of the configuration; empty if that is lost."""
    rows: Sequence[LogRow] = ()
    """Rows of metrics.jsonl, as they were written."""
    damaged: int = 0
    """Number of complete lines of metrics.jsonl that cannot be read."""
    checkpoint: str | None = None
    """Name of the newest complete checkpoint."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    stopped: str = ""
    sheets: Mapping[int, Location] = field(default_factory=dict)
    """Number of complete epochs → sheet of samples."""
    now: float = field(default_factory=time.time)

    def of_kind(self, kind: str) -> list[LogRow]:
        """Return the rows of a kind by epoch and step; of a step that was repeated after a restart, the last row."""
        rows = [row for row in self.rows if row.get("kind") == kind and isinstance(row.get("epoch"), int | float)]
        if kind == "step":
            rows = [row for row in rows if isinstance(row.get("step"), int | float)]
        unique = {(row["epoch"], row.get("step", 0)): row for row in rows}
        return [unique[position] for position in sorted(unique)]

    @cached_property
    def epochs(self) -> int:
        """Number of epochs of the stage; 0 if unknown."""
        asked = self.row.get("epochs_constant", 0) + self.row.get("epochs_decay", 0)
        return int(asked or self.meta.get("epochs", 0))

    @cached_property
    def epochs_done(self) -> int:
        """Number of complete epochs in the newest checkpoint, or, without one, in the log."""
        if self.checkpoint:
            return int(self.meta["epoch"])
        return int(max((row["epoch"] for row in self.of_kind("epoch")), default=0))

    @cached_property
    def first_time(self) -> float:
        """Of the first row, in s since 1970; 0 without rows."""
        return min(self._times, default=0.0)

    @cached_property
    def last_time(self) -> float:
        """Time of the last row in s since 1970; 0 without rows."""
        return max(self._times, default=0.0)

    @cached_property
    def _times(self) -> list[float]:
        return [float(row["time"]) for row in self.rows if isinstance(row.get("time"), int | float)]

    @cached_property
    def state(self) -> str:
        """finished, at work, interrupted, stopped (by itself) or not begun."""
        if self.epochs and self.epochs_done >= self.epochs:
            return "finished"
        if self.stopped:
            return "stopped"
        if not self.rows and not self.checkpoint:
            return "not begun"
        pauses = np.diff(self._times).max(initial=0)
        return "at work" if self.now - self.last_time < max(QUIET_SECONDS, QUIET_FACTOR * pauses) else "interrupted"

    @cached_property
    def wall_seconds(self) -> float:
        """Time between rows, without the time from an end to the next start."""
        return sum(seconds for seconds, _ in self._work)

    @cached_property
    def device_seconds(self) -> float:
        """`wall_seconds` summed over the workers."""
        return sum(seconds * workers for seconds, workers in self._work)

    @cached_property
    def _work(self) -> list[tuple[float, int]]:
        """(seconds, workers) between neighbouring rows; old logs have no starts, so they lack their first rows."""
        found: list[tuple[float, int]] = []
        before: float | None = None
        workers = 1
        for row in self.rows:
            at = row.get("time")
            if not isinstance(at, int | float):
                continue
            if row.get("kind") == "start":
                workers = int(row.get("workers", 1))
            elif before is not None:
                found.append((max(0.0, at - before), workers))
            before = at
        return found

    @cached_property
    def is_gpu(self) -> bool:
        """Whether the last known machine trained on a GPU."""
        return bool(self.starts and self.starts[-1].get("is_gpu"))

    @cached_property
    def steps(self) -> int:
        """Number of logged steps; repeated steps count once."""
        last: dict[int, int] = {}
        for row in self.of_kind("step"):
            last[int(row["epoch"])] = max(last.get(int(row["epoch"]), 0), int(row["step"]) + 1)
        return sum(last.values())

    @cached_property
    def starts(self) -> list[LogRow]:
        """Rows that say on which machine the stage was started or resumed."""
        return [row for row in self.rows if row.get("kind") == "start"]


def read_run(run: Location) -> tuple[Mapping[str, Any], list[StageLog], list[str]]:
    """Return the content of run.json, the stages in the order in which they run, and what could not be read.

    Raises:
        ValueError: the folder contains no run.
    """
    info: Mapping[str, Any] = {}
    problems = []
    try:
        info = read_json(run / RUN)
    except FileNotFoundError:
        problems.append(f"{RUN} is missing: the options of the run are unknown.")
    except ValueError as error:
        problems.append(f"{RUN} is damaged ({error}): the options of the run are unknown.")
    rows = {row["name"]: row for row in info.get("config", {}).get("stages", [])}
    stages = [_read_stage(run / name, name, row) for name, row in rows.items()]
    stages += _unnamed_stages(run, rows)
    if not stages:
        hint = f"({RUN} and stages are missing); give the folder that `lawdnet train --out` wrote"
        raise ValueError(f"{run}: no run here {hint}")
    for stage in stages:
        if stage.damaged:
            lines = "1 line" if stage.damaged == 1 else f"{stage.damaged} lines"
            problems.append(f"{stage.name}: {lines} of {METRICS} cannot be read and are ignored.")
    return info, stages, problems


def _unnamed_stages(run: Location, rows: Mapping[str, Any]) -> list[StageLog]:
    """The stages that run.json does not name, oldest first."""
    if not run.exists():
        return []
    folders = [folder for folder in run.iterdir() if folder.is_dir() and folder.name not in rows and _is_stage(folder)]
    return sorted((_read_stage(folder, folder.name, {}) for folder in folders), key=lambda stage: stage.first_time)


def _is_stage(folder: Location) -> bool:
    return (folder / METRICS).exists() or (folder.exists() and bool(stage_checkpoints(folder)))


def _read_stage(folder: Location, name: str, row: Mapping[str, Any]) -> StageLog:
    if not folder.exists():
        return StageLog(name=name, row=row)
    content = (folder / METRICS).read_bytes() if (folder / METRICS).exists() else b""
    complete = content[: content.rfind(b"\n") + 1]  # the last line may be incomplete at this moment
    rows = parse_jsonl(complete)
    checkpoints = stage_checkpoints(folder)
    sheets = {path.stem.rpartition("_")[2]: path for path in (folder / SAMPLES).glob("epoch_*.png")}
    return StageLog(
        name=name,
        row=row,
        rows=rows,
        damaged=sum(bool(line.strip()) for line in complete.splitlines()) - len(rows),
        checkpoint=checkpoints[-1].name if checkpoints else None,
        meta=read_meta(checkpoints[-1]) if checkpoints else {},
        stopped=(folder / STOPPED).read_text(encoding="utf8").strip() if (folder / STOPPED).exists() else "",
        sheets={int(number): sheets[number] for number in sorted(sheets) if number.isdigit()},
    )


def numbers(rows: Sequence[LogRow], name: str) -> np.ndarray:
    """Return one column as float64; NaN if a row has no number."""
    values = (row.get(name) for row in rows)
    return np.array([v if isinstance(v, int | float) else np.nan for v in values], np.float64)


def epoch_positions(steps: Sequence[LogRow], complete: int) -> tuple[np.ndarray, str]:
    """Return the positions of rows of kind `step` on an axis, and its unit.

    Args:
        steps: the rows in order.
        complete: number of complete epochs; without one, the length of an epoch is unknown and the axis counts steps.
    """
    if not complete:
        return numbers(steps, "step"), "steps"
    length: dict[int, int] = {}
    for row in steps:
        length[int(row["epoch"])] = max(length.get(int(row["epoch"]), 0), int(row["step"]) + 1)
    longest = max(length.values(), default=1)
    lengths = [length[int(row["epoch"])] if row["epoch"] < complete else longest for row in steps]
    return numbers(steps, "epoch") + numbers(steps, "step") / np.array(lengths), "epochs"
