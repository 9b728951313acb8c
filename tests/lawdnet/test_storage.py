"""The same functions on local folders and on S3, also when the object store fails."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lawdnet import storage
from lawdnet.footers import Footers
from lawdnet.storage import (
    Location,
    atomic,
    files_sha256,
    fingerprint,
    fingerprints,
    is_remote,
    local_copy,
    locate,
    parquet_file,
    read_json,
    scan,
    sha256,
    write_json,
)
from tests.support.s3_server import S3Server

ODD_NAME = "spaced  #1?%20 ü"


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest) -> Location:
    if request.param == "local":
        return request.getfixturevalue("tmp_path") / "root"
    return request.getfixturevalue("s3").root / "root"


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which temporary folders are created."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def names(folder: Location) -> list[str]:
    """Return the names of all files below, including hidden ones."""
    return sorted(str(path).removeprefix(f"{folder}".rstrip("/") + "/") for path in folder.rglob("*") if path.is_file())


def test_local_paths_are_plain_and_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate("a/b.mp4") == locate(Path("a/b.mp4")) == tmp_path / "a/b.mp4"
    assert type(locate("s3:/b")) is type(tmp_path)
    assert not is_remote(locate(tmp_path))


def test_a_uri_is_remote_and_can_be_pickled(s3: S3Server) -> None:
    place = locate(f"{s3.root}/a/{ODD_NAME}.mp4")
    assert is_remote(place)
    assert (place.name, place.with_suffix(".csv").name) == (f"{ODD_NAME}.mp4", f"{ODD_NAME}.csv")
    write_json(place, 1)
    again = pickle.loads(pickle.dumps(place))
    assert again == place == locate(place) == locate(str(place))
    assert read_json(again) == 1


def test_other_uris_are_refused() -> None:
    for address in ("http://host/a.mp4", "HTTPS://host/a.mp4", "file:///a.mp4", "nonsense://a"):
        with pytest.raises(ValueError, match="is not supported; give a local path, s3:// or gs://"):
            locate(address)


@pytest.mark.parametrize(
    ("address", "module", "extra"), [("s3://b/k", "s3fs", "s3"), ("gs://b/k", "gcsfs", "gs"), ("s3://b", "upath", "s3")]
)
def test_a_missing_package_names_its_extra(
    address: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(import_module("fsspec.registry")._registry, address[:2], raising=False)
    with pytest.raises(ValueError, match=rf"{address}: .* pip install -c constraints\.txt -e '\.\[{extra}\]'"):
        locate(address)


def test_a_complete_write_appears(root: Location, scratch: Path) -> None:
    path = root / "deep" / f"{ODD_NAME}.json"
    for content in ({"ü": [1, 2.5, None]}, "second"):
        write_json(path, content)
        assert read_json(path) == content
    assert names(root) == [f"deep/{ODD_NAME}.json"]
    assert list(scratch.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(root: Location, scratch: Path) -> None:
    path = root / "x.json"

    def fail() -> None:
        with atomic(path) as temporary:
            assert temporary.name.startswith(".x.json.")
            assert temporary.suffix == ".tmp"
            temporary.write_text("half")
            raise RuntimeError

    for before in ([], ["x.json"]):
        with pytest.raises(RuntimeError):
            fail()
        assert names(root) == before
        write_json(path, "whole")
    assert read_json(path) == "whole"
    assert list(scratch.iterdir()) == []


def test_an_empty_block_writes_no_file(root: Location) -> None:
    with atomic(root / "x.json"):
        pass
    assert names(root) == []


def test_an_upload_that_fails_leaves_nothing(s3: S3Server, scratch: Path) -> None:
    """This includes a multipart upload whose second part is refused."""
    parts: list[str] = []

    def fault(method: str, path: str) -> str:
        parts.extend([path] if "partNumber" in path else [])
        return "gone" if method == "PUT" and "partNumber=1&" not in path else ""

    s3.fault = fault

    def upload(size: int) -> None:
        with atomic(s3.root / "x.bin") as temporary:
            temporary.touch()
            os.truncate(temporary, size)

    for size in (10, 101 << 20):
        with pytest.raises(Exception, match="no such upload"):
            upload(size)
    assert any("partNumber=1&" in path for path in parts)
    assert names(s3.root) == []
    assert list(scratch.iterdir()) == []


def test_local_copy(root: Location, scratch: Path) -> None:
    for name in ("talk.mp4", "talk.csv", "other.csv", "alone.mp4"):
        with atomic(root / name) as temporary:
            temporary.write_text(name)
    with local_copy(root / "talk.mp4", [".csv", ".CSV"]) as copy:
        assert isinstance(copy, Path)
        assert (copy.name, copy.read_text(), copy.with_suffix(".csv").read_text()) == (
            "talk.mp4",
            *["talk.mp4", "talk.csv"],
        )
        assert not copy.with_suffix(".CSV").exists()
        if is_remote(root):
            assert {path.name for path in copy.parent.iterdir()} == {"talk.mp4", "talk.csv"}
        else:
            assert copy == root / "talk.mp4"
    with local_copy(root / "alone.mp4", [".csv"]) as copy:
        assert not copy.with_suffix(".csv").exists()
    assert list(scratch.iterdir()) == []
    assert len(names(root)) == 4


def test_a_missing_object_cannot_be_copied(s3: S3Server, scratch: Path) -> None:
    with pytest.raises(FileNotFoundError), local_copy(s3.root / "no.mp4", [".csv"]):
        pass
    with pytest.raises(FileNotFoundError):
        read_json(s3.root / "no.json")
    assert list(scratch.iterdir()) == []


@pytest.fixture
def wide(root: Location) -> Iterator[tuple[Location, int]]:
    """Return a file of twenty row groups of 100 kB each, and its size."""
    schema = pa.schema([("frames", pa.binary()), ("index", pa.int32())])
    rng = np.random.default_rng(0)
    with atomic(root / "x.parquet") as temporary:
        with pq.ParquetWriter(temporary, schema) as writer:
            for i in range(20):
                writer.write_table(pa.table({"frames": [rng.bytes(100_000)], "index": pa.array([i], pa.int32())}))
        size = temporary.stat().st_size
    return root / "x.parquet", size


def test_parquet_row_groups(wide: tuple[Location, int]) -> None:
    with parquet_file(wide[0]) as file:
        assert file.num_row_groups == 20
        assert file.read_row_group(7, columns=["index"]).to_pylist() == [{"index": 7}]
        assert len(file.read_row_group(3)["frames"][0].as_py()) == 100_000


@pytest.mark.parametrize("root", ["s3"], indirect=True)
def test_only_the_requested_parts_are_fetched(wide: tuple[Location, int], s3: S3Server) -> None:
    path, size = wide
    s3.requests.clear()
    with parquet_file(path) as file:
        file.read_row_group(3)
    assert sum(length for _, _, length in s3.requests) < 0.1 * size
    s3.requests.clear()
    with parquet_file(path) as file:
        file.read_row_group(3, columns=["index"])
    assert sum(length for _, _, length in s3.requests) < 0.04 * size
    assert len(s3.requests) <= 3, "a HEAD, the footer and the column"


def test_fingerprints_follow_the_content(root: Location) -> None:
    path = root / "x.mp4"
    assert fingerprint(path) == ""
    write_json(path, "one")
    one = fingerprint(path)
    assert one == fingerprint(path) == dict(scan(root, {".mp4"}))["x.mp4"] != ""
    assert fingerprints(path, [".csv", ".CSV"]) == [one, "", ""]
    write_json(path.with_suffix(".csv"), "x")
    write_json(root / "x.y.csv", "x")
    write_json(path, "two")
    assert fingerprints(path, [".csv", ".CSV"]) == [fingerprint(path), fingerprint(path.with_suffix(".csv")), ""]
    assert fingerprint(path) != one
    path.unlink()
    assert fingerprints(path, [])[0] == fingerprint(path) == ""


def test_sha256(root: Location) -> None:
    path = root / "x.bin"
    with atomic(path) as temporary:
        temporary.write_bytes(b"abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_changed_file_has_another_digest(tmp_path: Path) -> None:
    path = tmp_path / "net.pb"
    path.write_bytes(b"one")
    assert files_sha256([path]) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"three")
    assert files_sha256([path]) == hashlib.sha256(b"three").hexdigest()


def test_a_model_of_several_files_has_one_digest(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"1")
    b.write_bytes(b"2")
    assert files_sha256([a]) == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    assert len({files_sha256([a]), files_sha256([b]), files_sha256([a, b]), files_sha256([b, a])}) == 4


def test_long_transfers_report_progress(s3: S3Server, scratch: Path) -> None:
    """Otherwise a watchdog would take a large file for a stalled process."""
    beats: list[str] = []
    content = bytes(12 << 20)
    with atomic(s3.root / "large", beat=lambda: beats.append("up")) as temporary:
        temporary.write_bytes(content)
    with local_copy(s3.root / "large", beat=lambda: beats.append("down")) as copy:
        assert sha256(copy, beat=lambda: beats.append("sum")) == hashlib.sha256(content).hexdigest()
    assert beats.count("up") >= 1
    assert beats.count("down") > 1
    assert beats.count("sum") == 12


def test_another_writer_is_seen(s3: S3Server) -> None:
    """Listings are not cached: files that another worker wrote or removed are noticed at once."""
    from s3fs import S3FileSystem

    other = S3FileSystem(skip_instance_cache=True)
    assert list(s3.root.iterdir()) == []
    other.pipe_file(f"{s3.root.path}x.json", b"1")
    assert [path.name for path in s3.root.iterdir()] == ["x.json"]
    other.pipe_file(f"{s3.root.path}x.json", b"12")
    assert (s3.root / "x.json").stat().st_size == 2
    other.rm_file(f"{s3.root.path}x.json")
    assert not (s3.root / "x.json").exists()
    assert list(s3.root.iterdir()) == []


def test_scan_skips_hidden_and_other_files(root: Location) -> None:
    for name in (
        "a.mp4",
        "B.MP4",
        "deep/er/c.mp4",
        ".hidden.mp4",
        "deep/.trash/d.mp4",
        "notes.txt",
        "x.mp4/inside.mp4",
    ):
        write_json(root / name, name)
    assert set(dict(scan(root, {".mp4"}))) == {"a.mp4", "B.MP4", "deep/er/c.mp4", "x.mp4/inside.mp4"}


def test_scan_of_links(tmp_path: Path) -> None:
    """Each folder is listed once, under its own name if it has one; no loops, nothing above the given folder."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for path in (root / "real" / "a.mp4", outside / "b.mp4", tmp_path / "above.mp4"):
        write_json(path, 0)
    (root / "again").symlink_to(root / "real")
    (root / "real" / "loop").symlink_to(root)
    (root / "up").symlink_to("..")
    (root / "two").symlink_to(outside)
    (root / "one").symlink_to(outside)
    (root / "self.mp4").symlink_to("self.mp4")
    (root / "dangling.mp4").symlink_to("nowhere")
    (root / "file.mp4").symlink_to(outside / "b.mp4")
    found = dict(scan(root, {".mp4"}))
    assert set(found) == {"real/a.mp4", "one/b.mp4", "self.mp4", "dangling.mp4", "file.mp4"}
    assert found["self.mp4"] == found["dangling.mp4"] == ""
    assert found["file.mp4"] == fingerprint(outside / "b.mp4")


def test_a_folder_that_cannot_be_read_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("good/a.mp4", "locked/b.mp4"):
        write_json(tmp_path / name, 0)
    scandir = os.scandir

    def refuse(folder: str) -> Iterator[os.DirEntry[str]]:
        if folder.endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert set(dict(scan(tmp_path, {".mp4"}))) == {"good/a.mp4"}
    assert "locked: cannot be read (Permission denied)" in caplog.text


def test_a_missing_bucket_gives_one_clear_line(s3: S3Server) -> None:
    with pytest.raises(ValueError, match="s3://no-such-bucket/videos: cannot be listed"):
        dict(scan(locate("s3://no-such-bucket/videos"), {".mp4"}))
    assert fingerprint(locate("s3://no-such-bucket/x.mp4")) == ""


def test_one_request_in_four_may_fail(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing servers and truncated responses are retried, and the data arrives complete."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)
    path, seen = s3.root / "x.bin", 0
    data = np.random.default_rng(0).bytes(300_000)

    def fault(method: str, path: str) -> str:
        nonlocal seen
        seen += 1
        kinds = ["broken", "cut"] if method == "GET" and "list-type" not in path else ["broken"]
        return kinds[seen // 4 % len(kinds)] if seen % 4 == 0 else ""

    s3.fault = fault
    for _ in range(10):
        with atomic(path) as temporary:
            temporary.write_bytes(data)
        with local_copy(path) as copy:
            assert copy.read_bytes() == data
        assert path.read_bytes() == data
        assert names(s3.root) == ["x.bin"]
        assert fingerprint(path)
    assert seen > 60


def test_a_footer_is_read_once_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bool] = []
    whole = pq.ParquetFile

    def opened(source: Any, *, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
        given.append(metadata is not None)
        return whole(source, metadata=metadata)

    monkeypatch.setattr(storage.pq, "ParquetFile", opened)
    path = tmp_path / "table.parquet"
    for rows in (3, 5):
        pq.write_table(pa.table({"n": range(rows)}), path)
        for _ in range(2):
            with storage.parquet_file(path) as file:
                assert file.read()["n"].to_pylist() == list(range(rows))
    assert given == [False, True, False, True]


def test_the_footers_that_are_kept_have_a_limit(tmp_path: Path) -> None:
    made = []
    for number in range(3):
        pq.write_table(pa.table({"n": range(5)}), path := tmp_path / f"{number}.parquet")
        made.append(pq.read_metadata(path))
    footers = Footers(2 * made[0].serialized_size)
    for name in ("0", "1", "0", "2"):
        footers.keep(name, made[int(name)])
    assert [footers.get(name) is not None for name in ("0", "1", "2")] == [True, False, True]
