"""The input files of a job: what a folder, a list file or a remote prefix holds, before anything is opened."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lawdnet.storage import REQUESTS, Location, fingerprints, is_remote, local_copy, locate, scan
from lawdnet.types import Beat, Rejected, RejectReason

VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".ts", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp"}
AUDIO_SUFFIXES = {".wav", ".mp3", ".m4a", ".aac", ".flac", ".ogg", ".opus", ".wma"} | VIDEO_SUFFIXES
LIST_SUFFIXES = {".txt", ".lst"}
CSV_SUFFIXES = (".csv", ".CSV")
"""Suffixes of the landmarks beside a video; the first file that exists is used."""


@dataclass(frozen=True)
class InputFile:
    """A file that a job is to work on."""

    key: str
    """What its record is stored under: a hash of `path`."""
    path: str
    """Below the source, as text; bytes that are not UTF-8 are shown as escapes."""
    source: bytes
    """The whole path or URI, as bytes."""
    fingerprint: str
    """Changes when the file does; "" if the file does not exist."""
    csv_fingerprint: str
    """The same for the landmarks beside it."""

    @property
    def location(self) -> Location:
        """Where the file is."""
        return locate(os.fsdecode(self.source))


def list_inputs(source: Location, suffixes: Collection[str] = VIDEO_SUFFIXES, what: str = "video") -> list[InputFile]:
    """List the files that `source` names, sorted by path.

    A video is worked on again when it, or the CSV beside it, has changed, appeared or gone.

    Args:
        source: a folder or a remote prefix, searched to its full depth; one file; or a list, a `.txt` or `.lst` file
            with a path or URI on every line, relative to the list's folder. Blank lines and lines that begin with `#`
            are skipped, and what is listed twice counts once. Listed files need not exist, nor have those suffixes.
        suffixes: suffixes of the files to look for, in lower case, with their dots.
        what: the word for such a file in an error.

    Raises:
        ValueError: the source does not exist, holds no such file, or is a list that cannot be read.
    """
    source = locate(source)
    if isinstance(source, Path) and not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    is_folder = isinstance(source, Path) and source.is_dir()
    if not is_folder and source.suffix.lower() in LIST_SUFFIXES:
        found = list(input_files(_listed(source), source.parent))
    else:
        found = list(_inside(source, suffixes)) if is_folder or is_remote(source) else []
        found = found or list(_single(source, suffixes))
    if not found:
        raise ValueError(f"{source}: no {what} here (looked for {', '.join(sorted(suffixes))})")
    return sorted(found, key=lambda file: (file.path, file.source))


def _inside(folder: Location, suffixes: Collection[str]) -> Iterator[InputFile]:
    found = scan(folder, {*suffixes, *(suffix.lower() for suffix in CSV_SUFFIXES)})
    start = f"{folder}".rstrip("/")
    for name, mark in found.items():
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in suffixes:
            yield _input_file(name, f"{start}/{name}", [mark, *(found.get(stem + s, "") for s in CSV_SUFFIXES)])


def _single(file: Location, suffixes: Collection[str]) -> Iterator[InputFile]:
    if file.suffix.lower() in suffixes:
        yield from (found for found in input_files([file], file.parent) if found.fingerprint)


def input_files(files: Sequence[Location], folder: Location) -> Iterator[InputFile]:
    """The files as inputs, with their paths below the folder if they are in it."""
    start = str(folder).rstrip("/") + "/"
    with ThreadPoolExecutor(REQUESTS) as pool:
        for file, marks in zip(files, pool.map(lambda f: fingerprints(f, CSV_SUFFIXES), files), strict=True):
            yield _input_file(str(file).removeprefix(start), str(file), marks)


def _input_file(name: str, source: str, marks: Sequence[str]) -> InputFile:
    """Args: marks: the fingerprint of the file, then those of its possible CSVs."""
    encoded = os.fsencode(name)
    return InputFile(
        key=hashlib.sha256(encoded).hexdigest()[:16],
        path=encoded.decode("utf8", "backslashreplace"),
        source=os.fsencode(source),
        fingerprint=marks[0],
        csv_fingerprint=next(filter(None, marks[1:]), ""),
    )


def _listed(source: Location) -> list[Location]:
    """The files that a list names, each once."""
    found: dict[str, Location] = {}
    for number, line in lines(source):
        with about_line(source, number):
            file = resolve(line.strip(), source.parent)
        found.setdefault(str(file), file)
    return list(found.values())


@contextmanager
def opened(location: Location, companions: Collection[str] = (), *, beat: Beat) -> Iterator[Path]:
    """Open an input as a local file, with the files beside it; see `lawdnet.storage.local_copy`.

    Raises:
        Rejected: UNREADABLE.
    """
    with ExitStack() as stack:
        try:
            path = stack.enter_context(local_copy(location, companions, beat=beat))
            if path.exists() and not path.is_file():
                raise ValueError("not a regular file")
            path.open("rb").close()
        except (OSError, ValueError) as error:
            text = getattr(error, "strerror", None) or str(error)
            is_link = isinstance(location, Path) and location.is_symlink()
            link = f"; the link leads to {location.readlink()}" if is_link else ""
            raise Rejected(RejectReason.UNREADABLE, f"{text}{link}") from error
        yield path


def lines(source: Location) -> Iterator[tuple[int, str]]:
    """The lines of a list with their numbers, except blank ones and those that begin with `#`.

    Raises:
        ValueError: the list cannot be read, or is not text.
    """
    try:
        data = source.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except Exception as error:  # each protocol's client has errors of its own
        raise ValueError(f"{source}: the list cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if b"\0" in data:
        raise ValueError(f"{source}: a list is UTF-8 text, and this file holds zero bytes; save it as UTF-8")
    for number, line in enumerate(data.split(b"\n"), 1):
        text = os.fsdecode(line.rstrip(b"\r"))
        if text.strip() and not text.strip().startswith("#"):
            yield number, text


@contextmanager
def about_line(source: Location, number: int) -> Iterator[None]:
    """Add the list and the line number to every ValueError of the block."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{source}: line {number}: {error}") from None


def resolve(text: str, folder: Location) -> Location:
    """The location that a path or a URI names, relative to a folder.

    Raises:
        ValueError: the URI cannot be read.
    """
    if "://" in text or text.startswith("/"):
        return locate(text)
    # object stores take keys literally, so `..` must be resolved here
    return folder / text if isinstance(folder, Path) else (folder / text).resolve()
