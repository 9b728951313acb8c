"""`lawdnet report`: the page, the summary on the terminal, and its error if there is no run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from lawdnet.training.loggers import METRICS, make_loggers

runner = CliRunner()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run in its second epoch that has only a log."""
    folder = tmp_path / "my run"
    logger = make_loggers((), folder / "frame_64", config={}, lineage={}, run_name="my run/frame_64")
    for epoch in (1, 2):
        logger.log({"kind": "step", "epoch": epoch - 1, "step": 9, "total": 1.0})
        logger.log({"kind": "epoch", "epoch": epoch, "total": 1.0, "seconds": 1.0})
        logger.log({"kind": "validation", "epoch": epoch, "psnr": 20.0, "mouth_correlation": 0.25 * epoch})
    return folder


def test_help_teaches() -> None:
    answer = runner.invoke(app, ["report", "--help"], env={"COLUMNS": "200"})
    assert answer.exit_code == 0
    assert "Example: lawdnet report run" in answer.output


def test_the_page_is_written_into_the_run(run: Path) -> None:
    answer = runner.invoke(app, ["report", str(run)])
    assert answer.exit_code == 0, answer.output
    (line,) = [line for line in answer.stdout.splitlines() if line.startswith("  frame_64")]
    assert "at work, 2 epochs" in line
    assert "best mouth_correlation 0.5 (epoch 2)" in line
    assert "psnr" not in line, "what a mouth that ignores the sound can have says little"
    assert answer.stdout.splitlines()[-1] == f"report: {run / 'report.html'}"
    assert "mouth_correlation" in (run / "report.html").read_text(encoding="utf8")


def test_as_json_and_elsewhere(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "pages" / "a.html"
    content = json.loads(runner.invoke(app, ["report", str(run), "--out", str(page), "--json"]).stdout)
    assert content["report"] == str(page)
    assert content["stages"]["frame_64"]["best"]["psnr"] == {"epoch": 1, "value": 20.0}
    assert page.exists()
    assert not (run / "report.html").exists()


def test_no_run_is_one_line(tmp_path: Path) -> None:
    (tmp_path / METRICS).touch()
    answer = runner.invoke(app, ["report", str(tmp_path)])
    assert answer.exit_code == 1
    assert answer.stderr.startswith(f"error: {tmp_path}: no run here")
    assert len(answer.stderr.splitlines()) == 1
