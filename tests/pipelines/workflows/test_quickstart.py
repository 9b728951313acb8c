"""The proof of learning: everything from drawing to the report, and a mouth that follows speech it never heard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lawdnet.video import probe
from pipelines.workflows.quickstart import quickstart


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_quickstart_learns(tmp_path: Path, ray_session: None) -> None:
    lines: list[str] = []
    quickstart(tmp_path / "quickstart", on_event=lines.append)
    summary = json.loads((tmp_path / "quickstart" / "summary.json").read_text(encoding="utf8"))
    assert summary["mouth_correlation"] >= 0.9
    assert abs(summary["mouth_correlation_untrained"]) < 0.5
    assert summary["mouth_correlation_ceiling"] > 0.98
    assert summary["peak_rss_mb"] < 6000
    assert summary["seconds"].keys() == {"synth", "build", "train", "infer", "evaluate"}
    assert probe(tmp_path / "quickstart" / "rendered" / "generated.mp4").num_frames == 125
    assert "mouth correlation" in (tmp_path / "quickstart" / "report.html").read_text(encoding="utf8")
    assert sum("epoch" in line for line in lines) >= 5
