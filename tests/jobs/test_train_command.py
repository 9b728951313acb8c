"""`lawdnet train`: its options, its summary, and the whole command on a tiny run in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from lawdnet.storage import write_json
from lawdnet.training.config import TrainConfig
from lawdnet.training.options import RunOptions
from tests.support.small_datasets import make_dataset

runner = CliRunner()
SMALL = ["base_channels=4", "sync_channels=4", "disc_channels=4", "disc_max_channels=8", "warp_grid=4", "key_points=2",
         "stages.mouth_px=32", "stages.batch_size=2", "stages.samples_per_segment=2", "stages.epochs_constant=1",
         "stages.epochs_decay=0"]  # fmt: skip
TINY = [word for setting in SMALL for word in ("--set", setting)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("grey") / "dataset"
    make_dataset(root, {"a": [{}] * 2, "val_b": [{}]})
    return root


def test_the_whole_command(dataset: Path, tmp_path: Path) -> None:
    command = ["train", str(dataset), "--out", str(tmp_path / "run"), "--preset", "small", *TINY, "--workers", "0"]
    answer = runner.invoke(app, [*command, "--stages", "syncnet,frame_32", "--save-every-steps", "1", "--json"])
    assert answer.exit_code == 0, answer.output
    content = json.loads(answer.stdout)
    assert content["stages"]["frame_32"]["epochs"] == 1
    assert content["stages"]["frame_32"]["validation"]["psnr"] > 0
    assert content["stages"]["syncnet"]["checkpoint"] == str(tmp_path / "run" / "syncnet" / "epoch_0001")
    assert "train 2/2 epochs: frame_32 1/1 loss" in answer.stderr
    held = runner.invoke(app, [*command, "--stages", "syncnet,frame_32,frame_64", "--gate", "accuracy>=0.99"])
    assert held.exit_code == 1
    assert "frame_64 waits: syncnet has not passed accuracy>=0.99: it is 0" in held.stderr
    assert len([line for line in held.stderr.splitlines() if line.startswith("error:")]) == 1


def test_options_reach_the_pipeline(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[RunOptions] = []

    def fake(opened: Any, run: Path, config: TrainConfig, running: RunOptions, *, on_epoch: Any) -> None:
        seen.append(running)
        folder = run / "frame_64" / "epoch_0003_step_000005"
        write_json(folder / "meta.json", {"epoch": 3, "next_step": 5, "state_bytes": 0})
        write_json(folder / "metrics.json", {"mouth_correlation": 0.875})
        (folder / "state.pt").touch()

    monkeypatch.setattr("pipelines.train.train.train", fake)
    options = ["--workers", "1:4", "--gate", "mouth_correlation>=0.8", "--gate", "accuracy>=0.95", "--best", "psnr",
               "--validate-every", "2", "--save-every-epochs", "3", "--save-every-steps", "100", "--keep", "5",
               "--save-every", "90s", "--init", "old.pth", "--logger", "jsonl"]  # fmt: skip
    command = ["train", str(dataset), "--out", str(tmp_path), "--stages", "frame_64", *options]
    answer = runner.invoke(app, command)
    assert answer.exit_code == 0, answer.output
    (running,) = seen
    assert (running.workers.least, running.workers.most) == (1, 4)
    assert running.gates == ("mouth_correlation>=0.8", "accuracy>=0.95")
    assert (running.best, running.validate_every, running.save_every_epochs, running.save_every_steps) == (
        "psnr", 2, 3, 100
    )  # fmt: skip
    assert running.save_every == 90
    assert (running.keep_last, running.init, running.loggers) == (5, "old.pth", ("jsonl",))
    assert "3 epochs, mouth_correlation 0.875" in answer.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--workers", "4:2"], "not a range"),
        (["--workers", "many"], "neither N nor MIN:MAX"),
        (["--gate", "psnr>=30"], "ignores the audio"),
        (["--best", "beauty"], "unknown metric"),
        (["--logger", "paper"], "choose from jsonl, wandb, tensorboard"),
        (["--keep", "0"], "--keep"),
        (["--save-every", "soon"], "'soon' is no time; write 30s, 5m or 1h"),
    ],
)
def test_wrong_usage_is_2(options: list[str], words: str, dataset: Path, tmp_path: Path) -> None:
    answer = runner.invoke(app, ["train", str(dataset), "--out", str(tmp_path / "run"), *options],
                           env={"COLUMNS": "200"})  # fmt: skip
    assert answer.exit_code == 2
    assert words in answer.output
    assert not (tmp_path / "run").exists()
