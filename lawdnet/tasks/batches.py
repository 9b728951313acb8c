"""Many small items as few batches: what a scheduler must keep of each piece of work limits how many there can be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

MOST_BATCHES = 10_000
"""With no more items than this, each is a batch by itself."""
BATCHES_PER_WORKER = 16
"""At least, so that no worker is left alone with a large rest."""

I = TypeVar("I")


def even_batches(items: Sequence[I], sizes: Sequence[int], workers: int) -> Iterator[Sequence[I]]:
    """Divide items, in order, into batches of about the same bytes and number; a large item is alone.

    Args:
        sizes: bytes of each item; 0 where they are unknown.
        workers: number of processes that share the batches.
    """
    most = max(MOST_BATCHES, BATCHES_PER_WORKER * workers)
    # half of what an item costs goes with its bytes, and half is there whatever it holds
    total, number = sum(sizes), len(items)
    costs = [(size / total + 1 / number) / 2 if total else 1 / number for size in sizes]
    limit = 1 / most if number > most else 0.0
    start, filled = 0, 0.0
    for stop, cost in enumerate(costs):
        if stop > start and filled + cost > limit:
            yield items[start:stop]
            start, filled = stop, 0.0
        filled += cost
    if items:
        yield items[start:]
