import pytest

from lawdnet.training.ramp import MEMORY, SyncRamp


def factors(ramp: SyncRamp, true: float, made: float, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        ramp.see(true, made)
        found.append(ramp.factor)
    return found


def test_it_waits_for_both_losses_then_rises_linearly_and_stays() -> None:
    ramp = SyncRamp(4, 0.75)
    assert factors(ramp, 0.5, 0.9, 30) == [0.0] * 30, "what is generated means nothing to the sync network"
    ramp = SyncRamp(4, 0.75)
    assert factors(ramp, 0.9, 0.5, 30) == [0.0] * 30, "the sync network does not know true pairs"
    ramp = SyncRamp(4, 0.75)
    assert factors(ramp, 0.5, 0.7, MEMORY + 6) == [0.0] * (MEMORY - 1) + [0.25, 0.5, 0.75, 1, 1, 1, 1]
    assert factors(ramp, 9, 9, 2) == [1, 1], "once begun it does not go back"


def test_one_lucky_step_does_not_open_it() -> None:
    ramp = SyncRamp(4, 0.75)
    factors(ramp, 1.0, 1.0, MEMORY)
    assert factors(ramp, 0.1, 0.1, 1) == [0]
    assert factors(ramp, 0.1, 0.1, 3)[-1] > 0, "but a mean does"


def test_without_steps_it_is_open_from_the_first() -> None:
    ramp = SyncRamp(0, 0.75)
    assert ramp.factor == 1
    assert not ramp.is_waiting


def test_every_rank_begins_in_the_same_step() -> None:
    votes: list[bool] = []

    def agree(flag: bool) -> bool:
        votes.append(flag)
        return len(votes) < MEMORY + 3  # another rank is not ready before

    assert factors(SyncRamp(2, 0.75, agree), 0.1, 0.1, MEMORY + 4)[-3:] == [0, 0.5, 1]
    assert len(votes) == MEMORY + 3, "asked in every step while it waits, and never after"


def test_it_goes_on_where_it_stopped() -> None:
    whole, first = SyncRamp(8, 0.75), SyncRamp(8, 0.75)
    for count in (5, MEMORY + 2):
        factors(whole, 0.5, 0.6, count)
        factors(first, 0.5, 0.6, count)
        again = SyncRamp(8, 0.75)
        again.load_state_dict(first.state_dict())
        first = again
        assert factors(whole, 0.4, 0.5, 3) == factors(first, 0.4, 0.5, 3)
    assert whole.state_dict() == first.state_dict()
    assert whole.factor == pytest.approx(1.0)
