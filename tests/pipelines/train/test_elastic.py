"""The number of workers and what is learnt: virtual ranks, weights, and workers that come and go."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from lawdnet.data.manifest import Dataset
from lawdnet.data.sampling import SampleSpec, batches_per_epoch
from lawdnet.training.collectives import Collectives, find_collectives
from lawdnet.training.loader import rank_batches
from lawdnet.training.position import Position
from lawdnet.training.stages import Stage
from lawdnet.training.virtual_ranks import (
    Merge,
    VirtualRanks,
    Workers,
    group_by_step,
    micro_batches_per_rank,
    share_of,
    shares,
    virtual_ranks_of,
)
from pipelines.train.elastic import scaling
from pipelines.train.train import train
from tests.support.runs import assert_same, grey, here, rows, tiny, weights

SPEC = SampleSpec(mouth_px=32, num_frames=1, batch_size=2, samples_per_segment=3, audio="mel", sync=None)
STAGE = Stage(name="frame_32", mouth_px=32, batch_size=2, samples_per_segment=2, epochs_constant=1, epochs_decay=0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return grey(tmp_path_factory.mktemp("grey") / "dataset")


@pytest.mark.parametrize(("text", "bounds"), [("1", (1, 1)), ("4", (4, 4)), ("1:4", (1, 4)), ("0", (0, 0))])
def test_numbers_of_workers(text: str, bounds: tuple[int, int]) -> None:
    workers = Workers.parse(text)
    assert (workers.least, workers.most) == bounds
    assert workers.is_elastic == (bounds[0] < bounds[1])


@pytest.mark.parametrize("text", ["", "four", "4:1", "0:2", "-1", "1:2:3", "1.5"])
def test_no_numbers_of_workers(text: str) -> None:
    with pytest.raises(ValueError, match="workers: "):
        Workers.parse(text)


def test_virtual_ranks_are_shared_out_and_their_number_stays() -> None:
    for count in range(1, 9):
        for world in range(1, count + 1):
            found = [share_of(rank, world, count) for rank in range(world)]
            assert sorted(rank for share in found for rank in share) == list(range(count))
            sizes = [len(share) for share in found]
            assert max(sizes) - min(sizes) <= 1
            assert shares(world, count) == tuple(sizes)
    assert shares(3, 4) == (2, 1, 1)
    assert [list(share_of(rank, 2, 4)) for rank in range(2)] == [[0, 1], [2, 3]], "what is merged is the same for all"
    assert Collectives(rank=1, shares=shares(3, 4)).weight == 0.25
    four = VirtualRanks(count=8, split=2)
    assert virtual_ranks_of(STAGE, Workers(1, 4), 1, 99) == virtual_ranks_of(STAGE, Workers(4, 4), 1, 99) == four
    assert virtual_ranks_of(STAGE, Workers(1, 1), 1, 99) == VirtualRanks(count=1)
    assert virtual_ranks_of(STAGE, Workers(1, 4), 1, 7) == VirtualRanks(count=4), "a segment for each"
    assert virtual_ranks_of(STAGE, Workers(1, 4), 2, 99) == VirtualRanks(count=4), "windows stay together"
    assert Workers(2, 8).at_most(3) == Workers(2, 3)
    fixed = Stage(**{**vars(STAGE), "global_batch": 6, "accumulate": 5})
    for workers in (Workers(0, 0), Workers(1, 4), Workers(64, 64)):
        assert virtual_ranks_of(fixed, workers, 1, 99) == VirtualRanks(count=6, split=2)
    assert micro_batches_per_rank(fixed) == 1
    asked = scaling(Workers(1, 4), gpu=False)
    assert (asked.num_workers, asked.elasticity_enabled) == ((1, 4), True)
    assert scaling(Workers(2, 2), gpu=True).num_workers == 2


def test_every_number_of_workers_draws_the_same(dataset: Dataset) -> None:
    """Three virtual ranks on one, two and three workers: the same batches in the same steps, every segment as often."""
    segments = dataset.segments("train")
    found: list[dict[tuple[int, int], list[list[str]]]] = []
    for world in (1, 2, 3):
        steps: dict[tuple[int, int], list[list[str]]] = {}
        for rank in range(world):
            stream = rank_batches(
                segments,
                SPEC,
                seed=3,
                rank=rank,
                world=world,
                stored_width=80,
                epochs=2,
                virtual_ranks=3,
            )
            for batch in chain.from_iterable(stream):
                steps.setdefault((int(batch["epoch"]), int(batch["step"])), []).append(batch["segment_ids"].tolist())
        found.append({position: sorted(batches) for position, batches in steps.items()})
    assert found[0] == found[1] == found[2]
    count = batches_per_epoch(len(segments), 3, SPEC)
    assert sorted(found[0]) == [(epoch, step) for epoch in range(2) for step in range(count)]
    assert all(len(batches) == 3 for batches in found[0].values())
    seen = {name for (epoch, _), batches in found[0].items() if epoch == 1 for ids in batches for name in ids}
    assert seen == {ref.segment_id for ref in segments}


def test_a_position_in_an_epoch_is_one_for_every_number_of_workers(dataset: Dataset) -> None:
    segments = dataset.segments("train")
    for world in (1, 2, 3):
        stream = rank_batches(
            segments,
            SPEC,
            seed=3,
            rank=0,
            world=world,
            stored_width=80,
            epochs=2,
            start=Position(1, 2),
            virtual_ranks=3,
        )
        first = next(stream)[0]
        assert (int(first["epoch"]), int(first["step"])) == (1, 2)


@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 1), (1, 3), (2, 3)])
def test_batches_are_gathered_into_steps_from_any_position(ranks: int, accumulate: int) -> None:
    """Five batches of each virtual rank in an epoch: the last of two steps is short if each takes three."""
    count, epochs = 5, 2

    def batches(first: int) -> Iterator[dict[str, np.ndarray]]:
        for epoch in range(epochs):
            for index in range(first if epoch == 0 else 0, count):
                yield from [
                    {"epoch": np.array(epoch), "index": np.array(index), "rank": np.array(r)} for r in range(ranks)
                ]

    def grouped(start: Position) -> list[list[tuple[int, ...]]]:
        steps = group_by_step(
            batches(start.step * accumulate),
            start=start,
            epochs=epochs,
            batches_per_rank=count,
            accumulate=accumulate,
            ranks=ranks,
        )
        return [[(int(b["epoch"]), int(b["step"]), int(b["rank"])) for b in step] for step in steps]

    whole = grouped(Position())
    for number, step in enumerate(whole):
        epoch, index = divmod(number, len(whole) // epochs)
        size = min(accumulate, count - index * accumulate)
        assert step == [(epoch, index, rank) for _ in range(size) for rank in range(ranks)]
    assert grouped(Position(0, 1)) == whole[1:]
    shifted = group_by_step(batches(1), start=Position(), epochs=1, batches_per_rank=count, accumulate=1, ranks=ranks)
    with pytest.raises(AssertionError, match="lost its position"):
        next(shifted)


def test_alone_a_worker_hands_round_nothing() -> None:
    rows_22 = torch.arange(4.0).view(2, 2)
    alone = find_collectives(torch.device("cpu"), shares(1, 2))
    assert torch.equal(alone.gather(rows_22), rows_22)
    assert (alone.weight, alone.mine(2)) == (1, slice(0, 2))


def test_63_of_64_workers_are_an_eighth_slower() -> None:
    stage = Stage(**{**vars(STAGE), "batch_size": 16})
    found = virtual_ranks_of(stage, Workers(8, 64), 1, 10_000)
    assert found == VirtualRanks(count=512, split=8)
    for world, most in ((64, 8), (63, 9), (57, 9), (56, 10), (32, 16)):
        merge = Merge(shares=shares(world, found.count), split=found.split, accumulate=1)
        assert max(merge.shares) == most
        assert merge.count(most) == -(-most // 9), "up to 18 samples are one batch"
    assert Merge(shares=(9, 8), split=8, accumulate=1).is_alike
    assert not Merge(shares=(10, 9), split=8, accumulate=1).is_alike
    assert not Merge(shares=(2, 1), split=1, accumulate=1).is_alike


def test_what_virtual_ranks_bring_is_merged_in_order() -> None:
    merge = Merge(shares=(5, 4), split=2, accumulate=1)
    brought = [{"audio": np.full((2, 3), i), "step": np.array(7)} for i in range(5)]
    found = merge(brought)
    assert [one["audio"][:, 0].tolist() for one in found] == [[0, 0], [1, 1, 2, 2], [3, 3, 4, 4]]
    assert all(one["step"] == 7 for one in found)
    assert Merge(shares=(1,), split=1, accumulate=1)(brought[:1])[0] is brought[0]


def test_two_workers_learn_what_one_learns(dataset: Dataset, tmp_path: Path, ray_session: None) -> None:
    """The same global batch: three virtual ranks, two for the first worker, and six, three for each."""
    settings = ["syncnet.global_batch=6", "frame_32.global_batch=6", "syncnet.lr=1e-4"]
    config = tiny(["syncnet", "frame_32"], *settings)
    train(dataset, tmp_path / "one", config, here())
    train(dataset, tmp_path / "two", config, here(workers=Workers(2, 2), validate_every=1))
    for stage in ("syncnet", "frame_32"):
        assert [row["workers"] for row in rows(tmp_path / "two", stage, "epoch")] == [2]
        one, two = (weights(tmp_path / name, stage)["networks"] for name in ("one", "two"))
        assert_same(one, two, 1e-4)
        for kind in ("step", "epoch"):  # what is logged is of all workers, not of the first
            (alone, *_), (shared, *_) = (rows(tmp_path / name, stage, kind) for name in ("one", "two"))
            losses = alone.keys() - {"kind", "time", "workers", "seconds", "data_wait", "save_wait", "memory_gb"}
            for name in {name for name in losses if not name.endswith("_per_second")}:
                assert shared[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-4), (kind, name)
        (shared,) = rows(tmp_path / "two", stage, "epoch")
        in_a_step = shared["samples_per_second"] / shared["steps_per_second"]
        assert in_a_step == pytest.approx(6, rel=0.1)  # the global batch
