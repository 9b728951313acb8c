"""What the files of a run say of its stages, whether they are finished, at work, interrupted or damaged."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from lawdnet.models.saved import RUN, read_meta, stage_checkpoints
from lawdnet.storage import Location, read_json
from lawdnet.training.loggers import METRICS, SAMPLES, parse_jsonl

SHARE = "share_"
"""Columns with a loss's part of the gradient of the made pictures begin so."""
STOPPED = "stopped.txt"
"""Why the workers gave up together."""
QUIET_SECONDS = 120.0
QUIET_FACTOR = 5
"""A stage is at work where its last row is no older than this, or than so many of its longest pauses."""


@dataclass(frozen=True, kw_only=True)
class StageLog:
    """One stage of a run."""

    name: str
    row: Mapping[str, Any]
    """Of the configuration; empty where that is lost."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Of metrics.jsonl, as they were written."""
    damaged: int = 0
    """Complete lines of it that cannot be read."""
    checkpoint: str | None = None
    """Name of the newest complete one."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    stopped: str = ""
    pictures: dict[int, Location] = field(default_factory=dict)
    """Complete epochs → sheet."""
    now: float = field(default_factory=time.time)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Rows by epoch and step; of what was done again after a restart, the last."""
        rows = [row for row in self.rows if row.get("kind") == kind and isinstance(row.get("epoch"), int | float)]
        if kind == "step":
            rows = [row for row in rows if isinstance(row.get("step"), int | float)]
        unique = {(row["epoch"], row.get("step", 0)): row for row in rows}
        return [unique[place] for place in sorted(unique)]

    @cached_property
    def epochs(self) -> int:
        """All that the stage has to do; 0 where nothing says so."""
        asked = self.row.get("epochs_constant", 0) + self.row.get("epochs_decay", 0)
        return int(asked or self.meta.get("epochs", 0))

    @cached_property
    def epochs_done(self) -> int:
        """Complete epochs that a checkpoint has kept, or where there is none, that were written down."""
        if self.checkpoint:
            return int(self.meta["epoch"])
        return int(max((row["epoch"] for row in self.of_kind("epoch")), default=0))

    @cached_property
    def first_time(self) -> float:
        """Of the first row, in s since 1970; 0 without rows."""
        return min(self._times, default=0.0)

    @cached_property
    def last_time(self) -> float:
        """Of the last row, in s since 1970; 0 without rows."""
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
        """Between rows, but for the time from an end to the next start."""
        return sum(seconds for seconds, _ in self._work)

    @cached_property
    def device_seconds(self) -> float:
        """The same for each worker, added up."""
        return sum(seconds * workers for seconds, workers in self._work)

    @cached_property
    def _work(self) -> list[tuple[float, int]]:
        """(seconds, workers) between neighbouring rows; old logs have no starts, and what their first rows took is left
        out."""
        found, before, workers = [], None, 1
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
        """Whether the newest machine that is known trained on a GPU."""
        return bool(self.starts and self.starts[-1].get("is_gpu"))

    @cached_property
    def steps(self) -> int:
        """All that are logged, those of each epoch once."""
        last: dict[int, int] = {}
        for row in self.of_kind("step"):
            last[int(row["epoch"])] = max(last.get(int(row["epoch"]), 0), int(row["step"]) + 1)
        return sum(last.values())

    @cached_property
    def starts(self) -> list[dict[str, Any]]:
        """Rows that say on what machine the stage was begun or gone on with."""
        return [row for row in self.rows if row.get("kind") == "start"]


def read_run(run: Location) -> tuple[dict[str, Any], list[StageLog], list[str]]:
    """What run.json says, the stages in the order in which they run, and what could not be read.

    Raises:
        ValueError: no run lies there.
    """
    info: dict[str, Any] = {}
    troubles = []
    try:
        info = read_json(run / RUN)
    except FileNotFoundError:
        troubles.append(f"{RUN} is missing: what was asked for is not known.")
    except ValueError as error:
        troubles.append(f"{RUN} is damaged ({error}): what was asked for is not known.")
    rows = {row["name"]: row for row in info.get("config", {}).get("stages", [])}
    stages = [_read_stage(run / name, name, row) for name, row in rows.items()]
    stages += _unnamed_stages(run, rows)
    if not stages:
        raise ValueError(f"{run}: no run here ({RUN} and stages are missing); name what `lawdnet train --out` wrote")
    for stage in stages:
        if stage.damaged:
            lines = "1 line" if stage.damaged == 1 else f"{stage.damaged} lines"
            troubles.append(f"{stage.name}: {lines} of {METRICS} cannot be read and are left out.")
    return info, stages, troubles


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
    complete = content[: content.rfind(b"\n") + 1]  # the last line may be half written at this moment
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
        pictures={int(number): sheets[number] for number in sorted(sheets) if number.isdigit()},
    )


def numbers(rows: list[dict[str, Any]], name: str) -> np.ndarray:
    """One column as float64; NaN where a row has no number."""
    values = (row.get(name) for row in rows)
    return np.array([v if isinstance(v, int | float) else np.nan for v in values], np.float64)


def place_in_epochs(steps: list[dict[str, Any]], complete: int) -> tuple[np.ndarray, str]:
    """Where the rows of kind `step` lie on an axis, and what it counts.

    Args:
        steps: in their order.
        complete: epochs; without one, nobody knows how long an epoch is, and the axis counts steps.
    """
    if not complete:
        return numbers(steps, "step"), "steps"
    length: dict[int, int] = {}
    for row in steps:
        length[int(row["epoch"])] = max(length.get(int(row["epoch"]), 0), int(row["step"]) + 1)
    longest = max(length.values(), default=1)
    lengths = [length[int(row["epoch"])] if row["epoch"] < complete else longest for row in steps]
    return numbers(steps, "epoch") + numbers(steps, "step") / np.array(lengths), "epochs"
