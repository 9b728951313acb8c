"""Batches of many small items: few, about equally large, complete and in order."""

from __future__ import annotations

import numpy as np
import pytest

from lawdnet.tasks import batches
from lawdnet.tasks.batches import even_batches


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MOST_BATCHES", 20)


def test_few_items_have_a_batch_each() -> None:
    assert list(even_batches(range(20), [5] * 20, 2)) == [range(n, n + 1) for n in range(20)]
    assert list(even_batches([], [], 2)) == []


def test_many_workers_have_enough_batches() -> None:
    assert len(list(even_batches(range(320), [5] * 320, 20))) == 320
    assert 320 <= len(list(even_batches(range(640), [5] * 640, 20))) <= 321


@pytest.mark.parametrize("sizes", [[7] * 1000, [0] * 1000, np.random.default_rng(0).integers(1, 100, 1000).tolist()])
def test_many_items_share_batches_of_about_one_size(sizes: list[int]) -> None:
    found = [list(batch) for batch in even_batches(range(1000), sizes, 1)]
    assert [item for batch in found for item in batch] == list(range(1000))
    assert 20 <= len(found) <= 22
    total = [sum(sizes[item] for item in batch) for batch in found[:-1]]
    assert max(total) <= 1.5 * min(total)


def test_a_large_item_is_alone() -> None:
    sizes = [1] * 500 + [1000] + [1] * 500
    found = [list(batch) for batch in even_batches(range(1001), sizes, 1)]
    assert [500] in found
    assert len(found) <= 40
