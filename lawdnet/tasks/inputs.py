"""The inputs of a job: what a folder, a list file or a remote prefix holds, before anything is opened."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lawdnet.storage import REQUESTS, Location, fingerprints, is_remote, local_copy, locate, scan
from lawdnet.types import Beat, Rejected, RejectReason

VIDEO_SUFFIXES = {
    ".mp4",
    ".mov",
    ".mkv",
    ".avi",
    ".webm",
    ".m4v",
    ".ts",
    ".mpg",
    ".mpeg",
    ".flv",
    ".wmv",
    ".3gp",
}
SOUND_SUFFIXES = {".wav", ".mp3", ".m4a", ".aac", ".flac", ".ogg", ".opus", ".wma"} | VIDEO_SUFFIXES
LIST_SUFFIXES = {".txt", ".lst"}
CSV_SUFFIXES = (".csv", ".CSV")
"""Of the landmarks beside a video; the first that exists is used."""

Row = dict[str, Any]


def list_inputs(source: Location, suffixes: Collection[str] = VIDEO_SUFFIXES, what: str = "video") -> list[Row]:
    """The files that `source` names, sorted by path, each with the key its outcome is stored under.

    A row has `path` (below the source, as text), `source` (the whole path or address, as bytes), `key`, and `inputs`:
    the state of the files that the outcome depends on. The work on a video is done again when it, or the CSV beside
    it, has changed, come or gone.

    Args:
        source: a folder or a remote prefix, searched to its depth; one file; or a list, a `.txt` or `.lst` file with
            a path or address in every line, relative to the list's folder. Blank lines and lines that begin with `#`
            are skipped, and what is listed twice counts once. Listed files need not exist, nor have those suffixes.
        suffixes: of the files looked for, in lower case, with their dots.
        what: such a file is called in a refusal.

    Raises:
        ValueError: no such source, nothing of the kind in it, or a list that cannot be read.
    """
    source = locate(source)
    if isinstance(source, Path) and not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    is_folder = isinstance(source, Path) and source.is_dir()
    if not is_folder and source.suffix.lower() in LIST_SUFFIXES:
        rows = list(named(_listed(source), source.parent))
    else:
        rows = list(_inside(source, suffixes)) if is_folder or is_remote(source) else []
        rows = rows or list(_alone(source, suffixes))
    if not rows:
        raise ValueError(f"{source}: no {what} here (looked for {', '.join(sorted(suffixes))})")
    return sorted(rows, key=lambda row: (row["path"], row["source"]))


def _inside(folder: Location, suffixes: Collection[str]) -> Iterator[Row]:
    found = scan(folder, {*suffixes, *(suffix.lower() for suffix in CSV_SUFFIXES)})
    for name, state in found.items():
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in suffixes:
            yield _row(
                name, f"{folder}".rstrip("/") + f"/{name}", [state, *(found.get(stem + s, "") for s in CSV_SUFFIXES)]
            )


def _alone(file: Location, suffixes: Collection[str]) -> Iterator[Row]:
    if file.suffix.lower() in suffixes:
        yield from (row for row in named([file], file.parent) if row["inputs"][0])


def named(files: Sequence[Location], folder: Location) -> Iterator[Row]:
    """A row, as of `list_inputs`, for each of the files, with its path below the folder where it is there."""
    start = str(folder).rstrip("/") + "/"
    with ThreadPoolExecutor(REQUESTS) as pool:
        for file, states in zip(files, pool.map(lambda f: fingerprints(f, CSV_SUFFIXES), files), strict=True):
            yield _row(str(file).removeprefix(start), str(file), states)


def _row(name: str, source: str, states: Sequence[str]) -> Row:
    """Of the states that of the file comes first, then those of its possible CSVs."""
    encoded = os.fsencode(name)
    return {
        # a name that is no UTF-8 is shown with escapes, and opened by its bytes
        "path": encoded.decode("utf8", "backslashreplace"),
        "source": os.fsencode(source),
        "key": hashlib.sha256(encoded).hexdigest()[:16],
        "inputs": [states[0], next(filter(None, states[1:]), "")],
    }


def _listed(source: Location) -> list[Location]:
    """What a list file names, each once."""
    found: dict[str, Location] = {}
    for number, line in lines(source):
        with about_line(source, number):
            place = resolve(line.strip(), source.parent)
        found.setdefault(str(place), place)
    return list(found.values())


@contextmanager
def opened(place: Location, companions: Collection[str] = (), *, beat: Beat) -> Iterator[Path]:
    """An input as a file of this machine, with what lies beside it; see `lawdnet.storage.local_copy`.

    Raises:
        Rejected: UNREADABLE.
    """
    with ExitStack() as stack:
        try:
            path = stack.enter_context(local_copy(place, companions, beat=beat))
            if path.exists() and not path.is_file():
                raise ValueError("no regular file")
            path.open("rb").close()
        except (OSError, ValueError) as error:
            text = getattr(error, "strerror", None) or str(error)
            is_link = isinstance(place, Path) and place.is_symlink()
            link = f"; the link leads to {place.readlink()}" if is_link else ""
            raise Rejected(RejectReason.UNREADABLE, f"{text}{link}") from error
        yield path


def lines(source: Location) -> Iterator[tuple[int, str]]:
    """The lines of a list with their numbers, but for blank ones and those that begin with `#`.

    Raises:
        ValueError: it cannot be read, or is no text.
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
    """Inside, a ValueError is about that line of a list, and says so."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{source}: line {number}: {error}") from None


def resolve(text: str, folder: Location) -> Location:
    """The place that a path or an address names, relative to a folder.

    Raises:
        ValueError: an address that cannot be read.
    """
    if "://" in text or text.startswith("/"):
        return locate(text)
    # a key is taken as it is written, so that dots in it have to be followed here
    return folder / text if isinstance(folder, Path) else (folder / text).resolve()
