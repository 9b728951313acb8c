"""What is rendered: a video, a speech, and the name of the file that the two become."""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

from lawdnet.data.transfer import refuse_inside
from lawdnet.storage import Location, locate
from lawdnet.tasks.inputs import SOUND_SUFFIXES, about_line, lines, list_inputs, named, resolve

MAX_NAME = 48
"""Characters of a name that stay where it gets a part of its key; in UTF-8 a file's name has room for 255 bytes."""

Row = dict[str, Any]


def all_pairs(videos: Location, speeches: Location, root: Location) -> list[Row]:
    """Every video with every speech, by video; see `pair` for what a row has.

    Args:
        videos, speeches: each a folder, a file, a list or a remote prefix, as `list_inputs` takes it. A speech may be
            the sound of a video.
        root: where the results will be.

    Raises:
        ValueError: as `list_inputs`, or the results would become inputs of the next time.
    """
    refuse_inside(root, (videos, speeches))
    found = product(list_inputs(videos), list_inputs(speeches, SOUND_SUFFIXES, "sound"))
    return with_names([pair(video, speech) for video, speech in found])


def listed_pairs(source: Location) -> list[Row]:
    """The pairs of a file with `video,speech` or `video,speech,out` in every line; tabs where its name ends in `.tsv`.

    Paths are relative to the file's folder, `out` is a path below that of the results. Blank lines and lines that begin
    with `#` are skipped, and a pair that is listed twice counts once.

    Raises:
        ValueError: the file cannot be read, or a line that cannot be meant; the message has its number.
    """
    numbered = list(lines(source))
    rows = list(csv.reader((text for _, text in numbered), delimiter="\t" if source.suffix.lower() == ".tsv" else ","))
    if not rows:
        raise ValueError(f"{source}: no pair here; write video,speech in every line")
    if len(rows) != len(numbered):
        raise ValueError(f"{source}: a quoted name goes over the end of its line; close the quotes")
    found: list[tuple[Location, Location, str]] = []
    lines_of: dict[str, int] = {}
    for (number, _), row in zip(numbered, rows, strict=True):
        with about_line(source, number):
            found.append(_read(row, source.parent))
            out = found[-1][2]
            if out and lines_of.setdefault(out, number) != number:
                raise ValueError(f"{out} is the result of line {lines_of[out]} already")
    videos, speeches, outs = zip(*found, strict=True)
    inputs = zip(named(videos, source.parent), named(speeches, source.parent), outs, strict=True)
    return with_names([pair(*entry) for entry in inputs])


def _read(row: Sequence[str], folder: Location) -> tuple[Location, Location, str]:
    """Video, speech, and the result's path, which may be empty."""
    cells = [cell.strip() for cell in row]
    if len(cells) not in (2, 3) or not all(cells[:2]):
        raise ValueError("write video,speech or video,speech,out")
    return resolve(cells[0], folder), resolve(cells[1], folder), _safe(cells[2]) if cells[2:] and cells[2] else ""


def pair(video: Row, speech: Row, out: str = "") -> Row:
    """One pair of inputs, as `list_inputs` gives them.

    Returns:
        `video`, `speech`: their paths as text; `video_source`, `speech_source`: the whole paths, as bytes; `key`: what
        its outcome is stored under; `inputs`: the state of the video, its CSV and the speech; `out`.
    """
    told = f"{video['key']} {speech['key']} {out}".rstrip()
    return {
        "key": hashlib.sha256(told.encode()).hexdigest()[:16],
        "video": video["path"],
        "speech": speech["path"],
        "video_source": video["source"],
        "speech_source": speech["source"],
        "inputs": [*video["inputs"], speech["inputs"][0]],
        "out": out,
    }


def with_names(pairs: Sequence[Row]) -> list[Row]:
    """The pairs, each once, with a name for every result: VIDEO--SPEECH.mp4.

    Where several would share a name, or it is too long, it ends in the pair's key instead, whichever came first: names
    must not move from one pair to another when inputs are added.
    """
    once = list({entry["key"]: entry for entry in pairs}.values())
    uses = Counter(entry["out"] or f"{_stem(entry)}.mp4" for entry in once)
    return [entry | {"out": entry["out"] or _name(entry, uses)} for entry in once]


def _name(entry: Row, uses: Counter[str]) -> str:
    stem = _stem(entry)
    if uses[f"{stem}.mp4"] > 1 or len(os.fsencode(stem)) > 4 * MAX_NAME:
        stem = f"{stem[:MAX_NAME]}--{entry['key']}"
    return f"{stem}.mp4"


def _stem(entry: Row) -> str:
    return f"{Path(entry['video']).stem}--{Path(entry['speech']).stem}"


def _safe(out: str) -> str:
    """A path that can only be below the folder it is joined to, and is none of the names kept for ourselves.

    Raises:
        ValueError: it is another one.
    """
    path = PurePosixPath(out)
    if path.is_absolute() or any(part.startswith(".") for part in path.parts):
        raise ValueError(f"{out}: name a file below the folder of the results; no part may begin with a dot")
    if path.suffix.lower() != ".mp4" or not out.isprintable():
        raise ValueError(f"{out!r}: the result is an MP4; name it .mp4")
    return str(path)


def _real(place: Location) -> str:
    """Where a name leads: one file has many."""
    return str(place.resolve()) if isinstance(place, Path) else str(place)


def check_outs(pairs: Sequence[Row], root: Location) -> None:
    """No result replaces an input.

    Raises:
        ValueError: one would.
    """
    inputs = {_real(locate(os.fsdecode(entry[name]))) for entry in pairs for name in ("video_source", "speech_source")}
    if taken := inputs & {_real(root / entry["out"]) for entry in pairs}:
        raise ValueError(f"{min(taken)}: is an input, and would be replaced by a result; choose another --out")
