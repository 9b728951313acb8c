"""A run in an object store: checkpoints, metrics and images are uploaded, and training resumes from there."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from lawdnet.models.saved import read_state
from lawdnet.training.checkpoint_store import CheckpointStore, local_folder
from lawdnet.training.loggers import parse_jsonl
from lawdnet.training.position import Position
from pipelines.train.train import train
from tests.support.runs import assert_same, grey, here, tiny, weights
from tests.support.s3_server import S3Server


def test_a_run_in_s3_is_the_run_on_disk(s3: S3Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset, run = grey(tmp_path / "dataset"), s3.root / "runs" / "first"
    seen: list[int] = []

    def epochs(count: int) -> None:
        config = tiny(["frame_32"], f"frame_32.epochs_constant={count}")
        train(dataset, run, config, here(save_every_steps=3), on_epoch=lambda stage, row: seen.append(row["epoch"]))

    epochs(1)
    epochs(2)
    store = CheckpointStore(run / "frame_32")
    assert [folder.name for folder in store.complete()] == ["epoch_0001_step_000006", "epoch_0002"]
    (store.folder / "epoch_0002" / "state.pt").write_bytes(b"cut short")
    with caplog.at_level(logging.WARNING):
        epochs(3)
    assert "epoch_0002: damaged" in caplog.text
    assert seen == [1, 2, 2, 3]

    train(dataset, tmp_path / "run", tiny(["frame_32"], "frame_32.epochs_constant=3"), here())
    with local_folder(store.folder / "epoch_0003") as folder:
        assert_same(weights(tmp_path / "run", "frame_32"), read_state(folder))
    lines = parse_jsonl((store.folder / "metrics.jsonl").read_bytes())
    assert [row["epoch"] for row in lines if row["kind"] == "epoch"] == [1, 2, 2, 3]
    assert [(row["epoch"], row["step"]) for row in lines if row["kind"] == "resume"] == [(1, 0), (1, 6)]
    assert sorted(path.name for path in (store.folder / "samples").iterdir())[-1] == "epoch_0003.png"


def test_a_stage_starts_from_a_parent_in_s3(s3: S3Server, tmp_path: Path) -> None:
    dataset, run = grey(tmp_path / "dataset"), s3.root / "run"
    train(dataset, run, tiny(["frame_32", "frame_64"]), here())
    assert CheckpointStore(run / "frame_64").position() == Position(1, 0)
