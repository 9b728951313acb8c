"""Resuming a stage, in this process: at an epoch, within one, and past damaged checkpoints."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lawdnet.data.manifest import Dataset
from lawdnet.models.saved import META, STATE
from lawdnet.training.checkpoint_store import CheckpointStore, position_of
from lawdnet.training.config import TrainConfig
from lawdnet.training.position import Position
from pipelines.train.train import train
from pipelines.train.worker import Worker
from tests.support.runs import TINY, assert_same, grey, here, rows, tiny, weights


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return grey(tmp_path_factory.mktemp("grey") / "dataset")


def epochs(count: int, stage: str = "frame_32") -> TrainConfig:
    settings = ["clip_96.init_from=null", "clip_96.weights.sync=0"] if stage == "clip_96" else []
    # the rate falls in the last, so that a run that lost count of its epochs ends elsewhere
    return tiny([stage], f"{stage}.epochs_constant={count - 1}", f"{stage}.epochs_decay=1", *settings)


class Crash(RuntimeError):
    """What a test throws in the middle of an epoch."""


def crash_at(monkeypatch: pytest.MonkeyPatch, epoch: int, step: int) -> None:
    """The worker ends, as if killed, in that step; its driver sees it end."""
    whole = Worker.batches

    def batches(self: Worker, start: Position) -> Iterator[Any]:
        for batches in whole(self, start):
            if (int(batches[0]["epoch"]), int(batches[0]["step"])) == (epoch, step):
                raise Crash
            yield batches

    monkeypatch.setattr(Worker, "batches", batches)


@pytest.mark.parametrize("stage", ["frame_32", "syncnet", "clip_96"])
def test_a_stage_that_crashed_ends_as_if_it_had_not(
    dataset: Dataset, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = epochs(2, stage)
    train(dataset, tmp_path / "calm", config, here())
    with monkeypatch.context() as patch:
        crash_at(patch, 1, 5)
        with pytest.raises(Crash):
            train(dataset, tmp_path / "rough", config, here(save_every_steps=2))
    assert position_of(CheckpointStore(tmp_path / "rough" / stage).complete()[-1]) == Position(1, 4)
    train(dataset, tmp_path / "rough", config, here())
    assert_same(weights(tmp_path / "calm", stage), weights(tmp_path / "rough", stage))
    (resumed,) = rows(tmp_path / "rough", stage, "resume")
    assert (resumed["epoch"], resumed["step"], resumed["repeated_steps"]) == (1, 4, 2)


def test_a_position_among_several_virtual_ranks_is_kept(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker with two virtual ranks, two batches a step: positions count steps, not batches."""
    config = tiny(["frame_32"], "frame_32.epochs_constant=2", "frame_32.global_batch=4")
    train(dataset, tmp_path / "calm", config, here())
    with monkeypatch.context() as patch:
        crash_at(patch, 1, 3)
        with pytest.raises(Crash):
            train(dataset, tmp_path / "rough", config, here(save_every_steps=2))
    train(dataset, tmp_path / "rough", config, here())
    assert_same(weights(tmp_path / "calm", "frame_32"), weights(tmp_path / "rough", "frame_32"))
    (resumed,) = rows(tmp_path / "rough", "frame_32", "resume")
    assert (resumed["epoch"], resumed["step"], resumed["repeated_steps"]) == (1, 2, 2)
    assert (resumed["world"], resumed["virtual_ranks"]) == (1, 4)  # each batch is split in two


def test_a_position_among_accumulated_batches_is_kept(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven batches an epoch, three a step: the third step of an epoch has one, and positions count steps."""
    config = tiny(["frame_32"], "frame_32.epochs_constant=2", "frame_32.accumulate=3")
    train(dataset, tmp_path / "calm", config, here())
    with monkeypatch.context() as patch:
        crash_at(patch, 1, 2)
        with pytest.raises(Crash):
            train(dataset, tmp_path / "rough", config, here(save_every_steps=1, keep_last=9))
    found = [position_of(folder) for folder in CheckpointStore(tmp_path / "rough" / "frame_32").complete()]
    assert found == [Position(0, 1), Position(0, 2), Position(1, 0), Position(1, 1), Position(1, 2)]
    train(dataset, tmp_path / "rough", config, here())
    assert_same(weights(tmp_path / "calm", "frame_32"), weights(tmp_path / "rough", "frame_32"))
    (resumed,) = rows(tmp_path / "rough", "frame_32", "resume")
    assert (resumed["epoch"], resumed["step"], resumed["repeated_steps"]) == (1, 2, 1)
    assert [row["step"] for row in rows(tmp_path / "calm", "frame_32", "step")] == [0, 2, 0, 2]


def test_a_run_of_older_code_is_refused_and_can_be_a_parent(dataset: Dataset, tmp_path: Path) -> None:
    train(dataset, tmp_path / "old", epochs(2), here())
    path = tmp_path / "old" / "run.json"
    content = json.loads(path.read_text())
    del content["format"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"old: was started by another version.*another --out, and add --init .*old"):
        train(dataset, tmp_path / "old", epochs(2), here())
    train(dataset, tmp_path / "new", epochs(2), here(init=str(tmp_path / "old")))
    assert CheckpointStore(tmp_path / "new" / "frame_32").position() == Position(2)


def test_epochs_in_parts_are_the_whole(dataset: Dataset, tmp_path: Path) -> None:
    def config(count: int) -> TrainConfig:
        return tiny(["frame_32"], f"frame_32.epochs_constant={count}")

    train(dataset, tmp_path / "whole", config(2), here())
    train(dataset, tmp_path / "parts", config(1), here())
    train(dataset, tmp_path / "parts", config(2), here())
    assert_same(weights(tmp_path / "whole", "frame_32"), weights(tmp_path / "parts", "frame_32"))
    (resumed,) = rows(tmp_path / "parts", "frame_32", "resume")
    assert (resumed["epoch"], resumed["step"], resumed["repeated_steps"]) == (1, 0, 0)


def test_a_crash_before_the_first_checkpoint_is_told(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        crash_at(patch, 0, 5)
        with pytest.raises(Crash):
            train(dataset, tmp_path, epochs(2), here())
    train(dataset, tmp_path, epochs(2), here())
    (resumed,) = rows(tmp_path, "frame_32", "resume")
    assert (resumed["epoch"], resumed["step"], resumed["repeated_steps"]) == (0, 0, 6)


def test_damaged_checkpoints_do_not_push_out_the_good_ones(dataset: Dataset, tmp_path: Path) -> None:
    """Two of the right size: the run resumes before them, and its next checkpoint is the newest."""
    train(dataset, tmp_path, epochs(3), here(keep_last=3))
    for epoch in (2, 3):
        path = tmp_path / "frame_32" / f"epoch_{epoch:04d}" / STATE
        path.write_bytes(bytes(path.stat().st_size))
    train(dataset, tmp_path, epochs(3), here(save_every_steps=2, keep_last=2))
    store = CheckpointStore(tmp_path / "frame_32")
    newest = store.newest_good()
    assert newest is not None
    assert newest.name == "epoch_0003"
    folder = tmp_path / "lone"
    for name in ("epoch_0001", "epoch_0005", "epoch_0006"):
        CheckpointStore(folder).save(name, fill)
    CheckpointStore(folder).save("epoch_0004_step_000100", fill)
    CheckpointStore(folder).tidy(2)
    assert [path.name for path in CheckpointStore(folder).complete()] == ["epoch_0001", "epoch_0004_step_000100"]


def fill(folder: Path) -> None:
    """A small checkpoint that is complete."""
    (folder / STATE).write_bytes(b"state")
    (folder / META).write_text(json.dumps({"state_bytes": 5}))


@pytest.mark.parametrize("damage", ["cut", "flipped", "half written"])
def test_a_damaged_newest_checkpoint_falls_back(
    dataset: Dataset, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def config(count: int) -> TrainConfig:
        return tiny(["frame_32"], f"frame_32.epochs_constant={count}")

    train(dataset, tmp_path / "calm", config(3), here())
    train(dataset, tmp_path / "rough", config(2), here())
    state = tmp_path / "rough" / "frame_32" / "epoch_0002" / "state.pt"
    content = bytearray(state.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    state.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    if damage == "half written":
        state.with_name("meta.json").unlink()
    with caplog.at_level(logging.WARNING):
        train(dataset, tmp_path / "rough", config(3), here())
    assert "epoch_0002: damaged" in caplog.text
    assert_same(weights(tmp_path / "calm", "frame_32"), weights(tmp_path / "rough", "frame_32"))


def test_what_is_kept(dataset: Dataset, tmp_path: Path) -> None:
    config = tiny(["frame_32"], "frame_32.epochs_constant=4")
    leftover = tmp_path / "frame_32" / ".epoch_0001.abc.tmp"
    leftover.mkdir(parents=True)
    train(dataset, tmp_path, config, here(save_every_steps=3, save_every_epochs=3, keep_last=3))
    assert [folder.name for folder in CheckpointStore(tmp_path / "frame_32").complete()] == [
        "epoch_0003_step_000003",
        "epoch_0003_step_000006",
        "epoch_0004",
    ]
    assert not leftover.exists()


def test_the_best_checkpoint_stays(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter([{"mouth_correlation": value, "psnr": 20.0} for value in (0.1, 0.7, float("nan"), 0.7, 0.3, 0.2)])
    monkeypatch.setattr("pipelines.train.validate.Validation.__call__", lambda self, network: next(figures))
    config = tiny(["frame_32"], "frame_32.epochs_constant=6")
    train(dataset, tmp_path, config, here(validate_every=1))
    store = CheckpointStore(tmp_path / "frame_32")
    assert [folder.name for folder in store.complete()] == ["epoch_0002", "epoch_0005", "epoch_0006"]
    assert store.best(["accuracy", "mouth_correlation"]) == tmp_path / "frame_32" / "epoch_0002"
    assert [row["mouth_correlation"] for row in rows(tmp_path, "frame_32", "validation")][:2] == [0.1, 0.7]


def test_a_killed_driver_resumes_with_the_same_command(dataset: Dataset, tmp_path: Path) -> None:
    """kill -9 of the command itself, within an epoch."""
    settings = ["frame_32.epochs_constant=2", "frame_32.samples_per_segment=40"]
    words = [word for setting in [*TINY, *settings] for word in ("--set", setting)]
    run = tmp_path / "rough"
    options = ["--out", str(run), "--preset", "small", "--stages", "frame_32", "--workers", "0"]
    options += ["--save-every-steps", "3", "--validate-every", "0", *words]
    command = [sys.executable, "-m", "jobs.train", str(dataset.root), *options]
    root = Path(__file__).resolve().parents[3]
    process = subprocess.Popen(command, cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not any((run / "frame_32").glob("epoch_0000_step_*/meta.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    train(dataset, run, tiny(["frame_32"], *settings), here())
    train(dataset, tmp_path / "calm", tiny(["frame_32"], *settings), here())
    assert_same(weights(tmp_path / "calm", "frame_32"), weights(run, "frame_32"))
    (resumed,) = rows(run, "frame_32", "resume")
    assert resumed["epoch"] == 0
    assert resumed["step"] >= 3


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's writer says `unexpected pos` if there is no room left."""

    def write(folder: Path) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 193728 vs 193648")

    with pytest.raises(RuntimeError, match="unexpected pos"):
        CheckpointStore(tmp_path).save("epoch_0001", write)
    monkeypatch.setattr("lawdnet.training.checkpoint_store.FULL_BYTES", 1 << 60)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}'"):
        CheckpointStore(tmp_path).save("epoch_0001", write)
