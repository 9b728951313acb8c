"""Remote files that are read in parts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lawdnet import ranges
from lawdnet.ranges import open_binary
from lawdnet.storage import local_copy, sha256
from lawdnet.types import Rejected
from lawdnet.video import decode, probe
from tests.support.s3_server import S3Server

BLOCK = 1000
SIZE = 10_500


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(ranges, "BLOCKS", 4)


@pytest.fixture
def content() -> bytes:
    return np.random.default_rng(0).bytes(SIZE)


@pytest.fixture
def remote(s3: S3Server, content: bytes) -> Any:
    assert s3.root is not None
    path = s3.root / "a b.bin"
    path.write_bytes(content)
    s3.requests.clear()
    return path


def fetched(s3: S3Server) -> list[int]:
    return [size for method, path, size in s3.requests if method == "GET" and "bin" in path]


def test_any_part_is_read_and_only_what_is_needed_is_fetched(s3: S3Server, remote: Any, content: bytes) -> None:
    rng = np.random.default_rng(1)
    with local_copy(remote, most=0) as path:
        assert path.stat().st_size == SIZE
        with open_binary(path) as file:
            file.seek(-500, os.SEEK_END)
            assert file.read(900) == content[-500:]
            assert fetched(s3) == [500]
            for start in rng.integers(0, SIZE + 10, 50).tolist():
                file.seek(start)
                found = file.read(300)  # ends at a block's end, as any raw read may
                assert found == content[start : start + len(found)]
                assert len(found) == min(300, BLOCK - start % BLOCK, max(0, SIZE - start))


def test_whole_reads_are_complete_and_the_disk_holds_the_last_blocks(s3: S3Server, remote: Any, content: bytes) -> None:
    with local_copy(remote, most=SIZE - 1) as path:
        blocks = ranges._known[path]
        assert path.stat().st_blocks == 0, "a file of holes"
        with open_binary(path) as file:
            assert file.readall() == content
        assert sum(fetched(s3)) == SIZE
        assert os.fstat(blocks.kept.fileno()).st_size == 4 * BLOCK
        assert list(blocks.slots) == [7, 8, 9, 10]
        s3.requests.clear()
        with open_binary(path) as file:
            file.seek(7 * BLOCK)
            assert file.readall() == content[7 * BLOCK :]
        assert fetched(s3) == [], "kept from the first reading"
        assert sha256(path) == sha256(remote)
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        open_binary(path)


def test_a_small_file_is_copied(s3: S3Server, remote: Any, content: bytes) -> None:
    with local_copy(remote, most=SIZE) as path:
        assert path.read_bytes() == content
    assert fetched(s3) == [SIZE]


def test_a_block_that_was_not_fetched_is_fetched_again(
    s3: S3Server, remote: Any, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any, **__: Any) -> bytes:
        raise OSError("the network is down")

    with local_copy(remote, most=0) as path, open_binary(path) as file:
        with monkeypatch.context() as patch:
            patch.setattr(remote.fs, "cat_file", gone)
            with pytest.raises(OSError, match="network is down"):
                file.read(10)
        assert file.read(10) == content[:10]


def test_what_is_not_there_is_told_at_once(remote: Any) -> None:
    with pytest.raises(FileNotFoundError), local_copy(remote.with_name("b.bin"), most=0):
        pass


def test_ffmpeg_reads_a_video_in_parts(s3: S3Server, drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert s3.root is not None
    remote = s3.root / "a.mp4"
    remote.write_bytes(drawn.read_bytes())
    with local_copy(remote, most=0) as path:
        video = probe(path)
        assert video.num_frames == probe(drawn).num_frames
        for (index, ours), (other, theirs) in zip(decode(path), decode(drawn), strict=True):
            assert index == other
            assert (ours == theirs).all()
        ranges._known[path].slots.clear()

        def gone(*_: Any, **__: Any) -> bytes:
            raise OSError("the network is down")

        monkeypatch.setattr(s3.root.fs, "cat_file", gone)
        with pytest.raises(OSError, match="network is down") as caught:
            list(decode(path))
        assert not isinstance(caught.value, Rejected), "it says nothing about the video"
