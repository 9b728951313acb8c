"""Small things done in a thread beside the work."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

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


def ahead(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """Yield the same items, made in another thread up to `depth` ahead of their use; closing it ends the thread."""

    def make() -> list[T]:
        return list(islice(items, 1))

    with ThreadPoolExecutor(1) as thread:
        making = deque(thread.submit(make) for _ in range(depth))
        while made := making.popleft().result():
            making.append(thread.submit(make))
            yield made[0]
