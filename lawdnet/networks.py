"""Networks that may be computed elsewhere than their input is prepared and their answer is used.

A landmark source or an extractor names its networks. Whoever has a better place for them, such as a process with a GPU,
puts functions there that ask it, and lets several calls be made at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Network:
    """A network, with what is done right before and after it on the same device."""

    compute: Callable[..., Any]
    """Takes arrays with B entries each, and gives a sequence of B answers, each from its own entry alone."""
    batch: int = 1
    """Entries of the batches to which a GPU's calls are joined and filled up. With 1, calls are never joined, and what
    they take and give may be anything."""


@runtime_checkable
class HasNetworks(Protocol):
    """A landmark source or an extractor whose networks may be computed elsewhere."""

    name: str
    networks: dict[str, Network]
    """By name."""
    calls: int
    """How many calls of a network are made at once, from threads; 1 while the networks are here."""


def in_order(work: Callable[[T], R], items: Iterable[T], calls: int) -> Iterator[R]:
    """Yield `work(item)` for every item, in order.

    Args:
        work: called in threads, if there are several calls.
        items: fetched in the thread of the caller, while earlier ones are worked on.
        calls: most items that are held, the one that is being fetched among them.
    """
    if calls == 1:
        yield from map(work, items)
        return
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(calls, "network") as threads:
        for item in items:
            waiting.append(threads.submit(work, item))
            del item
            if len(waiting) == calls:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
