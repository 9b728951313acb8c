"""Footers of Parquet files, kept for the next time that a file is opened."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

import pyarrow.parquet as pq


class Footers:
    """The footers that were used last, up to a number of bytes; safe for threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._known: OrderedDict[str, pq.FileMetaData] = OrderedDict()
        self._lock = Lock()

    def get(self, name: str) -> pq.FileMetaData | None:
        """Return the footer that was kept under a name."""
        return self._known.get(name)

    def keep(self, name: str, footer: pq.FileMetaData) -> None:
        """Keep a footer that is used now; those that were not used for longest go."""
        with self._lock:
            self._bytes += footer.serialized_size
            if (same := self._known.pop(name, None)) is not None:
                self._bytes -= same.serialized_size
            self._known[name] = footer
            while self._bytes > self._limit and len(self._known) > 1:
                self._bytes -= self._known.popitem(last=False)[1].serialized_size
