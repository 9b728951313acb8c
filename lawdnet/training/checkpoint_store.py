"""The checkpoints of a stage: RUN/STAGE/epoch_0003, and epoch_0003_step_000120 within the epoch that follows.

Ray Train does not keep them: it registers a checkpoint some seconds late, in a file that is not written atomically, and
stops a run if either is damaged (Ray 2.60).
"""

from __future__ import annotations

import errno
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from lawdnet.models.saved import META, STATE, newest_good, read_meta, stage_checkpoints
from lawdnet.storage import Location, read_json, write_json
from lawdnet.training.gates import is_better
from lawdnet.training.position import START, Position

if TYPE_CHECKING:
    from upath import UPath

log = logging.getLogger(__name__)

FULL_BYTES = 1 << 24
"""If writing fails on a disk with less room than this, the disk is full."""

METRICS = "metrics.json"
"""File in a checkpoint: the validation metrics of its epoch."""


@contextmanager
def local_folder(folder: Location) -> Iterator[Path]:
    """A checkpoint as a local folder: itself, or a download that is deleted when the block ends."""
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="lawdnet-") as copy:
        for name in (META, STATE):
            folder.fs.get_file((folder / name).path, str(Path(copy) / name))
        yield Path(copy)


class CheckpointStore:
    """The checkpoints of a stage, on this machine or in an object store."""

    def __init__(self, stage_folder: Location) -> None:
        self.folder = stage_folder

    def complete(self) -> list[Location]:
        """List the complete checkpoints, oldest first."""
        return list(stage_checkpoints(self.folder)) if self.folder.exists() else []

    def newest_good(self) -> Location | None:
        """Find the newest checkpoint that holds what was saved; damaged ones are skipped with a warning."""
        return newest_good(self.folder) if self.folder.exists() else None

    def position(self) -> Position:
        """The position that the newest checkpoint states, damaged or not; `START` without one."""
        found = self.complete()
        return position_of(found[-1]) if found else START

    def save(self, name: str, write: Callable[[Path], None], metrics: dict[str, float] | None = None) -> Location:
        """Save what `write` puts into an empty folder as a checkpoint; readers see all of it or nothing.

        Checkpoints of later positions are removed: they were damaged, and the run resumed from one before them.
        """
        target = self.folder / name
        if isinstance(target, Path):
            temporary = target.with_name(f".{name}.{uuid4().hex[:8]}.tmp")
            temporary.mkdir(parents=True)
            _fill(temporary, write, metrics)
            shutil.rmtree(target, ignore_errors=True)  # a damaged one, before which the run resumed
            temporary.rename(target)
        else:
            with tempfile.TemporaryDirectory(prefix="lawdnet-") as scratch:
                _fill(Path(scratch), write, metrics)
                _upload(Path(scratch), target)
        for folder in self.complete():
            if folder.name > name:
                remove(folder)
        return target

    def tidy(self, keep_last: int, best_by: Sequence[str] = ()) -> None:
        """Remove all but the newest and the best checkpoints, and what a killed process left half written."""
        found = self.complete()
        kept = {folder.name for folder in found[-keep_last:]}
        if best := self.best(best_by):
            kept.add(best.name)
        for folder in found:
            if folder.name not in kept:
                remove(folder)
        if isinstance(self.folder, Path):
            for left in self.folder.glob(".epoch_*.tmp"):
                shutil.rmtree(left, ignore_errors=True)

    def best(self, best_by: Sequence[str]) -> Location | None:
        """Find the best checkpoint by the first metric that any has, the oldest among equals; None without one."""
        measured = [(folder, metrics_of(folder)) for folder in self.complete()]
        metric = next((name for name in best_by if any(name in metrics for _, metrics in measured)), None)
        if metric is None:
            return None
        best: Location | None = None
        best_value: float | None = None
        for folder, metrics in measured:
            value = metrics.get(metric, math.nan)
            if is_better(metric, value, best_value):
                best = folder
                best_value = value
        return best


def position_of(folder: Location) -> Position:
    """The position that a checkpoint's meta states."""
    meta = read_meta(folder)
    return Position(int(meta["epoch"]), int(meta.get("next_step", 0)))


def metrics_of(folder: Location) -> dict[str, float]:
    """The validation metrics of a checkpoint's epoch; empty if nothing was measured."""
    try:
        metrics: dict[str, float] = read_json(folder / METRICS)
    except (FileNotFoundError, ValueError):
        return {}
    return metrics


def remove(folder: Location) -> None:
    """Remove a checkpoint, its meta first: what is half removed then no longer counts as a checkpoint."""
    (folder / META).unlink(missing_ok=True)
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.fs.rm(folder.path, recursive=True)


def _fill(folder: Path, write: Callable[[Path], None], metrics: dict[str, float] | None) -> None:
    try:
        write(folder)
    except RuntimeError as error:  # torch's writer says "unexpected pos" if the disk is full
        if shutil.disk_usage(folder).free > FULL_BYTES:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder.parent)) from error
    if metrics is not None:
        write_json(folder / METRICS, metrics)


def _upload(local: Path, target: UPath) -> None:
    """Upload a checkpoint, its meta last: what is half uploaded does not count as a checkpoint."""
    if (target / META).exists():
        remove(target)
    files = sorted(local.iterdir(), key=lambda file: file.name == META)
    for file in files:
        target.fs.put_file(str(file), (target / file.name).path)
