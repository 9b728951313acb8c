import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from lawdnet.tasks import background
from lawdnet.tasks.background import ahead


def test_it_runs_beside_the_block_and_once_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "PERIOD_SECONDS", 0.01)
    calls: list[str] = []
    stage = "during"

    def fail() -> None:
        nonlocal stage
        with background.repeated(lambda: calls.append(stage)):
            time.sleep(0.2)
            stage = "after"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert "during" in calls
    assert calls[-1] == "after"
    count = len(calls)
    time.sleep(0.05)
    assert len(calls) == count


def test_ahead_keeps_the_order_and_works_in_one_other_thread() -> None:
    threads = set()

    def items() -> Iterator[int]:
        for number in range(20):
            threads.add(threading.get_ident())
            yield number

    assert list(ahead(items(), 3)) == list(range(20))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_ahead_is_at_most_so_far_ahead() -> None:
    made = []

    def items() -> Iterator[int]:
        for number in itertools.count():
            made.append(number)
            yield number

    taken = ahead(items(), 3)
    next(taken)
    time.sleep(0.1)
    assert len(made) == 4
    taken.close()
    assert len(made) <= 5


def test_ahead_raises_what_the_items_raise_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    taken = ahead(items(), 4)
    assert next(taken) == 1
    with pytest.raises(ValueError, match="broken"):
        next(taken)
