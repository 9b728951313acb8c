"""The checkpoints of a stage: RUN/STAGE/epoch_0003, and epoch_0003_step_000120 within the epoch that follows.

They are kept by us and not by Ray Train, whose list of them is registered some seconds late, lies in a file that is not
written atomically, and stops a run where either is damaged (Ray 2.60).
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

if TYPE_CHECKING:
    from upath import UPath
from lawdnet.training.gates import is_better

log = logging.getLogger(__name__)

FULL_BYTES = 1 << 24
"""A disk with less room than this is taken for full where writing failed."""

METRICS = "metrics.json"
"""In a checkpoint: the figures of its epoch."""


@contextmanager
def local_folder(folder: Location) -> Iterator[Path]:
    """A checkpoint as a local folder: itself, or a download that is gone when the block ends."""
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="lawdnet-") as copy:
        for name in (META, STATE):
            folder.fs.get_file((folder / name).path, str(Path(copy) / name))
        yield Path(copy)


class CheckpointStore:
    """Where a stage's checkpoints lie, on this machine or in an object store."""

    def __init__(self, stage_folder: Location) -> None:
        self.folder = stage_folder

    def complete(self) -> list[Location]:
        """Oldest first; one that was cut short while it was written is none."""
        return list(stage_checkpoints(self.folder)) if self.folder.exists() else []

    def newest_good(self) -> Location | None:
        """The newest checkpoint that holds what was saved; damaged ones are passed over with a warning."""
        return newest_good(self.folder) if self.folder.exists() else None

    def place(self) -> tuple[int, int]:
        """Complete epochs and steps of the next, as the newest checkpoint says, good or not; (0, 0) without one."""
        found = self.complete()
        return place_of(found[-1]) if found else (0, 0)

    def save(self, name: str, write: Callable[[Path], None], metrics: dict[str, float] | None = None) -> Location:
        """A checkpoint by what `write` puts into an empty folder; readers see all of it or nothing."""
        target = self.folder / name
        if isinstance(target, Path):
            temporary = target.with_name(f".{name}.{uuid4().hex[:8]}.tmp")
            temporary.mkdir(parents=True)
            _fill(temporary, write, metrics)
            shutil.rmtree(target, ignore_errors=True)  # a damaged one that the run has gone back behind
            temporary.rename(target)
        else:
            with tempfile.TemporaryDirectory(prefix="lawdnet-") as scratch:
                _fill(Path(scratch), write, metrics)
                _upload(Path(scratch), target)
        return target

    def tidy(self, keep_last: int, best_by: Sequence[str] = ()) -> None:
        """Removes what is neither among the newest nor the best, and what a killed process left half written."""
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
        """The best checkpoint by the first measure that any of them has; of equals the oldest; None without one."""
        figures = [(folder, metrics_of(folder)) for folder in self.complete()]
        metric = next((name for name in best_by if any(name in found for _, found in figures)), "")
        value, best = None, None
        for folder, found in figures if metric else ():
            new = found.get(metric, math.nan)
            if is_better(metric, new, value):
                value, best = new, folder
        return best


def place_of(folder: Location) -> tuple[int, int]:
    """Complete epochs and steps of the next."""
    meta = read_meta(folder)
    return int(meta["epoch"]), int(meta.get("next_step", 0))


def metrics_of(folder: Location) -> dict[str, float]:
    """The figures of a checkpoint's epoch; none where nothing was measured."""
    try:
        metrics: dict[str, float] = read_json(folder / METRICS)
    except (FileNotFoundError, ValueError):
        return {}
    return metrics


def remove(folder: Location) -> None:
    """Meta first: what is half removed is no checkpoint."""
    (folder / META).unlink(missing_ok=True)
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.fs.rm(folder.path, recursive=True)


def _fill(folder: Path, write: Callable[[Path], None], metrics: dict[str, float] | None) -> None:
    try:
        write(folder)
    except RuntimeError as error:  # torch's writer says "unexpected pos" where the disk is full
        if shutil.disk_usage(folder).free > FULL_BYTES:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder.parent)) from error
    if metrics is not None:
        write_json(folder / METRICS, metrics)


def _upload(local: Path, target: UPath) -> None:
    """Meta last: what is half uploaded is no checkpoint."""
    if (target / META).exists():
        remove(target)
    files = sorted(local.iterdir(), key=lambda file: file.name == META)
    for file in files:
        target.fs.put_file(str(file), (target / file.name).path)
