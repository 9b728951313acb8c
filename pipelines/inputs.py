"""The inputs of a build: what a folder, a list file or a remote prefix holds, before anything is opened."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lawdnet.storage import REQUESTS, Location, fingerprints, is_remote, locate, scan

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
LIST_SUFFIXES = {".txt", ".lst"}
CSV_SUFFIXES = (".csv", ".CSV")
"""Of the landmarks beside a video; the first that exists is used."""

Row = dict[str, Any]


def list_inputs(source: Location) -> list[Row]:
    """The videos that `source` names, sorted by path, each with the key its outcome is stored under.

    A row has `path` (below the source, as text), `source` (the whole path or address, as bytes), `key`, and `inputs`:
    the state of the files that the outcome depends on. A video is built again when it, or the CSV beside it, has
    changed, come or gone.

    Args:
        source: a folder or a remote prefix, searched to its depth; one video; or a list, a `.txt` or `.lst` file with
            a path or address in every line, relative to the list's folder. Blank lines and lines that begin with `#`
            are skipped, and what is listed twice counts once. Listed files need not exist, nor be named like videos.

    Raises:
        ValueError: no such source, no video in it, or a list that cannot be read.
    """
    source = locate(source)
    if isinstance(source, Path) and not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    is_folder = isinstance(source, Path) and source.is_dir()
    if not is_folder and source.suffix.lower() in LIST_SUFFIXES:
        rows = list(_given(_listed(source), source.parent))
    else:
        rows = list(_inside(source)) if is_folder or is_remote(source) else []
        rows = rows or list(_alone(source))
    if not rows:
        raise ValueError(f"{source}: no video here (looked for {', '.join(sorted(VIDEO_SUFFIXES))})")
    return sorted(rows, key=lambda row: (row["path"], row["source"]))


def _inside(folder: Location) -> Iterator[Row]:
    found = scan(folder, VIDEO_SUFFIXES | {suffix.lower() for suffix in CSV_SUFFIXES})
    for name, state in found.items():
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in VIDEO_SUFFIXES:
            yield _row(
                name, f"{folder}".rstrip("/") + f"/{name}", [state, *(found.get(stem + s, "") for s in CSV_SUFFIXES)]
            )


def _alone(video: Location) -> Iterator[Row]:
    if video.suffix.lower() in VIDEO_SUFFIXES:
        yield from (row for row in _given([video], video.parent) if row["inputs"][0])


def _given(videos: Sequence[Location], folder: Location) -> Iterator[Row]:
    """Videos that were named one by one."""
    start = str(folder).rstrip("/") + "/"
    with ThreadPoolExecutor(REQUESTS) as pool:
        for video, states in zip(videos, pool.map(lambda v: fingerprints(v, CSV_SUFFIXES), videos), strict=True):
            yield _row(str(video).removeprefix(start), str(video), states)


def _row(name: str, source: str, states: Sequence[str]) -> Row:
    """Of the states that of the video comes first, then those of its possible CSVs."""
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
    try:
        data = source.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except Exception as error:  # each protocol's client has errors of its own
        raise ValueError(f"{source}: the list cannot be read ({error})") from error
    if b"\0" in data:
        raise ValueError(f"{source}: a list is UTF-8 text, and this file holds zero bytes; save it as UTF-8")
    found: dict[str, Location] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        text = os.fsdecode(line.strip())
        if not text or text.startswith("#"):
            continue
        try:
            video = locate(text) if "://" in text or text.startswith("/") else _below(source.parent, text)
        except ValueError as error:
            raise ValueError(f"{source}: line {number}: {error}") from None
        found.setdefault(str(video), video)
    return list(found.values())


def _below(folder: Location, name: str) -> Location:
    # a key is taken as it is written, so that dots in it have to be followed here
    return folder / name if isinstance(folder, Path) else (folder / name).resolve()
