"""Every input of the malformed corpus is one row with a reason: no crash, no hang, no gigabytes."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lawdnet.data.config import BuildConfig
from lawdnet.data.records import VideoRecord
from lawdnet.tasks.task import TaskRunner
from lawdnet.types import RejectReason
from pipelines.build.build import build
from pipelines.build.task import BuildJob, VideoItem, VideoTask
from tests.support.drawn_clip import copy
from tests.support.malformed import CORPUS

CONFIG = BuildConfig(crop_width=80, val_fraction=0.0, landmarks="openface")
SECONDS = 30
MEGABYTES = 800
"""By which the most memory that the process ever held may grow."""
GOOD = ["good a.mp4", "good b.mp4", "good c.mp4"]
EVERY_REASON = {str(reason) for reason in RejectReason} - {"internal_error", "timeout", "crash"}


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Ends what takes longer, a wait in the system included."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def item_of(path: Path) -> VideoItem:
    key = f"{abs(hash(path.name)):016x}"
    return VideoItem(name=ascii(path.name), source=os.fsencode(path), key=key, inputs=["", ""])


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> TaskRunner[VideoItem, VideoRecord]:
    return TaskRunner(VideoTask, BuildJob(config=CONFIG, root=str(tmp_path_factory.mktemp("dataset"))))


def check(row: dict[str, Any], expected: str) -> None:
    """One row is as the corpus says, and says why (or what was used)."""
    outcome = row["reason"] or row["status"]
    allowed = EVERY_REASON | {"accepted"} if expected == "any" else set(expected.split("|"))
    assert outcome in allowed, (row["path"], row["detail"])
    assert row["status"] == ("accepted" if outcome == "accepted" else "rejected")
    assert row["detail"]


def test_the_corpus_is_large() -> None:
    assert len(CORPUS) >= 60


@pytest.mark.parametrize("name", CORPUS, ids=ascii)
def test_every_input_is_a_row_with_a_reason(
    runner: TaskRunner[VideoItem, VideoRecord], drawn: Path, tmp_path: Path, name: str
) -> None:
    expected, make = CORPUS[name]
    make(drawn, tmp_path / name)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with limited(SECONDS):
        ((_, record),) = runner([item_of(tmp_path / name)])
    check(record.row().columns(), expected)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < MEGABYTES << 10


@pytest.mark.slow
def test_the_good_beside_them_come_out_as_alone(drawn: Path, tmp_path: Path, ray_session: None) -> None:
    """The whole corpus through the graph, three good clips among it."""
    for name in GOOD:
        copy(drawn, tmp_path / "clean" / name)
        copy(drawn, tmp_path / "all" / name)
    for name, (_, make) in CORPUS.items():
        make(drawn, tmp_path / "all" / name)
    alone = build(tmp_path / "clean", tmp_path / "alone", CONFIG)
    dataset = build(tmp_path / "all", tmp_path / "dataset", CONFIG)

    rows = {row["path"]: row for row in dataset.videos().to_pylist()}
    listed = {os.fsencode(name).decode("utf8", "backslashreplace"): expected for name, (expected, _) in CORPUS.items()}
    del listed["folder.mp4"]  # is searched, and holds nothing
    assert set(rows) == {*listed, *GOOD}
    for name, expected in listed.items():
        check(rows[name], expected)
    files = {row["path"]: row["video_id"] for row in alone.videos().to_pylist()}
    assert sorted(files) == GOOD
    for name, video_id in files.items():
        assert rows[name]["video_id"] == video_id
        digests = {_sha256(root / "segments" / f"{video_id}.parquet") for root in (tmp_path / "alone", dataset.root)}
        assert len(digests) == 1, name


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
