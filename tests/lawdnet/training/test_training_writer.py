"""Checkpoints written beside training: one at a time, as the state was, and whole."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lawdnet.models.saved import META, STATE, read_state
from lawdnet.training import checkpoint
from lawdnet.training.checkpoint_store import CheckpointStore
from lawdnet.training.checkpoint_writer import CheckpointWriter
from lawdnet.training.options import parse_duration
from lawdnet.training.position import Position
from tests.support.tiny_training import LINEAGE, batch_of, make_step, tiny


def fill(folder: Path) -> None:
    (folder / STATE).write_bytes(b"state")
    (folder / META).write_text('{"state_bytes": 5}')


def held(gate: threading.Event) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        assert gate.wait(10)
        fill(folder)

    return write


def test_training_goes_on_while_one_is_written_and_the_next_waits(tmp_path: Path) -> None:
    tidied: list[int] = []
    store = CheckpointStore(tmp_path / "stage")
    writer = CheckpointWriter(store, lambda: tidied.append(len(store.complete())))
    gate = threading.Event()
    writer.save("epoch_0001", held(gate))
    assert writer.is_busy
    assert store.complete() == [], "whole or not at all"
    second = threading.Thread(target=writer.save, args=("epoch_0002", fill))
    second.start()
    second.join(0.2)
    assert second.is_alive(), "one at a time"
    gate.set()
    second.join(10)
    writer.close()
    assert [folder.name for folder in store.complete()] == ["epoch_0001", "epoch_0002"]
    assert tidied == [1, 2]


def test_what_cannot_be_written_is_told_by_the_next(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        raise OSError("no room")

    writer = CheckpointWriter(CheckpointStore(tmp_path), lambda: None)
    writer.save("epoch_0001", full)
    with pytest.raises(OSError, match="no room"):
        writer.save("epoch_0002", fill)
    writer.save("epoch_0003", full)
    with pytest.raises(OSError, match="no room"):
        writer.close()


@pytest.mark.parametrize("name", ["syncnet", "clip_96"])
def test_a_snapshot_does_not_follow_what_is_learnt_after_it(name: str, tmp_path: Path) -> None:
    """Networks, optimisers, running mean, ramp and random states stay as they were."""
    config = tiny("sync_ramp=8", "sync_below=4")
    stage = config.stage(name)
    step = make_step(config, stage)
    step(batch_of(stage, 0))
    checkpoint.save(tmp_path, step, stage, config, LINEAGE, position=Position(0, 1))
    wanted = read_state(tmp_path)
    taken = checkpoint.snapshot(step, Position(0, 1))
    step(batch_of(stage, 1))
    torch.rand(3)
    checkpoint.write(tmp_path, taken, stage, config, LINEAGE)
    assert_equal(read_state(tmp_path), wanted)
    checkpoint.save(tmp_path, step, stage, config, LINEAGE, position=Position(0, 1))
    with pytest.raises(AssertionError):
        assert_equal(read_state(tmp_path), wanted)


def assert_equal(found: object, wanted: object) -> None:
    if isinstance(wanted, dict):
        assert isinstance(found, dict)
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            assert_equal(found[key], value)
    elif isinstance(wanted, list | tuple):
        assert isinstance(found, list | tuple)
        for one, other in zip(found, wanted, strict=True):
            assert_equal(one, other)
    elif isinstance(wanted, torch.Tensor):
        assert torch.equal(torch.as_tensor(found), wanted)
    else:
        assert found == wanted


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("30s", 30), ("5m", 300), ("1.5h", 5400), ("0", 0)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5m", "5 d", "m"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="save_every"):
        parse_duration(text)
