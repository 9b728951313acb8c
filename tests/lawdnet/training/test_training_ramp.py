import pytest

from lawdnet.training.ramp import MEMORY, SyncBound, SyncRamp


def factors(ramp: SyncRamp, true: float, made: float, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        ramp.update(true, made, score=0.5)
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


def test_the_target_is_the_mean_score_of_true_pairs_once_the_ramp_has_begun() -> None:
    ramp = SyncRamp(4, 0.75)
    for number in range(MEMORY):
        assert ramp.target == 1
        ramp.update(0.5, 0.5, score=number / 10)
    assert ramp.target == pytest.approx(0.45)
    ramp.update(0.5, 0.5, score=9)
    again = SyncRamp(4, 0.75)
    again.load_state_dict(ramp.state_dict())
    assert again.target == ramp.target == pytest.approx(0.45)
    older = {name: value for name, value in ramp.state_dict().items() if name != "score"}
    again.load_state_dict(older)
    assert again.target == 1


def test_one_lucky_step_does_not_open_it() -> None:
    ramp = SyncRamp(4, 0.75)
    factors(ramp, 1.0, 1.0, MEMORY)
    assert factors(ramp, 0.1, 0.1, 1) == [0]
    assert factors(ramp, 0.1, 0.1, 3)[-1] > 0, "but a mean does"


@pytest.mark.parametrize(
    ("true", "made", "means", "advice"),
    [
        (0.98, 0.97, "its mean is 0.980 on true pairs and 0.970 on generated pairs,", "`lawdnet inspect DATASET`"),
        (0.98, 0.5, "its mean is 0.980 on true pairs,", "does not recognise true pairs. Train it longer"),
        (0.5, 0.8, "its mean is 0.800 on generated pairs,", "Train the frame stages longer"),
    ],
)
def test_a_ramp_that_never_starts_says_so_once(true: float, made: float, means: str, advice: str) -> None:
    told: list[str] = []
    ramp = SyncRamp(4, 0.75, 30, told.append)
    factors(ramp, true, made, 29)
    assert not told
    factors(ramp, true, made, 1)
    (text,) = told
    assert text.startswith(f"the sync loss still does not count after 30 steps: {means}")
    assert "must be below sync_below (0.75; chance is 1)" in text
    assert advice in text
    assert "--set sync_below=" in text
    again = SyncRamp(4, 0.75, 30, told.append)
    again.load_state_dict(ramp.state_dict())
    factors(again, true, made, 100)
    assert len(told) == 1, "nor after resuming"


def test_a_ramp_that_starts_or_is_not_watched_says_nothing() -> None:
    told: list[str] = []
    factors(SyncRamp(4, 0.75, MEMORY, told.append), 0.5, 0.5, 100)
    factors(SyncRamp(4, 0.75, 2, told.append), 0.5, 0.5, 100)
    factors(SyncRamp(4, 0.75, 0, told.append), 0.98, 0.98, 100)
    factors(SyncRamp(0, 0.75, 5, told.append), 0.98, 0.98, 100)
    assert not told
    factors(SyncRamp(4, 0.75, 2, told.append), 0.98, 0.98, 100)
    assert "after 10 steps" in told[0]


def test_without_steps_it_is_open_from_the_first() -> None:
    ramp = SyncRamp(0, 0.75)
    assert ramp.factor == 1
    assert not ramp.is_waiting
    ramp.update(0.1, 0.1, score=0.3)
    assert ramp.target == 1


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


def test_the_bound_holds_the_share_and_not_more() -> None:
    bound = SyncBound(0.25)
    assert bound.factor(100.0) == 1, "nothing is known yet"
    bound.update(4.0, 9.0)  # norms 2 and 3
    for weight in (0.0, 0.1, 0.5):
        assert bound.factor(weight) == 1, "0.5 · 2 is a quarter of 1 + 3"
    for weight in (0.6, 1.0, 50.0):
        sync = weight * bound.factor(weight) * 2
        assert sync / (sync + 3) == pytest.approx(0.25)


def test_a_share_of_one_and_a_lack_of_others_bind_nothing() -> None:
    free, alone = SyncBound(1.0), SyncBound(0.25)
    free.update(4.0, 9.0)
    alone.update(4.0, 0.0)
    assert free.factor(1e6) == alone.factor(1e6) == 1


def test_the_bound_follows_a_mean_and_passes_over_what_is_not_finite() -> None:
    bound = SyncBound(0.5)
    for _ in range(50):
        bound.update(1.0, 1.0)
    bound.update(101.0, 1.0)
    assert bound.factor(1.0) == pytest.approx(11**-0.5), "a tenth of one step"
    before = bound.state_dict()
    for sync, rest in ((float("inf"), 1.0), (1.0, float("nan"))):
        bound.update(sync, rest)
    assert bound.state_dict() == before
    again = SyncBound(0.5)
    again.load_state_dict(before)
    assert again.factor(1.0) == bound.factor(1.0)
