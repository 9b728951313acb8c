"""Records on disk: what is written comes back, older ones are read, and nothing unreadable passes for work to do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lawdnet.data.records import SegmentRow, VideoRecord, video_records
from lawdnet.storage import Location
from lawdnet.tasks import records
from lawdnet.tasks.records import PACKED, VERSION, RecordStore, Refusal, TaskRecord
from lawdnet.types import RejectReason
from tests.support.s3_server import S3Server
from tests.support.stored import read_records

SEGMENT = {"segment_id": "bob-3f36-0000", "index": 0, "track": 0, "start_frame": 0, "num_frames": 54, "row_group": 0,
           "scores": {"face_px": 55.5, "silence": 0.25}}  # fmt: skip
BEFORE: dict[str, Any] = {
    "inputs": ["51122 1700000000000000000", "67494 1700000000000000000"],
    "row": {
        "video_id": "bob-3f36", "status": "accepted", "reason": "", "detail": "54 of 60 frames used", "split": "val",
        "landmarks": "openface", "segments": 1, "frames": 60, "frames_used": 54, "seconds": 0.138,
        "seconds_open": 0.031, "seconds_faces": 0.011, "seconds_sound": 0.015, "seconds_crop": 0.038,
        "seconds_score": 0.007, "seconds_write": 0.035, "bytes": 51122, "sha256": "44bc", "landmarks_sha256": "0c28",
        "path": "bob.mp4",
    },
    "segments": [SEGMENT],
    "features": {"mel": "35d6cbd33ccf5eb2"},
    "sync": None,
    "result": "",
}  # fmt: skip
"""A record as lawdnet 0.1.0 wrote it."""


def test_a_record_comes_back(tmp_path: Path) -> None:
    store = video_records(tmp_path)
    record = VideoRecord(inputs=["1 2", ""], path="ü.mp4", status="accepted", segments=1, rows=[SegmentRow(**SEGMENT)])
    record.step_seconds["crop"] = 1.5
    store.write("key", record)
    assert store.read("key") == record
    assert store.read("other") is None
    assert read_records(tmp_path)["key"].rows == []
    assert store.read_many(["key", "other"], brief=False) == {"key": record}


def test_a_record_of_the_version_before_is_read(tmp_path: Path) -> None:
    store = video_records(tmp_path)
    store.folder.mkdir()
    store.path("key").write_text(json.dumps(BEFORE))
    record = store.read("key")
    assert record is not None
    assert record.row().columns() == BEFORE["row"] | {"group": "", "lacks": ""}
    assert record.inputs == BEFORE["inputs"]
    assert record.rows == [SegmentRow(**SEGMENT)]
    assert (record.features, record.sync, record.run) == (BEFORE["features"], None, "")
    store.write("key", record)
    assert json.loads(store.path("key").read_text())["version"] == VERSION
    assert store.read("key") == record


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b'{"inputs": [', "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[]", "not a record"),
        (b"{}", "not a record"),
        (b'{"version": 3, "inputs": []}', r"record version 3, this code reads 1 to 2; update lawdnet"),
        (b'{"version": 2, "path": "a.mp4", "rows": []}', "not a VideoRecord .*inputs"),
        (b'{"version": 2, "inputs": [], "path": "a.mp4"}', "not a VideoRecord"),
        (b'{"version": 2, "inputs": [], "path": "a.mp4", "rows": [{"index": 1}]}', "not a VideoRecord"),
        (json.dumps({**BEFORE, "segments": 3}).encode(), "not a VideoRecord"),
        (json.dumps({k: v for k, v in BEFORE.items() if k != "inputs"}).encode(), "not a VideoRecord"),
        (json.dumps({k: v for k, v in BEFORE.items() if k != "segments"}).encode(), "not a VideoRecord"),
        (b'{"version": 2, "inputs": null, "path": "a.mp4", "rows": []}', "not a VideoRecord"),
    ],
)
def test_what_cannot_be_read_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    """It must not look like work that was not done yet."""
    store = video_records(tmp_path)
    store.folder.mkdir()
    store.path("key").write_bytes(content)
    for read in (lambda: store.read("key"), lambda: read_records(tmp_path)):
        with pytest.raises(ValueError, match=message) as caught:
            read()
        assert str(store.path("key")) in str(caught.value)
        assert "delete it to do this item again" in str(caught.value)


def test_a_rejection_takes_away_what_was_accepted_and_a_refusal_does_not() -> None:
    record = VideoRecord(inputs=[], path="a.mp4", status="accepted", video_id="a-1", segments=1, frames=60,
                         frames_used=54, rows=[SegmentRow(**SEGMENT)], features={"mel": "1"}, sync="2")  # fmt: skip
    kept = replace(record)
    record.reject(Refusal("rejected", RejectReason.NO_AUDIO, "\udcff.mp4 has no audio"))
    assert (record.status, record.reason, record.detail) == ("rejected", "no_audio", r"\udcff.mp4 has no audio")
    assert (record.video_id, record.segments, record.frames, record.frames_used) == ("", 0, 60, 0)
    assert (record.rows, record.features, record.sync) == ([], {}, None)
    kept.refuse(Refusal("rejected", RejectReason.CRASH, "\udcff.mp4 ended its worker"))
    assert (kept.is_accepted, kept.segments, kept.features) == (True, 1, {"mel": "1"})
    assert kept.not_completed == r"crash: \udcff.mp4 ended its worker"


def test_other_files_of_the_folder_are_no_records(tmp_path: Path) -> None:
    store = RecordStore(tmp_path, TaskRecord, ("build.json",))
    store.write("a", TaskRecord(inputs=[]))
    (tmp_path / "build.json").write_text("{}")
    (tmp_path / "a.attempts").write_text("{}")
    assert store.loose_keys() == ["a"]


KEYS = ["aaa1", "aaa2", "aab1", "bbb1", "bbb2"]


def filled(folder: Location) -> RecordStore[VideoRecord]:
    store = video_records(folder)
    for key in KEYS:
        store.write(key, VideoRecord(inputs=[key], path=f"ü{key}.mp4", rows=[SegmentRow(**SEGMENT)]))
    return store


def test_many_records_are_packed_and_one_of_its_own_overrides(tmp_path: Path) -> None:
    store = filled(tmp_path)
    before = store.read_many(KEYS, brief=False)
    assert list(store.pieces(brief=False, most_loose=len(KEYS))) == [before]
    assert sorted(store.loose_keys()) == KEYS, "few stay as they are"
    assert list(store.pieces(brief=False, most_loose=2)) == [before]
    assert store.loose_keys() == []
    assert sorted(path.name for path in (store.folder / PACKED).iterdir()) == ["aaa.json", "aab.json", "bbb.json"]
    assert store.read_many([*KEYS, "other"], brief=False) == before
    assert store.read("aaa3") is None
    assert store.read_loose("aaa1") is None
    changed = replace(before["aaa2"], split="val")
    store.write("aaa2", changed)
    assert store.read("aaa2") == changed
    assert list(store.pieces(brief=False, most_loose=1)) == [before | {"aaa2": changed}]
    assert store.loose_keys() == ["aaa2"]
    untouched = {path: path.stat().st_mtime_ns for path in (store.folder / PACKED).glob("[!a]*")}
    list(store.pieces(brief=False, most_loose=0))
    assert store.loose_keys() == []
    assert list(store.pieces(brief=False)) == [before | {"aaa2": changed}]
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched, "only what has changed is written"


def test_packing_can_be_stopped_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "PIECE", 2)
    store = filled(tmp_path)
    before = store.read_many(KEYS, brief=False)
    pieces = store.pieces(brief=False, most_loose=0)
    assert [next(pieces).keys() for _ in range(2)] == [{"aaa1", "aaa2"}, {"aab1", "bbb1", "bbb2"}]
    pieces.close()
    assert sorted(store.loose_keys()) == KEYS[2:]
    monkeypatch.setattr(RecordStore, "_remove", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(store.pieces(brief=False, most_loose=0))
    assert store.read_many(KEYS, brief=False) == before


def test_a_packed_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    store = filled(tmp_path)
    list(store.pieces(brief=False, most_loose=0))
    path = store.folder / PACKED / "aaa.json"
    for content in ("", "[]", '{"aaa1": {"version": 2}}'):
        path.write_text(content)
        for read in (lambda: store.read("aaa1"), lambda: list(store.pieces())):
            with pytest.raises(ValueError, match=r"aaa\.json: cannot be read .*; delete it to do these items again"):
                read()


def test_records_are_packed_in_an_object_store(s3: S3Server) -> None:
    store = filled(s3.root)
    before = store.read_many(KEYS, brief=False)
    assert list(store.pieces(brief=False, most_loose=0)) == [before]
    assert store.loose_keys() == []
    assert list(store.pieces(brief=False)) == [before]
    assert store.read("bbb2") == before["bbb2"]
