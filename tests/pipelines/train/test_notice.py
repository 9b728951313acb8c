"""Checkpoints that come by the clock, and those that come because somebody asks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.train.v2._internal.execution.controller.state import ResizingState, RunningState

from lawdnet.data.manifest import Dataset
from lawdnet.models.saved import META
from lawdnet.training.checkpoint_store import CheckpointStore, position_of
from lawdnet.training.position import Position
from pipelines.train import notice
from pipelines.train.notice import REQUEST, Request, SaveBeforeResize, request_checkpoint
from pipelines.train.train import train
from pipelines.train.worker import Worker
from tests.support.runs import TINY, assert_same, grey, here, rows, tiny, weights

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return grey(tmp_path_factory.mktemp("grey") / "dataset")


def test_checkpoints_come_by_the_clock_and_change_nothing(dataset: Dataset, tmp_path: Path) -> None:
    config = tiny(["frame_32"], "frame_32.epochs_constant=2")
    train(dataset, tmp_path / "often", config, here(save_every=1e-6, keep_last=99))
    found = [position_of(folder) for folder in CheckpointStore(tmp_path / "often" / "frame_32").complete()]
    assert found[-1] == Position(2)
    assert len(found) > 4, "as often as one is written before the next begins"
    assert found == sorted(set(found))
    train(dataset, tmp_path / "never", config, here(save_every=0, keep_last=99))
    left = [position_of(folder) for folder in CheckpointStore(tmp_path / "never" / "frame_32").complete()]
    assert left == [Position(1), Position(2)]
    assert_same(weights(tmp_path / "often", "frame_32"), weights(tmp_path / "never", "frame_32"))
    for row in rows(tmp_path / "often", "frame_32", "epoch"):
        assert 0 < row["save_wait"] < 1


def test_a_request_is_answered_by_a_checkpoint(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One within the epoch, asked for by another thread, which then goes on."""
    asked = threading.Event()
    answers: list[bool] = []
    folder = tmp_path / "frame_32"
    whole = Worker._log_step

    def slow(self: Worker, row: dict[str, float]) -> None:
        whole(self, row)
        if not asked.is_set():
            asked.set()
            time.sleep(1.5)  # while which the request is seen

    monkeypatch.setattr(Worker, "_log_step", slow)
    monkeypatch.setattr("pipelines.train.saver.HOLD_SECONDS", 0)

    def ask() -> None:
        assert asked.wait(60)
        answers.append(request_checkpoint(folder))

    thread = threading.Thread(target=ask)
    thread.start()
    train(dataset, tmp_path, tiny(["frame_32"]), here(keep_last=99))
    thread.join(60)
    assert answers == [True]
    assert not (folder / REQUEST).exists()
    assert position_of(CheckpointStore(folder).complete()[0]) == Position(0, 2), "after the step that followed"


def test_a_request_without_an_answer_ends(tmp_path: Path) -> None:
    assert not request_checkpoint(tmp_path, seconds=0.3)
    assert not (tmp_path / REQUEST).exists()


def test_only_the_request_that_was_seen_is_answered(tmp_path: Path) -> None:
    request = Request(tmp_path)
    (tmp_path / REQUEST).write_text("first")
    request.answer("")
    assert request.content == "first"
    (tmp_path / REQUEST).write_text("second")
    request.answer("first")
    assert (tmp_path / REQUEST).read_text() == "second"
    request.answer("second")
    assert not (tmp_path / REQUEST).exists()


def test_workers_save_before_ray_resizes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(notice, "request_checkpoint", lambda folder: asked.append(str(folder)) or True)
    callback = SaveBeforeResize(str(tmp_path))
    callback.after_controller_state_update(RunningState(), RunningState())
    assert not asked
    callback.after_controller_state_update(RunningState(), ResizingState(None))
    assert asked == [str(tmp_path)]


def test_a_node_that_leaves_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not notice.is_leaving(), "without Ray there is none"
    told = SimpleNamespace(preemption_context=SimpleNamespace(preemption_info=object()))
    monkeypatch.setattr(notice, "get_train_context", lambda: told)
    assert notice.is_leaving()
    told.preemption_context.preemption_info = None
    assert not notice.is_leaving()


def test_a_command_that_is_told_to_stop_saves_first(dataset: Dataset, tmp_path: Path) -> None:
    """SIGTERM: nothing is repeated afterwards."""
    settings = ["frame_32.epochs_constant=1", "frame_32.samples_per_segment=200"]
    words = [word for setting in [*TINY, *settings] for word in ("--set", setting)]
    run = tmp_path / "run"
    options = ["--out", str(run), "--preset", "small", "--stages", "frame_32", "--workers", "0"]
    command = [sys.executable, "-m", "jobs.train", str(dataset.root), *options, "--validate-every", "0", *words]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not (run / "frame_32" / "metrics.jsonl").exists() or not rows(run, "frame_32", "step"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.terminate()
    assert process.wait(60) == 130
    (saved,) = CheckpointStore(run / "frame_32").complete()
    assert (saved / META).exists()
    train(dataset, run, tiny(["frame_32"], *settings), here())
    (resumed,) = rows(run, "frame_32", "resume")
    assert resumed["step"] > 0
    assert resumed["repeated_steps"] == 0
