"""`python -m benchmarks.gpu` works but for the GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu

ROWS = [("ours", "fp32", "clip_288"), ("published", "fp32", "frame_64"), ("ours", "fp32", "syncnet")]


def test_it_measures_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "plan", lambda device: iter(ROWS))
    monkeypatch.setattr(gpu, "TINY", (*gpu.TINY, "stages.weights.perceptual=0"))
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--tiny", "--out", str(tmp_path / "gpu.json")])
    assert gpu.main() == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert [(row["structure"], row["precision"], row["stage"]) for row in report["stages"]] == ROWS
    for row in report["stages"]:
        assert not row["failed"]
        assert row["samples_per_second"] > 0 < row["tflop_per_step"]
        assert sum(row["shares"].values()) == pytest.approx(1, abs=0.01)
        assert row["shares"]["convolutions"] > 0 < row["shares"]["optimiser"]
        assert (row["shares"]["warp"] > 0) == (row["stage"] != "syncnet")
    assert [one["batch"] for one in report["inference"]] == [1, 8]
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("clip_288", "published", "times real time", "roof"))


def test_what_is_not_measured_is_said() -> None:
    row = gpu.Row(stage="clip_288", structure="ours", precision="bf16", batch=1)

    def full() -> gpu.Row:
        raise torch.OutOfMemoryError

    assert "not measured: no time left" in gpu.line(gpu.tried(full, row, end=0.0))
    assert "not measured: out of memory" in gpu.line(gpu.tried(full, row, end=float("inf")))


def test_every_stage_of_both_presets_is_planned() -> None:
    rows = list(gpu.plan(torch.device("cuda")))
    assert rows[:5] == [
        ("ours", "bf16", name) for name in ("syncnet", "frame_64", "frame_128", "frame_256", "clip_288")
    ]
    assert ("published", "fp32", "clip_288") in rows
    assert len(rows) == len(set(rows)) == 17


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 1
    assert capsys.readouterr().err.count("\n") == 1
