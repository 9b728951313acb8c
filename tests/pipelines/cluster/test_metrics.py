"""The figures that Prometheus is told of: what they count, and that they arrive."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.metrics import Counter

from lawdnet.data.config import BuildConfig
from lawdnet.data.records import VideoRecord
from lawdnet.data.tally import Tally
from lawdnet.training.checkpoint_store import CheckpointStore, metrics_of
from lawdnet.training.loggers import METRICS as METRICS_FILE
from lawdnet.training.loggers import read_jsonl
from lawdnet.training.speed import StepTime
from pipelines.build.build import build
from pipelines.cluster import metrics
from pipelines.render.pairs import PairRecord
from pipelines.train.train import train
from tests.support.drawn_clip import copy
from tests.support.fragile import telling
from tests.support.runs import grey, here, tiny

Labels = frozenset[tuple[str, str]]
Series = dict[tuple[str, Labels], float]
LINE = re.compile(r"ray_(\w+)\{(.*)\} (\S+)")
LABEL = re.compile(r'(\w+)="([^"]*)"')
OWN = {"run", "stage", "rank", "status", "reason", "loss", "measure"}
SECONDS = 60.0
"""Ray sends every ten."""


def test_names_follow_the_conventions() -> None:
    for name, metric in metrics.METRICS.items():
        assert re.fullmatch(r"lawdnet_(build|train|render)_[a-z_]+", name)
        assert name.endswith("_total") == (metric.kind is Counter), name
        assert not re.search(r"_(ms|minutes|mb|gb|percent)", name), "base units"
        assert metric.text.endswith(".")
        assert set(metric.labels) <= OWN, "a label with many values is a series for each"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is recorded, instead of recording it."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(metrics, "record", lambda name, value=1.0, /, **labels: calls.append((name, value, labels)))
    return calls


def test_without_ray_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(metrics, "_made", made.append)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    metrics.record("lawdnet_render_frames_total", 5)
    assert not made


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_what_no_counter_takes_is_left_out(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(metrics, "_made", made.append)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    metrics.record("lawdnet_render_frames_total", value)
    assert not made


def test_a_failure_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def fail(name: str) -> None:
        tried.append(name)
        raise RuntimeError(name)

    monkeypatch.setattr(metrics, "_made", fail)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    metrics.record("lawdnet_render_frames_total", 5)
    metrics.record("lawdnet_render_frames_total", "many")  # type: ignore[arg-type]
    assert tried == ["lawdnet_render_frames_total"], "a value that is no number comes no further"


def test_labels_are_those_of_the_table() -> None:
    with pytest.raises(AssertionError, match="lawdnet_train_epoch"):
        metrics.record("lawdnet_train_epoch", 1, run="r")


def test_an_input_counts_what_was_done_this_time(told: list[Any]) -> None:
    tally = Tally(frames=75, segments=2)
    tally.seconds["crop"] = 1.5
    stored = VideoRecord(inputs=[], path="a", status="accepted", frames=1000, segments=20, step_seconds={"crop": 99.0})
    metrics.count_build_work(tally, is_accepted=stored.is_accepted)
    metrics.count_video(stored)
    assert told == [
        ("lawdnet_build_frames_total", 75, {}),
        ("lawdnet_build_segments_total", 2, {}),
        ("lawdnet_build_seconds_total", 1.5, {"stage": "crop"}),
        ("lawdnet_build_inputs_total", 1.0, {"status": "accepted", "reason": ""}),
    ]


def test_segments_of_a_rejected_input_were_not_written(told: list[Any]) -> None:
    metrics.count_build_work(Tally(frames=75, segments=2), is_accepted=False)
    assert ("lawdnet_build_segments_total", 0, {}) in told


def test_a_pair(told: list[Any]) -> None:
    names = {"video": "a.mp4", "speech": "b.wav", "out": "a--b.mp4"}
    metrics.count_pair(PairRecord(inputs=[], **names, status="rendered", frames=50, passed_through=3, seconds=2.5))
    assert told == [
        ("lawdnet_render_pairs_total", 1.0, {"status": "rendered", "reason": ""}),
        ("lawdnet_render_frames_total", 50, {}),
        ("lawdnet_render_seconds_total", 2.5, {}),
    ]


def test_rows_of_a_run(told: list[Any]) -> None:
    where = {"run": "r", "stage": "frame_32"}
    for row in (
        {"kind": "step", "epoch": 0, "step": 10, "total": 2.0},
        {"kind": "epoch", "epoch": 3, "workers": 2, "skipped": 1.0, "seconds": 8.0},
        {"kind": "validation", "epoch": 3, "psnr": 20.0, "truth_psnr": 99.0, "offset_at_+3": 5.0},
        {"kind": "alarm", "epoch": 3, "text": "not finite"},
        {"kind": "resume", "epoch": 3, "text": "goes on"},
        {"kind": "start", "device": "a CPU"},
    ):
        metrics.noted(row, **where)
    assert told == [
        ("lawdnet_train_loss", 2.0, where | {"loss": "total"}),
        ("lawdnet_train_epoch", 3, where),
        ("lawdnet_train_workers", 2, where),
        ("lawdnet_train_skipped_steps_total", 1.0, where),
        ("lawdnet_train_validation", 20.0, where | {"measure": "psnr"}),
        ("lawdnet_train_alarms_total", 1.0, where),
        ("lawdnet_train_resumes_total", 1.0, where),
    ]


def test_a_step_is_five_counters(told: list[Any]) -> None:
    where = {"run": "r", "stage": "frame_32", "rank": "0"}
    metrics.stepped(StepTime(waited=1.0, computed=10.0, own=8.0, samples=4), labels=where)
    assert told == [
        ("lawdnet_train_steps_total", 1.0, where),
        ("lawdnet_train_samples_total", 4, where),
        ("lawdnet_train_step_seconds_total", 10.0, where),
        ("lawdnet_train_own_seconds_total", 8.0, where),
        ("lawdnet_train_data_wait_seconds_total", 1.0, where),
    ]


def exported() -> str:
    """What the metrics port of this machine's node shows."""
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def parsed(text: str) -> Series:
    """Our own series, with WorkerId alone of the labels that Ray adds."""
    found = (LINE.fullmatch(line) for line in text.splitlines() if line.startswith("ray_lawdnet"))
    return {
        (match[1], frozenset(pair for pair in LABEL.findall(match[2]) if pair[0] in OWN | {"WorkerId"})): float(
            match[3]
        )
        for match in found
        if match
    }


def eventually(is_there: Callable[[str], bool]) -> str:
    end = time.monotonic() + SECONDS
    while not is_there(exported()) and time.monotonic() < end:
        time.sleep(0.5)
    return exported()


def test_a_build_arrives(drawn: Path, tmp_path: Path, ray_session: None) -> None:
    copy(drawn, tmp_path / "source/good.mp4")
    (tmp_path / "source/bad.mp4").write_bytes(b"no video")
    dataset = build(tmp_path / "source", tmp_path / "dataset", BuildConfig(crop_width=80), execute=telling)
    workers = {("WorkerId", path.name) for path in (tmp_path / "dataset" / "workers").iterdir()}

    def new(text: str) -> dict[tuple[str, ...], float]:
        """Of this build's workers, together, as (name, label values …)."""
        sums: dict[tuple[str, ...], float] = {}
        for (name, labels), value in parsed(text).items():
            if name.startswith("lawdnet_build") and labels & workers:
                key = (name, *(text for label, text in sorted(labels) if label != "WorkerId"))
                sums[key] = sums.get(key, 0.0) + value
        return sums

    found = new(
        eventually(lambda text: sum(n for k, n in new(text).items() if k[0] == "lawdnet_build_inputs_total") >= 2)
    )
    rows = dataset.videos().to_pylist()
    assert found["lawdnet_build_inputs_total", "", "accepted"] == 1
    assert found["lawdnet_build_inputs_total", "not_a_video", "rejected"] == 1
    assert found["lawdnet_build_frames_total",] == 75
    assert found["lawdnet_build_segments_total",] == dataset.info["counts"]["segments"]
    for stage in ("open", "crop", "write"):
        spent = sum(row[f"seconds_{stage}"] for row in rows)
        assert found["lawdnet_build_seconds_total", stage] == pytest.approx(spent, abs=0.002), "rounded to 1 ms a row"

    work = re.compile(r'ray_data_output_rows\{.*dataset="build_\w+",operator="FlatMap\(TellingVideoTask\)_1"')
    assert work.search(eventually(lambda text: bool(work.search(text)))), "as Ray's dashboard shows it"


def test_a_training_arrives(tmp_path: Path, ray_session: None) -> None:
    run, where = tmp_path / tmp_path.name, {("run", tmp_path.name), ("stage", "frame_32")}
    began = time.perf_counter()
    train(grey(tmp_path / "grey"), run, tiny(["frame_32"], "stages.weights.sync=0"), here(validate_every=1))
    wall = time.perf_counter() - began

    def ours(text: str) -> dict[tuple[str, ...], float]:
        """As (name without lawdnet_train_, value of its third label)."""
        return {
            (name.removeprefix("lawdnet_train_"), *(text for label, text in labels if label in ("loss", "measure"))): n
            for (name, labels), n in parsed(text).items()
            if where <= labels
        }

    found = ours(eventually(lambda text: ("epoch",) in ours(text)))
    assert (found["steps_total",], found["samples_total",]) == (7, 14)
    assert (found["epoch",], found["workers",]) == (1, 1)
    assert 0 < found["step_seconds_total",] < wall
    assert 0 < found["data_wait_seconds_total",] < wall - found["step_seconds_total",]
    last = [row for row in read_jsonl(run / "frame_32" / METRICS_FILE) if row["kind"] == "step"][-1]
    assert found["loss", "total"] == pytest.approx(last["total"])
    judged = metrics_of(CheckpointStore(run / "frame_32").complete()[-1])
    assert found["validation", "psnr"] == pytest.approx(judged["psnr"])
