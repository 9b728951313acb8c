"""The results and progress that commands print, with the work itself replaced."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from lawdnet.data.config import FORMAT_VERSION
from lawdnet.data.manifest import MANIFEST
from lawdnet.inference.engine import Summary
from lawdnet.storage import write_json
from lawdnet.training.config import TrainConfig
from lawdnet.training.options import RunOptions

runner = CliRunner()


class FakeEngine:
    """Takes the arguments of `infer` and renders nothing."""

    asked: dict[str, Any]

    def __init__(self, checkpoint: Path, *, device: str, weights_dir: Path | None, **options: Any) -> None:
        FakeEngine.asked = {"checkpoint": checkpoint, "device": device, **options}

    def prepare(self, video: Path, source: Any, *, face: str) -> str:
        FakeEngine.asked |= {"video": video, "source": source.name}
        return "template"

    def render(
        self, template: str, audio: Path, out: Path, on_progress: Callable[[int, int], None], **options: Any
    ) -> Summary:
        FakeEngine.asked |= {"audio": audio, "out": out, **options}
        for done in (1, 2):
            on_progress(done, 2)
        return Summary(frames=2, passed_through=1, loops=1.0, seconds=0.5, fps=4.0)


@pytest.fixture
def infer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("lawdnet.inference.engine.Engine", FakeEngine)
    for name in ("run", "v.mp4", "v.csv", "a.wav"):
        (tmp_path / name).touch()
    return [
        "infer",
        str(tmp_path / "run"),
        "--video",
        str(tmp_path / "v.mp4"),
        "--audio",
        str(tmp_path / "a.wav"),
        "--out",
        str(tmp_path / "o.mp4"),
    ]


def test_infer(infer: list[str], tmp_path: Path) -> None:
    answer = runner.invoke(app, [*infer, "--device", "cpu"])
    assert answer.exit_code == 0, answer.output
    assert "2 frames in 0.5 s (4.0 frames/s)" in answer.stdout
    assert "without a face, left unchanged: 1 frame\n" in answer.stdout
    assert answer.stderr.startswith("infer 2/2 frames")
    paths = {"checkpoint": "run", "video": "v.mp4", "audio": "a.wav", "out": "o.mp4"}
    expected = {key: tmp_path / name for key, name in paths.items()}
    usual = {"region": "lower-face", "match_colour": True, "still_silence": False}
    assert FakeEngine.asked == {**expected, **usual, "device": "cpu", "source": "openface"}


def test_infer_passes_its_options_on(infer: list[str]) -> None:
    changed = ["--region", "mouth", "--no-match-colour", "--still-silence"]
    assert runner.invoke(app, [*infer, *changed]).exit_code == 0
    wanted = {"region": "mouth", "match_colour": False, "still_silence": True}
    assert {name: FakeEngine.asked[name] for name in wanted} == wanted
    refused = runner.invoke(app, [*infer, "--region", "nose"])
    assert refused.exit_code == 2
    assert "region: 'nose', expected one of lower-face, mouth" in refused.stderr


def test_infer_as_json(infer: list[str], tmp_path: Path) -> None:
    content = json.loads(runner.invoke(app, [*infer, "--json"]).stdout)
    assert (content["out"], content["frames"], content["passed_through"]) == (str(tmp_path / "o.mp4"), 2, 1)


def test_infer_lists_the_landmark_sources(infer: list[str]) -> None:
    answer = runner.invoke(app, [*infer, "--landmarks", "guess"])
    assert answer.exit_code == 2
    assert "unknown source 'guess'; choose from" in answer.stderr


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_json(tmp_path / "dataset" / MANIFEST, {"format_version": FORMAT_VERSION})
    return tmp_path / "dataset"


def test_train_counts_epochs_over_all_stages(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(opened: Any, run: Path, config: TrainConfig, running: RunOptions, *, on_epoch: Any) -> None:
        assert (running.workers.most, running.gpu) == (2, False)
        for stage in config.stages:
            folder = run / stage.name / f"epoch_{stage.epochs:04d}"
            write_json(folder / "meta.json", {"epoch": stage.epochs, "state_bytes": 0})
            (folder / "state.pt").touch()
            (run / stage.name / "metrics.jsonl").write_text('{"kind": "epoch", "total": 0.25}\n', encoding="utf8")
        # the first stage was trained before, the second resumes after its first epoch
        for epoch in range(2, config.stages[1].epochs + 1):
            on_epoch(config.stages[1], {"epoch": epoch, "total": 0.5, "steps_per_second": 3.0})

    monkeypatch.setattr("pipelines.train.train.train", fake)
    run = tmp_path / "run"
    command = ["train", str(dataset), "--out", str(run), "--preset", "small", "--stages", "syncnet, frame_32"]
    settings = [
        "--set",
        "syncnet.epochs_constant=1",
        "--set",
        "stages.epochs_decay=0",
        "--set",
        "frame_32.epochs_constant=3",
    ]
    answer = runner.invoke(app, [*command, *settings, "--workers", "2"])
    assert answer.exit_code == 0, answer.output
    first, last = answer.stderr.splitlines()
    assert first.startswith("train 3/4 epochs: frame_32 2/3 loss 0.5000, 3.0 steps/s, about ")
    assert last == "train 4/4 epochs: frame_32 3/3 loss 0.5000, 3.0 steps/s"
    assert f"{run}/frame_32/epoch_0003" in answer.stdout
    assert "loss 0.2500" in answer.stdout
    assert "lawdnet infer" in answer.stdout
    content = json.loads(runner.invoke(app, [*command, *settings, "--workers", "2", "--json"]).stdout)
    assert content["stages"]["frame_32"]["epochs"] == 3


def test_train_names_the_upgrade_of_an_older_format(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(*_: Any, **__: Any) -> None:
        raise ValueError("stopped")

    monkeypatch.setattr("pipelines.train.train.train", fake)
    write_json(dataset / MANIFEST, {"format_version": 2})
    answer = runner.invoke(app, ["train", str(dataset), "--out", str(tmp_path / "run")])
    text = f"note: {dataset} has dataset format 2; small stages draw faster after: lawdnet upgrade {dataset}"
    assert answer.stderr.splitlines() == [text, "error: stopped"]


def test_a_failing_worker_is_one_line(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.train import WorkerGroupError

    def fake(*_: Any, **__: Any) -> None:
        raise WorkerGroupError("Traceback (most recent call last): …", {0: ValueError("the loss is not finite")})

    monkeypatch.setattr("pipelines.train.train.train", fake)
    answer = runner.invoke(app, ["train", str(dataset), "--out", str(tmp_path / "run")])
    assert (answer.exit_code, answer.stderr) == (1, "error: the loss is not finite\n")


def test_a_missing_gpu(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    answer = runner.invoke(app, ["train", str(dataset), "--out", str(tmp_path / "run"), "--gpu"])
    assert answer.exit_code == 1
    assert "no CUDA GPU on this machine" in answer.stderr


def test_quickstart_shows_its_steps_and_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(out: Path, *, on_event: Callable[[str], None]) -> dict[str, Any]:
        on_event("drawing people")
        return {"mouth_correlation": 0.9, "seconds": {"synth": 1.5}, "report": str(out / "report.html")}

    curriculum = SimpleNamespace(quickstart=fake)
    monkeypatch.setattr("pipelines.workflows.quickstart", curriculum, raising=False)
    monkeypatch.setitem(sys.modules, "pipelines.workflows.quickstart", curriculum)
    answer = runner.invoke(app, ["quickstart", "--out", str(tmp_path)])
    assert answer.exit_code == 0, answer.output
    assert "drawing people" in answer.stderr
    assert "mouth correlation  0.900" in answer.stdout
    assert f"{tmp_path}/report.html" in answer.stdout


def test_ctrl_c_in_ray_train_is_130(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(*_: Any, **__: Any) -> None:
        raise SystemExit(0)

    monkeypatch.setattr("pipelines.train.train.train", fake)
    answer = runner.invoke(app, ["train", str(dataset), "--out", str(tmp_path / "run")])
    assert answer.exit_code == 130
    assert "run the same command again" in answer.stderr
