"""A disk that is really full: a small file system of its own, where the system lets a test make one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.serving import finished, speech, until

ROOM = 24
"""MiB of the file system that the server writes to."""
ALONE = ["unshare", "--user", "--map-root-user", "--mount"]
MOUNT = 'mount -t tmpfs -o size="$0"m tmpfs "$1" && shift && exec "$@"'


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disk")
    try:
        subprocess.run([*ALONE, "sh", "-c", MOUNT, "1", str(folder), "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system lets nobody mount a small file system in a namespace")
    return folder


@pytest.fixture(scope="module")
def served(disk: Path, network: Path, drawn: Path) -> Iterator[tuple[httpx.Client, Path]]:
    """A client of a server that writes to the small disk, and that disk as this process sees it."""
    words = [sys.executable, "-m", "jobs.serve", str(network), "--template", f"anna={drawn}", "--device", "cpu"]
    words += ["--data", str(disk / "data"), "--port", "0", "--set", "free_bytes=1"]
    command = [*ALONE, "sh", "-c", MOUNT, str(ROOM), str(disk), *words]
    scratch = {**os.environ, "TMPDIR": str(disk)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=scratch) as process:
        assert process.stderr
        try:
            address = next(found for line in process.stderr if (found := re.search(r"http://\S+", line)))
            with httpx.Client(base_url=address[0], timeout=60) as client:
                until(lambda: client.get("/readyz").status_code == 200, 60)
                until(lambda: client.get("/v1/templates/anna").json()["state"] == "ready", 60)
                yield client, Path(f"/proc/{process.pid}/root{disk}")
        finally:
            process.terminate()


def post(client: httpx.Client, audio: bytes) -> httpx.Response:
    return client.post("/v1/videos", files={"audio": audio})


def works(client: httpx.Client, tmp_path: Path) -> None:
    answer = post(client, speech(tmp_path / "a.wav").read_bytes())
    assert answer.status_code == 202, answer.text
    assert finished(client, answer.json())["state"] == "succeeded"


def is_full(answer: httpx.Response) -> bool:
    kind = answer.json()["kind"] if answer.status_code == 507 else ""
    return kind == "disk_full" and int(answer.headers["retry-after"]) > 0


def test_an_upload_that_has_no_room_is_507_and_leaves_nothing(
    served: tuple[httpx.Client, Path], tmp_path: Path
) -> None:
    client, disk = served
    works(client, tmp_path)
    large = speech(tmp_path / "large.wav", seconds=(ROOM << 20) / 32_000).read_bytes()
    for _ in range(3):
        assert is_full(post(client, large))
    works(client, tmp_path)
    assert os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize > (ROOM << 20) / 2


def test_with_no_byte_left_the_server_lives(served: tuple[httpx.Client, Path], tmp_path: Path) -> None:
    client, disk = served
    ballast = disk / "ballast"
    with ballast.open("wb") as file, pytest.raises(OSError, match="No space left"):
        file.write(bytes(ROOM << 20))
    try:
        assert os.statvfs(disk).f_bavail == 0
        for _ in range(3):
            assert is_full(post(client, speech(tmp_path / "a.wav").read_bytes()))
        assert client.get("/healthz").status_code == 200
        assert client.get("/v1/templates").status_code == 200
    finally:
        ballast.unlink()
    works(client, tmp_path)


def test_a_video_that_fills_the_disk_fails_with_a_reason(served: tuple[httpx.Client, Path], tmp_path: Path) -> None:
    client, disk = served
    audio = speech(tmp_path / "b.wav", seconds=60).read_bytes()
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        room = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
        file.write(bytes(room - len(audio) - (200 << 10)))  # the audio fits, its video does not
    try:
        answer = post(client, audio)
        assert answer.status_code == 202, answer.text
        ended = finished(client, answer.json())
        assert (ended["state"], ended["problem"]["kind"]) == ("failed", "disk_full"), ended
    finally:
        ballast.unlink()
    works(client, tmp_path)
