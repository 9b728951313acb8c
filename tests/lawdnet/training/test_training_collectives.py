"""Two and three ranks with torch.distributed: one global batch, whoever holds which part of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lawdnet.training.collectives import find_collectives
from lawdnet.training.loop import to_batch
from lawdnet.training.speed import OwnTime, SpeedMeter
from lawdnet.training.steps import NonFiniteLoss, Step
from lawdnet.training.stragglers import IN_A_ROW, RankClock, RankTime, Stragglers
from lawdnet.types import TrainBatch
from pipelines.train.elastic import weigh
from tests.support.tiny_training import CPU, apart, arrays, assert_same, batch_of, make_step, tiny, weights

NAMES = ("syncnet", "frame_32", "clip_96")
STEPS = 3
SLOW = 0.4
UNEVEN = (2, 1, 1)
"""Shares of three workers for four virtual ranks."""
LOUD = ("sync_ramp=0", "clip_96.weights.sync=100")
"""So that the sync loss must be held back."""


def rank_main(rank: int, folder: str) -> None:
    """Everything two ranks are asked at once, as starting processes is what takes the time."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    for name in NAMES:
        found[name] = train(name, rank)
        found[f"{name}/accumulated"] = train(name, rank, accumulate=2)
    found["poisoned"] = poisoned(rank)
    collectives = find_collectives(CPU)
    found["agree"] = collectives.agree(torch.tensor([rank == 1, False]))
    found["mean"] = collectives.mean(torch.tensor([rank, 7.0]))
    found["gather"] = collectives.gather(torch.tensor([[rank, 7]]))
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def uneven_main(rank: int, folder: str) -> None:
    """Three ranks that share four batches."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(UNEVEN))
    collectives = find_collectives(CPU, UNEVEN, is_alike=False)

    def wrap(network: nn.Module) -> nn.Module:
        return weigh(DistributedDataParallel(network), collectives.weight)

    found: dict[str, Any] = {}
    for name in NAMES:
        config = tiny(*LOUD)
        stage = config.stage(name)
        step = make_step(config, stage, wrap, collectives=collectives)
        numbers = range(4)[collectives.mine(4)]
        for index in range(STEPS):
            values = step(*(batch_of(stage, 4 * index + number) for number in numbers))
            if not index:
                found[f"{name}/gradients"] = gradients(step)
        found[name] = weights(step)
        found[f"{name}/values"] = values
    found["weight"] = collectives.weight
    found["times"] = times_with_a_slow_rank(rank)
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def times_with_a_slow_rank(rank: int) -> RankTime:
    """Five steps, in which the last rank takes SLOW seconds longer before its gradients."""
    config, own = tiny(), OwnTime(CPU)
    stage = config.stage("frame_32")
    step = make_step(config, stage, lambda network: weigh(DistributedDataParallel(network), 1 / 3, own.mark))
    clock = RankClock(rank, f"host{rank}", 1)
    meter = SpeedMeter(CPU, clock.add, own)
    for index in range(5):
        with meter.computing(2):
            time.sleep(SLOW if rank == 2 else 0)
            step(batch_of(stage, index))
        if not index:
            clock.take()  # the first one warms up
    return clock.take()


def gradients(step: Step) -> dict[str, torch.Tensor]:
    """The gradients of the last step, over their largest value in each network."""
    found: dict[str, torch.Tensor] = {}
    for name, network in step.networks.items():
        most = max(float(p.grad.abs().max()) for p in network.parameters() if p.grad is not None)
        found |= {f"{name}.{k}": p.grad / most for k, p in network.named_parameters() if p.grad is not None}
    return found


def wrap(network: nn.Module) -> nn.Module:
    return DistributedDataParallel(network)


def train(name: str, rank: int, accumulate: int = 1) -> dict[str, torch.Tensor]:
    config = tiny(*LOUD)
    stage = config.stage(name)
    step = make_step(config, stage, wrap)
    for index in range(STEPS):
        step(*(batch_of(stage, number) for number in share(index, rank, accumulate)))
    return weights(step)


def share(step: int, rank: int, accumulate: int) -> range:
    """Numbers of a rank's batches in a step: with both ranks, 2·accumulate in a row."""
    first = 2 * accumulate * step + accumulate * rank
    return range(first, first + accumulate)


def poisoned(rank: int) -> tuple[str, bool, bool]:
    """One rank's batch is not finite: both stop, nothing has moved, and both can go on."""
    config = tiny()
    stage = config.stage("frame_32")
    step = make_step(config, stage, wrap)
    before = weights(step)
    raw = arrays(0, rank, stage)
    if rank == 1:
        raw["audio"] = raw["audio"] * torch.nan
    try:
        step(to_batch(raw, CPU))
        text = "no error"
    except NonFiniteLoss as error:
        text = str(error)
    generator = [k for k in before if k.startswith("generator")]
    still = all(torch.equal(weights(step)[k], before[k]) for k in generator)
    step(batch_of(stage, rank))
    return text, still, not all(torch.equal(weights(step)[k], before[k]) for k in generator)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(rank_main, (str(folder),), nprocs=2, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("uneven")
    mp.start_processes(uneven_main, (str(folder),), nprocs=len(UNEVEN), start_method="spawn")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(len(UNEVEN))]


@pytest.mark.parametrize("name", NAMES)
def test_three_ranks_with_four_batches_learn_what_one_does(name: str, uneven: list[dict[str, Any]]) -> None:
    """Each batch counts the same, whoever computes it."""
    config = tiny(*LOUD)
    stage = config.stage(name)
    alone = make_step(config, stage)
    start = weights(alone)
    for index in range(STEPS):
        values = alone(*(batch_of(stage, 4 * index + number) for number in range(4)))
        if not index:
            assert_same(gradients(alone), uneven[0][f"{name}/gradients"], 1e-6)
    for found in uneven[1:]:
        assert_same(uneven[0][name], found[name], 0)
    assert apart(weights(alone), uneven[0][name], start) < 0.01
    means = {key: sum(found["weight"] * found[f"{name}/values"][key] for found in uneven) for key in values}
    assert means == pytest.approx(values, rel=1e-4)


def test_a_slow_rank_is_named(uneven: list[dict[str, Any]]) -> None:
    """All ranks take equally long for a step: what differs is when they begin to wait."""
    times = [found["times"] for found in uneven]
    assert times[2].own > SLOW
    assert max(time.own for time in times[:2]) < times[2].own - SLOW / 2
    stragglers = Stragglers()
    told = [stragglers.update(times) for _ in range(IN_A_ROW + 2)]
    assert [len(texts) for texts in told] == [0] * (IN_A_ROW - 1) + [1, 0, 0], "once"
    assert told[IN_A_ROW - 1][0].startswith("rank 2 on host2 is slow, and all others wait for it: 0.")


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_learn_what_one_does_from_the_same_global_batch(
    name: str, accumulate: int, ranks: list[dict[str, Any]]
) -> None:
    config = tiny(*LOUD)
    stage = config.stage(name)
    alone = make_step(config, stage)
    start = weights(alone)
    for index in range(STEPS):
        batches: list[TrainBatch] = [batch_of(stage, n) for rank in (0, 1) for n in share(index, rank, accumulate)]
        alone(*batches)
    key = name if accumulate == 1 else f"{name}/accumulated"
    assert_same(ranks[0][key], ranks[1][key], 0)
    assert apart(weights(alone), ranks[0][key], start) < 0.01


def test_a_rank_by_itself_learns_something_else(ranks: list[dict[str, Any]]) -> None:
    """Else the test above could not fail."""
    config = tiny("sync_ramp=0")
    stage = config.stage("syncnet")
    alone = make_step(config, stage)
    start = weights(alone)
    for index in range(STEPS):
        alone(batch_of(stage, share(index, 0, 1)[0]))
    assert apart(weights(alone), ranks[0]["syncnet"], start) > 0.5


def test_what_is_not_finite_on_one_rank_stops_both(ranks: list[dict[str, Any]]) -> None:
    texts, still, moved = zip(*(found["poisoned"] for found in ranks), strict=True)
    assert all(text.startswith("not finite: ") for text in texts)
    assert "image_discriminator" in texts[1]
    assert still == moved == (True, True)


def test_ranks_vote_and_see_each_other(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["agree"].tolist() == [True, False]
        assert found["gather"].tolist() == [[0, 7], [1, 7]]
        assert found["mean"].tolist() == [0.5, 7]


def test_alone_a_rank_answers_itself() -> None:
    collectives = find_collectives(CPU)
    assert (collectives.rank, collectives.shares, collectives.weight) == (0, (1,), 1)
    assert collectives.agree(torch.tensor([True, False])).tolist() == [True, False]
    with collectives.no_sync(nn.Linear(1, 1)):
        pass
