"""What a validation needs, before any worker starts."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from lawdnet.evaluation.landmarks import BUNDLE, FETCH, LandmarksByRow
from lawdnet.training.options import RunOptions
from pipelines.train.validate import check_landmarks, landmarks_of

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "weights" / BUNDLE


def test_without_the_network_one_line_says_which_command_fetches_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_landmarks(RunOptions())
    assert FETCH in caplog.text
    assert len(caplog.records) == 1
    assert landmarks_of(RunOptions()) is None


@pytest.mark.parametrize("options", [RunOptions(gates=("opening_correlation>=0.5",)), RunOptions(best="lmd")])
def test_a_gate_that_needs_the_network_stops_the_run_before_it_begins(options: RunOptions) -> None:
    for check in (check_landmarks, landmarks_of):
        with pytest.raises(ValueError, match=FETCH):
            check(options)


@pytest.mark.skipif(not SHARED.is_file(), reason="needs ../shared/weights/face_landmarker.task")
def test_with_the_network_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("ai_edge_litert")
    shutil.copy(SHARED, tmp_path)
    monkeypatch.setenv("LAWDNET_WEIGHTS", str(tmp_path))
    check_landmarks(RunOptions())
    assert not caplog.records
    assert isinstance(landmarks_of(RunOptions()), LandmarksByRow)
