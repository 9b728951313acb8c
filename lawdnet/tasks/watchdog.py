"""End a process whose work makes no progress: a codec that hangs cannot be interrupted any other way."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EXIT_CODE = 75


class Watchdog:
    """Watches one piece of work at a time, from a thread that is started once.

    Args:
        limit_seconds: how long the work may go without a beat.
    """

    def __init__(self, limit_seconds: float) -> None:
        self.limit = limit_seconds
        self._last = 0.0
        self._on_stall: Callable[[], None] | None = None
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def beat(self) -> None:
        """Say that the work made progress."""
        self._last = time.monotonic()

    @contextmanager
    def watching(self, on_stall: Callable[[], None]) -> Iterator[None]:
        """While the block runs: call `on_stall` and end the process if there is no beat for the limit."""
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
