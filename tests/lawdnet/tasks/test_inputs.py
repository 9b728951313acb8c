"""What a build takes for its inputs: folders, single videos, lists and buckets."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lawdnet.storage import Location, atomic, fingerprint, local_copy, locate
from lawdnet.tasks.inputs import InputFile, list_inputs
from tests.support.s3_server import S3Server

FILES = ("b.mp4", "b.csv", "UP.MP4", "UP.CSV", "Mixed.MOV", "Mixed.csv", "a-b/x.mkv", "a/x.mkv", "a b/ü #1.webm")


@pytest.fixture(params=["local", "s3", "memory"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "local":
        return tmp_path / "source"
    if request.param == "memory":
        pytest.importorskip("upath", reason="needs universal-pathlib: pip install -e '.[s3]'")
        return locate(f"memory://{tmp_path.name}/source")
    return request.getfixturevalue("s3").root / "source"


def put(path: Location, content: str = "x") -> None:
    if isinstance(path, Path) or "s3" in str(path):
        with atomic(path) as temporary:
            temporary.write_text(content)
    else:
        path.write_text(content)


def fill(folder: Location) -> None:
    for name in FILES:
        put(folder / name, name)


def paths(files: list[InputFile]) -> list[str]:
    return [file.path for file in files]


def states(files: list[InputFile]) -> dict[str, list[str]]:
    return {file.path: [file.fingerprint, file.csv_fingerprint] for file in files}


def test_a_folder_to_its_depth(source: Location) -> None:
    fill(source)
    for name in ("notes.txt", ".hidden.mp4", ".trash/a.mp4", "b.jpg", "folder.mp4/readme"):
        put(source / name)
    rows = list_inputs(source)
    assert paths(rows) == ["Mixed.MOV", "UP.MP4", "a b/ü #1.webm", "a-b/x.mkv", "a/x.mkv", "b.mp4"]
    for row in rows:
        with local_copy(locate(os.fsdecode(row.source))) as copy:
            assert copy.read_text() == row.path
    marks = {name: fingerprint(source / name) for name in FILES}
    assert all(marks.values())
    assert states(rows) == {
        "Mixed.MOV": [marks["Mixed.MOV"], marks["Mixed.csv"]],
        "UP.MP4": [marks["UP.MP4"], marks["UP.CSV"]],
        "b.mp4": [marks["b.mp4"], marks["b.csv"]],
        **{name: [marks[name], ""] for name in ("a b/ü #1.webm", "a-b/x.mkv", "a/x.mkv")},
    }
    assert len({row.key for row in rows}) == len(rows)


def test_a_csv_that_comes_goes_or_changes_is_noticed(source: Location) -> None:
    put(source / "a.mp4")
    found = [states(list_inputs(source))["a.mp4"]]
    for change in (lambda csv: put(csv, "one"), lambda csv: put(csv, "other"), lambda csv: csv.unlink()):
        change(source / "a.csv")
        found.append(states(list_inputs(source))["a.mp4"])
    assert found[0] == found[3]
    assert found[0][0] == found[1][0] == found[2][0]
    assert len({csv for _, csv in found}) == 3


def test_one_video(source: Location) -> None:
    fill(source)
    (whole,) = [row for row in list_inputs(source) if row.path == "UP.MP4"]
    assert list(list_inputs(source / "UP.MP4")) == [whole]


def test_the_row_of_a_video_is_what_it_was(tmp_path: Path) -> None:
    """Builds that were begun earlier go on."""
    put(tmp_path / "deep" / "ü.mp4", "four")
    (row,) = list_inputs(tmp_path)
    status = (tmp_path / "deep" / "ü.mp4").stat()
    assert row == InputFile(
        path="deep/ü.mp4",
        source=os.fsencode(tmp_path / "deep" / "ü.mp4"),
        key="e4afdb76f2c529d7",
        fingerprint=f"4 {status.st_mtime_ns}",
        csv_fingerprint="",
    )


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.mp4")
    put(tmp_path / name)
    put(tmp_path / r"\xff.mp4")
    put((tmp_path / name).with_suffix(".csv"))
    rows = list_inputs(tmp_path)
    assert paths(rows) == [r"\xff.mp4"] * 2
    assert len({row.key for row in rows}) == 2
    assert {row.source for row in rows} == {os.fsencode(tmp_path / name), os.fsencode(tmp_path / r"\xff.mp4")}
    assert sorted(bool(row.csv_fingerprint) for row in rows) == [False, True]


def test_links(tmp_path: Path) -> None:
    put(tmp_path / "source" / "a.mp4")
    put(tmp_path / "elsewhere" / "b.mp4")
    for name, target in {"in": "../elsewhere", "up": "..", "c.mp4": "nowhere", "d.mp4": "d.mp4", "me": "me"}.items():
        (tmp_path / "source" / name).symlink_to(target)
    rows = list_inputs(tmp_path / "source")
    assert paths(rows) == ["a.mp4", "c.mp4", "d.mp4", "in/b.mp4"]
    assert states(rows)["c.mp4"] == states(rows)["d.mp4"] == ["", ""]


def test_what_is_no_input_is_an_error(source: Location) -> None:
    with pytest.raises(ValueError, match=r"source: (no such file or folder|no video here)"):
        list_inputs(source)
    with pytest.raises(ValueError, match=r"(no such file or folder|no video here)"):
        list_inputs(source / "a.mp4")
    with pytest.raises(ValueError, match=r"(no such file or folder|the list cannot be read)"):
        list_inputs(source / "list.txt")
    put(source / "notes.md")
    for place in (source, source / "notes.md"):
        with pytest.raises(ValueError, match=r"no video here \(looked for \.3gp, .*\.mp4"):
            list_inputs(place)
    put(source / "list.txt", "# nothing\n\n")
    with pytest.raises(ValueError, match="no video here"):
        list_inputs(source / "list.txt")


def test_a_list(source: Location, s3: S3Server, tmp_path: Path) -> None:
    fill(source)
    put(tmp_path / "else where" / "c.mp4")
    put(s3.root / "d.mp4")
    lines = [
        "# a comment", "", "  b.mp4 \r", "./b.mp4", "b.mp4", "UP.MP4", "a/x.mkv", "missing.mp4", "a", "no suffix",
        f"{source}/a b/ü #1.webm", f"{tmp_path}/else where/c.mp4", f"{s3.root}d.mp4", f"{s3.root}missing.mp4",
    ]  # fmt: skip
    put(source / "list.TXT", "\ufeff" + "\n".join(lines))
    found = list_inputs(source / "list.TXT")
    rows = {row.path: row for row in found}
    assert len(rows) == len(found)
    inside = {row.path: row for row in list_inputs(source)}
    same = {"b.mp4", "UP.MP4", "a/x.mkv", "a b/ü #1.webm"}
    far = {f"{s3.root}d.mp4", f"{s3.root}missing.mp4", f"{tmp_path}/else where/c.mp4"}
    assert rows.keys() == same | far | {"missing.mp4", "a", "no suffix"}
    assert {name: rows[name] for name in same} == {name: inside[name] for name in same}
    assert states(found)["missing.mp4"] == states(found)[f"{s3.root}missing.mp4"] == ["", ""]
    assert rows[f"{s3.root}d.mp4"].fingerprint == fingerprint(s3.root / "d.mp4")
    assert list(rows) == sorted(rows)


def test_a_list_names_files_above_it(source: Location) -> None:
    put(source / "a.mp4")
    put(source / "lists" / "one.lst", "../a.mp4\n")
    (row,) = list_inputs(source / "lists" / "one.lst")
    assert [row.fingerprint, row.csv_fingerprint] == [fingerprint(source / "a.mp4"), ""]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"a.mp4\nhttp://host/b.mp4\n", "list.txt: line 2: http://host/b.mp4: .* is not supported"),
        ("a.mp4\n".encode("utf-16"), "list.txt: a list is UTF-8 text"),
    ],
)
def test_a_list_that_cannot_be_meant(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ValueError, match=match):
        list_inputs(tmp_path / "list.txt")


def test_odd_lines_are_items_too(tmp_path: Path, s3: S3Server) -> None:
    """What cannot be a video is rejected when it is opened, with its own row."""
    lines = [b"/", b".", b"..", b"s3://", b"s3://bucket", b"\xff.mp4", b"x" * 5000, b"a.mp4/b.mp4"]
    (tmp_path / "a.mp4").write_text("x")
    (tmp_path / "list.txt").write_bytes(b"\n".join(lines))
    rows = list_inputs(tmp_path / "list.txt")
    assert len(rows) == len(lines)
    assert [row.fingerprint for row in rows if row.path == r"\xff.mp4"] == [""]


def test_a_folder_named_like_a_list(tmp_path: Path) -> None:
    put(tmp_path / "corpus.txt" / "a.mp4")
    assert paths(list_inputs(tmp_path / "corpus.txt")) == ["a.mp4"]


def test_a_bucket_costs_one_request_per_thousand_objects(s3: S3Server) -> None:
    backend = next(iter(pytest.importorskip("moto.s3.models").s3_backends.values()))["aws"]
    for number in range(1500):
        backend.put_object(s3.root.path.strip("/"), f"videos/{number:04d}.mp4", b"")
    s3.requests.clear()
    assert len(list_inputs(s3.root / "videos")) == 1500
    assert [(method, path.split("?")[1][:11]) for method, path, _ in s3.requests] == [("GET", "list-type=2")] * 2


def test_a_list_costs_one_request_per_object(s3: S3Server, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n".join(f"{s3.root}{number}.mp4" for number in range(50)))
    s3.requests.clear()
    assert len(list_inputs(tmp_path / "list.txt")) == 50
    assert len(s3.requests) == 50


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_says_more_about_each_file(source: Location, suffix: str) -> None:
    fill(source)
    table = source / f"list{suffix}"
    if suffix == ".csv":
        table.write_bytes(
            b'\xef\xbb\xbfwho,path,take\r\nAnn,b.mp4,1\r\n"Bob, Jr",a/x.mkv,2\r\n,UP.MP4\r\nEve,b.mp4,9\r\n'
        )
    else:
        columns = {"who": ["Ann", "Bob, Jr", None, "Eve"], "path": ["b.mp4", "a/x.mkv", "UP.MP4", "b.mp4"]}
        with atomic(table) as temporary:
            pq.write_table(pa.table({**columns, "take": [1, 2, None, 9], "blob": [b"x"] * 4}), temporary)
    found = list_inputs(table)
    assert {file.path: dict(file.columns) for file in found} == {
        "b.mp4": {"who": "Ann", "take": "1"},
        "a/x.mkv": {"who": "Bob, Jr", "take": "2"},
        "UP.MP4": {"who": "", "take": ""},
    }
    by_path = {file.path: file for file in list_inputs(source)}
    for file in found:
        known = by_path[file.path]
        assert (file.key, file.fingerprint, file.csv_fingerprint) == (
            known.key,
            known.fingerprint,
            known.csv_fingerprint,
        )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"file,who\nb.mp4,Ann\n", "no column 'path'; it has file, who"),
        ("a.csv", b"path\n", "no video here"),
        ("a.csv", b'path\n"b.mp4', "line 1: unexpected end of data"),
        ("a.csv", b"p\0ath\nb.mp4\n", "zero bytes"),
        ("a.csv", b"path\nb.mp4\nnope://x/y.mp4\n", "row 2: "),
        ("a.parquet", b"PAR1", "the table cannot be read"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list_inputs(tmp_path / name)
