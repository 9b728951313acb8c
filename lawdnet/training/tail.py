"""The rows that a worker appends to a file of JSON lines, as they come, wherever the file is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lawdnet.storage import Location, fingerprint
from lawdnet.training.loggers import parse_jsonl

REMOTE_SECONDS = 5.0


class Tail:
    """The rows appended to a file from now on; the file need not exist yet."""

    def __init__(self, path: Location) -> None:
        self.path = path
        self.period = None if isinstance(path, Path) else REMOTE_SECONDS
        """Seconds between two looks; None if looking costs nothing."""
        self._mark = fingerprint(path)
        self._read = len(self._added(0)) if self._mark else 0

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the complete lines added since the last call."""
        mark = fingerprint(self.path)
        if mark == self._mark:
            return []
        added = self._added(self._read)
        complete = added[: added.rfind(b"\n") + 1]
        self._mark, self._read = mark, self._read + len(complete)
        return parse_jsonl(complete)

    def _added(self, start: int) -> bytes:
        if not isinstance(self.path, Path):
            return self.path.read_bytes()[start:]
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read()
