"""Lines that a worker adds to a file, as they come, wherever the file is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lawdnet.storage import Location, fingerprint
from lawdnet.training.loggers import JsonlTail, parse_jsonl

REMOTE_SECONDS = 5.0


class Tail:
    """What is added to a file of JSON lines from now on; the file may not exist yet."""

    def __init__(self, path: Location) -> None:
        self.path = path
        self.period = None if isinstance(path, Path) else REMOTE_SECONDS
        """Seconds between two looks; None where looking costs nothing."""
        self._local = JsonlTail(path) if isinstance(path, Path) else None
        self._mark = fingerprint(path)
        self._read = 0 if self._local or not self._mark else len(path.read_bytes())

    def rows(self) -> list[dict[str, Any]]:
        """The complete lines added since the last call."""
        if self._local:
            return self._local.rows()
        mark = fingerprint(self.path)
        if mark == self._mark:
            return []
        added = self.path.read_bytes()[self._read :]
        complete = added[: added.rfind(b"\n") + 1]
        self._mark, self._read = mark, self._read + len(complete)
        return parse_jsonl(complete)
