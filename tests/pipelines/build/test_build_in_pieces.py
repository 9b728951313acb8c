"""The driver reads and writes in pieces what a small build has at once; the results are the same."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from lawdnet.data import publish, spill
from lawdnet.data.config import BuildConfig
from lawdnet.data.manifest import INDEX, VIDEOS, Dataset
from lawdnet.data.records import SegmentRow, VideoRecord, video_records
from lawdnet.tasks import inputs, records
from lawdnet.tasks.inputs import list_inputs
from lawdnet.tasks.task import Progress
from pipelines.build.build import build
from pipelines.build.upgrade import upgrade
from tests.support.drawn_clip import copies, copy
from tests.support.format_2 import as_format_2
from tests.support.in_process import map_in_process
from tests.support.stored import read_records

CONFIG = BuildConfig(crop_width=80, near_duplicates="keep", where=("scale_change<=1.5", "sharpness>=1"))
LETTERS = "abcdefgh"


@pytest.fixture(scope="module")
def source(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copies(drawn, tmp_path_factory.mktemp("source"), (f"{letter}.mp4" for letter in LETTERS))
    copy(drawn, folder / "no_landmarks.mp4", csv=False)
    (folder / "empty.mp4").touch()
    return folder


@pytest.fixture(scope="module")
def at_once(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return build(source, tmp_path_factory.mktemp("at_once") / "dataset", CONFIG, execute=map_in_process)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "RANGE", 3)
    monkeypatch.setattr(records, "PIECE", 2)
    monkeypatch.setattr(records, "LIKELY", 1)
    monkeypatch.setattr(publish, "MOST_LOOSE", 1)
    monkeypatch.setattr(inputs, "AT_ONCE", 3)


class Building:
    """Builds in this process, and notes what was worked on and what was told."""

    def __init__(self, source: Path, root: Path) -> None:
        self.source, self.root = source, root
        self.worked_on: list[str] = []
        self.told: list[tuple[str, bool, int, int]] = []

    def __call__(self, config: BuildConfig = CONFIG) -> Dataset:
        self.worked_on.clear()
        self.told.clear()
        return build(self.source, self.root, config, execute=self._execute, on_progress=self._note)

    def _execute(self, task: Any, job: Any, items: Sequence[Any], **options: Any) -> Any:
        self.worked_on += [item.name for item in items]
        return map_in_process(task, job, items, **options)

    def _note(self, progress: Progress[Any]) -> None:
        self.told.append((progress.record.path, progress.is_stored, progress.done, progress.total))


def timeless(dataset: Dataset) -> Any:
    videos = dataset.videos()
    return dataset.info, videos.select([name for name in videos.column_names if not name.startswith("seconds")])


def test_a_build_in_pieces(source: Path, at_once: Dataset, tmp_path: Path, small_pieces: None) -> None:
    building = Building(source, tmp_path / "dataset")
    dataset = building()
    assert timeless(dataset) == timeless(at_once)
    assert (dataset.root / INDEX).read_bytes() == (at_once.root / INDEX).read_bytes()
    assert video_records(dataset.root).loose_keys() == []
    assert len(list((dataset.root / ".build" / "packed").iterdir())) > 1
    assert [record.path for record in read_records(dataset.root).values()] == sorted(building.worked_on)
    videos, index = ((dataset.root / name).read_bytes() for name in (VIDEOS, INDEX))
    again = building()
    assert building.worked_on == []
    assert [told[1:] for told in building.told] == [(True, n + 1, 10) for n in range(10)]
    assert sorted(path for path, *_ in building.told) == [file.path for file in list_inputs(source)]
    assert [(again.root / name).read_bytes() for name in (VIDEOS, INDEX)] == [videos, index]


def test_packed_records_are_changed_and_completed(
    source: Path, drawn: Path, tmp_path: Path, small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time only what has changed is worked on, and all is as if it had been built at once."""
    shutil.copytree(source, tmp_path / "source")
    building = Building(tmp_path / "source", tmp_path / "dataset")
    building()
    copy(drawn, tmp_path / "x.mp4").rename(tmp_path / "source" / "c.mp4")
    copy(drawn, tmp_path / "source" / "new.mp4")
    (tmp_path / "source" / "h.mp4").unlink()
    building()
    assert building.worked_on == ["c.mp4", "new.mp4"]
    assert [told[1:] for told in building.told[-2:]] == [(False, 9, 10), (False, 10, 10)]
    monkeypatch.setattr(publish, "MOST_LOOSE", 100)
    shutil.copy(tmp_path / "source" / "g.mp4", tmp_path / "source" / "a_twin.mp4")
    shutil.copy(tmp_path / "source" / "g.csv", tmp_path / "source" / "a_twin.csv")
    half = dataclasses.replace(CONFIG, val_fraction=0.5, options={"mel": {"hops": "mean"}})
    copy(drawn, tmp_path / "h.mp4").rename(tmp_path / "source" / "h.mp4")
    changed = building(half)
    assert video_records(changed.root).loose_keys()
    assert "a_twin.mp4" in building.worked_on
    fresh = Building(tmp_path / "source", tmp_path / "fresh")(half)
    assert changed.info == fresh.info
    assert changed.index() == fresh.index()
    one, two = (timeless(dataset)[1] for dataset in (changed, fresh))
    assert one.drop_columns("split") == two.drop_columns("split")
    is_accepted = pc.equal(one["status"], "accepted")
    assert one.filter(is_accepted) == two.filter(is_accepted), "a rejected video keeps the side that was drawn once"
    assert {row.path: row.reason for row in changed.video_rows()}["g.mp4"] == "duplicate"
    (tmp_path / "source" / "a_twin.mp4").write_bytes((tmp_path / "source" / "new.mp4").read_bytes() + b"\0\0\0\x08free")
    building(half)
    assert building.worked_on == ["a_twin.mp4", "g.mp4"], "the first one has changed"


def test_an_upgraded_copy_has_the_packed_records(source: Path, tmp_path: Path, small_pieces: None) -> None:
    building = Building(source, tmp_path / "dataset")
    whole = timeless(building())
    as_format_2(tmp_path / "dataset")
    upgrade(tmp_path / "dataset", tmp_path / "new", execute=map_in_process)
    building.root = tmp_path / "new"
    assert timeless(building()) == whole
    assert building.worked_on == []


def test_records_are_asked_for_many_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an object store each takes a while to come."""
    store = video_records(tmp_path)
    row = SegmentRow("a-0000", index=0, track=0, start_frame=0, num_frames=54, row_group=0, scores={})
    for name in "abcd":
        store.write(name, VideoRecord(inputs=[], path=name, status="accepted", rows=[row]))
    together = threading.Barrier(4)
    decode_json = json.loads

    def slow(content: bytes) -> Any:
        together.wait(timeout=10)
        return decode_json(content)

    monkeypatch.setattr("lawdnet.tasks.records.json.loads", slow)
    assert [record.rows for record in read_records(tmp_path).values()] == [[]] * 4
    found = store.read_many("abcd", brief=False)
    assert {key: record.rows for key, record in found.items()} == {key: [row] for key in "abcd"}
