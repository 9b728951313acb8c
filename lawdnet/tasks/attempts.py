"""How often each item was begun, on disk: what a worker that died leaves for its successor."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from lawdnet.storage import Location, read_json, write_json

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""How often an item may take its worker process with it before it is quarantined."""
MAX_EXCUSED = 10
"""Attempts that ended with their whole machine, and do not count. Some end: an item may take a machine with it."""


@dataclass(frozen=True)
class Attempt:
    """What is known of an item before it is begun once more."""

    run: str
    count: int = 0
    """Earlier attempts in this run."""
    node: str = ""
    """Machine of the last of them."""
    excused: int = 0
    """Attempts that are not counted, as their machine went."""
    reason: str = ""
    """Why the item was given up, if it was."""
    detail: str = ""

    @property
    def is_quarantined(self) -> bool:
        """Whether the item must not be worked on again in this run."""
        return self.count >= MAX_ATTEMPTS


@dataclass(frozen=True)
class Attempts:
    """The attempts of one run of a job.

    Attempts of other runs count for nothing: whoever stopped such a run may have had other reasons. Nor do those whose
    machine has gone, as spot machines do.
    """

    folder: Location
    run: str
    node: str = ""
    """This machine."""
    is_gone: Callable[[str], bool] = lambda node: False
    """Whether a machine has left since."""

    def begin(self, key: str) -> Attempt:
        """Count one more attempt, and return what was known before it."""
        before = self._read(key)
        if before.count and not before.reason and self._may_excuse(before):
            before = replace(before, count=before.count - 1, excused=before.excused + 1)
        self._write(key, replace(before, count=before.count + 1, node=self.node))
        return before

    def _may_excuse(self, before: Attempt) -> bool:
        return before.excused < MAX_EXCUSED and before.node not in ("", self.node) and self.is_gone(before.node)

    def give_up(self, key: str, reason: str, detail: str) -> None:
        """Quarantine an item: the next worker that begins it is told why."""
        self._write(key, Attempt(self.run, MAX_ATTEMPTS, reason=reason, detail=detail))

    def end(self, key: str) -> None:
        """Forget the attempts of an item that has its record."""
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: cannot be removed (%s)", self._path(key), error)

    def _path(self, key: str) -> Location:
        return self.folder / f"{key}.attempts"

    def _write(self, key: str, attempt: Attempt) -> None:
        write_json(self._path(key), asdict(attempt))

    def _read(self, key: str) -> Attempt:
        try:
            found = Attempt(**read_json(self._path(key)))
        except (FileNotFoundError, ValueError, TypeError):  # a worker may have died while it wrote
            return Attempt(self.run)
        return found if found.run == self.run else Attempt(self.run)
