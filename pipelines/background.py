"""Something small done again and again beside the work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PERIOD_SECONDS = 0.5


@contextmanager
def repeated(action: Callable[[], None]) -> Iterator[None]:
    """Calls `action` in a thread twice a second while the block runs, and once more when it has ended."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(PERIOD_SECONDS):
            action()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        action()
