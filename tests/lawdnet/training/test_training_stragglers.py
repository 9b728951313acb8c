"""Which ranks are slow, from their mean steps."""

from __future__ import annotations

from collections.abc import Sequence

from lawdnet.training.speed import StepTime
from lawdnet.training.stragglers import IN_A_ROW, RankClock, RankTime, Stragglers


def times(whole: Sequence[float], waited: float = 0.0) -> list[RankTime]:
    return [RankTime(rank=rank, host="h", waited=waited, own=one - waited) for rank, one in enumerate(whole)]


def test_a_clock_gives_means_by_virtual_rank_and_begins_again() -> None:
    clock = RankClock(3, "here", share=2)
    for own in (1.0, 3.0):
        clock.add(StepTime(waited=0.5, computed=9.0, own=own, samples=4))
    assert clock.take() == RankTime(rank=3, host="here", waited=0.5, own=1.0)
    assert clock.take().whole == 0


def test_who_is_slow_once_or_a_little_is_not_named() -> None:
    stragglers = Stragglers()
    for _ in range(2 * IN_A_ROW):
        assert not stragglers.update(times([1.0, 1.0, 1.4]))
        assert not stragglers.update(times([0.001, 0.001, 0.01])), "milliseconds"
    for _ in range(IN_A_ROW - 1):
        assert not stragglers.update(times([1.0, 1.0, 2.0]))
    assert not stragglers.update(times([1.0, 1.0, 1.0]))
    assert not stragglers.update(times([1.0, 1.0, 2.0]))


def test_who_waits_for_batches_is_slow_too() -> None:
    stragglers = Stragglers()
    slow = [*times([1.0] * 3), RankTime(rank=3, host="far", waited=2.0, own=1.0)]
    told = [text for _ in range(IN_A_ROW) for text in stragglers.update(slow)]
    assert len(told) == 1
    assert "rank 3 on far" in told[0]
    assert "3.00 s a step (2.00 s of it for its batches), where the median is 1.00 s" in told[0]
