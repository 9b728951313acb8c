"""What the first worker writes beside checkpoints: metrics, images, alarms, and how far training has come."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lawdnet.storage import Location
from lawdnet.tasks.background import repeated
from lawdnet.training.loggers import MetricLogger, make_loggers
from lawdnet.training.position import Position

if TYPE_CHECKING:
    from upath import UPath

log = logging.getLogger(__name__)

PUSH_SECONDS = 60.0
"""Time between two uploads, besides those with a checkpoint."""
BEGUN = ".place"
"""File with the position of the step that was begun last."""


class StageRecorder:
    """The folder of a stage as loggers see it: on this machine, and uploaded if the run lies in an object store."""

    def __init__(self, folder: Location) -> None:
        self.remote = None if isinstance(folder, Path) else folder
        self._scratch = tempfile.TemporaryDirectory(prefix="lawdnet-") if self.remote else None
        self.folder = Path(self._scratch.name) if self._scratch else Path(str(folder))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sent: dict[str, tuple[int, int]] = {}
        self._pushing = threading.Lock()
        self._stack = ExitStack()
        self._pull()
        begun = self.folder / BEGUN
        self._begun = begun.open("r+b" if begun.exists() else "w+b", buffering=0)
        self.logger: MetricLogger | None = None

    def open(
        self, names: tuple[str, ...], *, config: Mapping[str, Any], lineage: Mapping[str, Any], run_name: str
    ) -> None:
        """Start the loggers."""
        self.logger = make_loggers(names, self.folder, config=config, lineage=lineage, run_name=run_name)
        if self.remote:
            self._stack.enter_context(repeated(self.push, PUSH_SECONDS))

    def log(self, row: Mapping[str, Any]) -> None:
        """Log one row."""
        assert self.logger is not None
        self.logger.log(row)

    def begin_step(self, position: Position) -> None:
        """Record that this step was begun, for the worker that resumes after a crash."""
        self._begun.seek(0)
        self._begun.write(b"%08d %08d" % (position.epoch, position.step))

    def begun(self) -> Position | None:
        """The step that this worker or an earlier one began last; None if unknown."""
        self._begun.seek(0)
        try:
            epoch, step = self._begun.read().split()
        except ValueError:
            return None
        return Position(int(epoch), int(step))

    def push(self) -> None:
        """Upload what is new. A failure is a warning, and the next call tries again."""
        if self.remote is not None:
            with self._pushing:
                self._push(self.remote)

    def _push(self, remote: UPath) -> None:
        for file in sorted(self.folder.rglob("*")):
            mark = (file.stat().st_size, file.stat().st_mtime_ns)
            name = file.relative_to(self.folder).as_posix()
            if not file.is_file() or self._sent.get(name) == mark:
                continue
            try:
                remote.fs.put_file(str(file), (remote / name).path)
            except Exception as error:  # each protocol's client has errors of its own
                log.warning("%s: not uploaded (%s)", name, error)
                continue
            self._sent[name] = mark

    def _pull(self) -> None:
        """Download the files of earlier workers, so that new lines are appended to them."""
        if self.remote is None or not self.remote.exists():
            return
        for file in self.remote.iterdir():
            if file.is_file():
                self.remote.fs.get_file(file.path, str(self.folder / file.name))

    def close(self) -> None:
        """Close the loggers and upload what is left."""
        if self.logger:
            self.logger.close()
        self._stack.close()
        self._begun.close()
        self.push()
        if self._scratch:
            self._scratch.cleanup()
