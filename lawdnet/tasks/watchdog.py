"""Ends a process whose work no longer gets on: a codec that hangs cannot be interrupted any other way."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EXIT_CODE = 75


class Watchdog:
    """Watches one piece of work at a time, from a thread that is started once."""

    def __init__(self, limit_seconds: float) -> None:
        self.limit = limit_seconds
        self._last = 0.0
        self._on_stall: Callable[[], None] | None = None
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def beat(self) -> None:
        """Says that the work got on."""
        self._last = time.monotonic()

    @contextmanager
    def watching(self, on_stall: Callable[[], None]) -> Iterator[None]:
        """While the block runs: without a beat for the limit, calls `on_stall` and ends the process."""
        self.beat()
        self._on_stall = on_stall
        try:
            yield
        finally:
            self._on_stall = None

    def _watch(self) -> None:
        while True:
            time.sleep(min(1.0, self.limit / 4))
            on_stall = self._on_stall
            if on_stall and time.monotonic() - self._last > self.limit:
                try:
                    on_stall()
                finally:
                    os._exit(EXIT_CODE)
