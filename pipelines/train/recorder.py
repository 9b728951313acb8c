"""What the first worker writes down beside checkpoints: figures, pictures, alarms, and how far it has come."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lawdnet.storage import Location, is_remote
from lawdnet.training.loggers import MetricLogger, make_loggers

log = logging.getLogger(__name__)

PLACE = ".place"


class StageRecorder:
    """The folder of a stage as loggers see it: on this machine, and brought to the run's own where that is remote."""

    def __init__(self, folder: Location) -> None:
        self.remote = folder if is_remote(folder) else None
        self._scratch = tempfile.TemporaryDirectory(prefix="lawdnet-") if is_remote(folder) else None
        self.folder = Path(self._scratch.name) if self._scratch else Path(str(folder))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sent: dict[str, tuple[int, int]] = {}
        self._pull()
        self._place = (self.folder / PLACE).open("r+b" if (self.folder / PLACE).exists() else "w+b", buffering=0)
        self.logger: MetricLogger | None = None

    def open(
        self, names: tuple[str, ...], *, config: Mapping[str, Any], lineage: Mapping[str, Any], run_name: str
    ) -> None:
        """Begins to log."""
        self.logger = make_loggers(names, self.folder, config=config, lineage=lineage, run_name=run_name)

    def log(self, row: Mapping[str, Any]) -> None:
        """One row."""
        assert self.logger is not None
        self.logger.log(row)

    def begin_step(self, epoch: int, step: int) -> None:
        """Remembers, for whoever comes after a crash, that this step was begun."""
        self._place.seek(0)
        self._place.write(b"%08d %08d" % (epoch, step))

    def begun(self) -> tuple[int, int] | None:
        """Epoch and step that were begun last, by this worker or one before it; None where that is not known."""
        self._place.seek(0)
        try:
            epoch, step = self._place.read().split()
        except ValueError:
            return None
        return int(epoch), int(step)

    def push(self) -> None:
        """Brings what is new to the run's own folder. A failure is a warning: the next time takes it along."""
        if self.remote is None:
            return
        for file in sorted(self.folder.rglob("*")):
            mark = (file.stat().st_size, file.stat().st_mtime_ns)
            name = file.relative_to(self.folder).as_posix()
            if not file.is_file() or self._sent.get(name) == mark:
                continue
            try:
                self.remote.fs.put_file(str(file), (self.remote / name).path)
            except Exception as error:  # each protocol's client has errors of its own
                log.warning("%s: not uploaded (%s)", name, error)
                continue
            self._sent[name] = mark

    def _pull(self) -> None:
        """The files of workers before, so that lines are added to theirs."""
        if self.remote is None or not self.remote.exists():
            return
        for file in self.remote.iterdir():
            if file.is_file():
                self.remote.fs.get_file(file.path, str(self.folder / file.name))

    def close(self) -> None:
        """Nothing more will come."""
        if self.logger:
            self.logger.close()
        self._place.close()
        self.push()
        if self._scratch:
            self._scratch.cleanup()
