"""Small things done in a thread beside the work."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

PERIOD_SECONDS = 0.5


@contextmanager
def repeated(action: Callable[[], None], seconds: float | None = None) -> Iterator[None]:
    """Call `action` in a thread every `seconds` while the block runs, and once more when it has ended."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(seconds or PERIOD_SECONDS):
            action()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        action()


def ahead(items: Iterator[T], number: int) -> Iterator[T]:
    """The same items, of which a thread makes up to `number` before they are asked for.

    An error of the thread is raised where its item would have been.
    """
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(number)
    stop = threading.Event()

    def put(entry: tuple[str, Any]) -> None:
        while not stop.is_set():
            try:
                ready.put(entry, timeout=PERIOD_SECONDS)
            except queue.Full:
                continue
            return

    def make() -> None:
        try:
            for item in items:
                put(("item", item))
                if stop.is_set():
                    return
            put(("end", None))
        except BaseException as error:
            put(("error", error))

    threading.Thread(target=make, daemon=True).start()
    try:
        while (entry := ready.get())[0] == "item":
            yield entry[1]
    finally:
        stop.set()
    if entry[0] == "error":
        raise entry[1]
