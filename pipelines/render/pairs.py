"""What is rendered: a video, an audio file, and the name of the file that the two become."""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

from lawdnet.data.transfer import refuse_inside
from lawdnet.storage import Location, locate
from lawdnet.tasks.inputs import AUDIO_SUFFIXES, InputFile, about_line, input_files, lines, list_inputs, resolve
from lawdnet.tasks.records import RecordStore, TaskRecord

RECORDS = ".render"
"""Folder of the records, in that of the results."""
MAX_NAME = 48
"""Characters of a name that stay where it gets a part of its key; in UTF-8 a file's name has room for 255 bytes."""


@dataclass(frozen=True)
class RenderPair:
    """A video and an audio file that become one video."""

    key: str
    video: str
    """Path of the video, as text."""
    speech: str
    """Path of the audio file, as text."""
    video_source: bytes
    """The whole path or URI of the video."""
    speech_source: bytes
    """The whole path or URI of the audio file."""
    has_csv: bool
    """Whether landmarks lie beside the video."""
    inputs: list[str]
    """Fingerprints of the video, its CSV and the audio file, then of the settings that decide the result."""
    out: str
    """Path of the result below the folder of results."""

    @classmethod
    def of(cls, video: InputFile, speech: InputFile, out: str = "") -> RenderPair:
        """One pair of input files, whose result has no name yet where `out` is empty."""
        content = f"{video.key} {speech.key} {out}".rstrip()
        return cls(
            key=hashlib.sha256(content.encode()).hexdigest()[:16],
            video=video.path,
            speech=speech.path,
            video_source=video.source,
            speech_source=speech.source,
            has_csv=bool(video.csv_fingerprint),
            inputs=[video.fingerprint, video.csv_fingerprint, speech.fingerprint],
            out=out,
        )

    @property
    def name(self) -> str:
        """The result, as a person knows it."""
        return self.out

    @property
    def video_location(self) -> Location:
        """Where the video is."""
        return locate(os.fsdecode(self.video_source))

    @property
    def speech_location(self) -> Location:
        """Where the audio file is."""
        return locate(os.fsdecode(self.speech_source))

    def record(self) -> PairRecord:
        """A record that says nothing yet."""
        return PairRecord(inputs=self.inputs, video=self.video, speech=self.speech, out=self.out)


@dataclass(kw_only=True)
class PairRecord(TaskRecord):
    """What became of a pair: `status` is rendered, rejected or failed."""

    video: str
    speech: str
    out: str
    frames: int = 0
    passed_through: int = 0
    """Frames without a face, which stayed as they were."""
    result: str = ""
    """Fingerprint of the file that came of it."""

    @property
    def is_rendered(self) -> bool:
        """Whether there is a result."""
        return self.status == "rendered"

    def columns(self) -> dict[str, Any]:
        """The entry of renders.json."""
        names = ("video", "speech", "out", "status", "reason", "detail", "frames", "passed_through", "seconds")
        return {name: getattr(self, name) for name in names}


def pair_records(root: Location) -> RecordStore[PairRecord]:
    """The records of the results in `root`."""
    return RecordStore(root / RECORDS, PairRecord)


def all_pairs(videos: Location, speeches: Location, root: Location) -> list[RenderPair]:
    """Every video with every audio file, by video.

    Args:
        videos, speeches: each a folder, a file, a list or a remote prefix, as `list_inputs` takes it. The audio may be
            that of a video.
        root: where the results will be.

    Raises:
        ValueError: as `list_inputs`, or the results would become inputs of the next run.
    """
    refuse_inside(root, (videos, speeches))
    found = product(list_inputs(videos), list_inputs(speeches, AUDIO_SUFFIXES, "audio file"))
    return with_names([RenderPair.of(video, speech) for video, speech in found])


def listed_pairs(source: Location) -> list[RenderPair]:
    """The pairs of a file with `video,speech` or `video,speech,out` on every line; tabs where its name ends in `.tsv`.

    Paths are relative to the file's folder, `out` is a path below that of the results. Blank lines and lines that begin
    with `#` are skipped, and a pair that is listed twice counts once.

    Raises:
        ValueError: the file or one of its lines cannot be read; the message has the number of the line.
    """
    numbered = list(lines(source))
    rows = list(csv.reader((text for _, text in numbered), delimiter="\t" if source.suffix.lower() == ".tsv" else ","))
    if not rows:
        raise ValueError(f"{source}: no pair here; write video,speech on every line")
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
    inputs = zip(input_files(videos, source.parent), input_files(speeches, source.parent), outs, strict=True)
    return with_names([RenderPair.of(*entry) for entry in inputs])


def _read(row: Sequence[str], folder: Location) -> tuple[Location, Location, str]:
    """Video, audio file, and the result's path, which may be empty."""
    cells = [cell.strip() for cell in row]
    if len(cells) not in (2, 3) or not all(cells[:2]):
        raise ValueError("write video,speech or video,speech,out")
    return resolve(cells[0], folder), resolve(cells[1], folder), _safe(cells[2]) if cells[2:] and cells[2] else ""


def with_names(pairs: Sequence[RenderPair]) -> list[RenderPair]:
    """The pairs, each once, with a name for every result: VIDEO--SPEECH.mp4.

    Where several would share a name, or it is too long, it ends in the pair's key instead, whichever came first: names
    must not move from one pair to another when inputs are added.
    """
    once = list({pair.key: pair for pair in pairs}.values())
    uses = Counter(pair.out or f"{_stem(pair)}.mp4" for pair in once)
    return [replace(pair, out=pair.out or _name(pair, uses)) for pair in once]


def _name(pair: RenderPair, uses: Counter[str]) -> str:
    stem = _stem(pair)
    if uses[f"{stem}.mp4"] > 1 or len(os.fsencode(stem)) > 4 * MAX_NAME:
        stem = f"{stem[:MAX_NAME]}--{pair.key}"
    return f"{stem}.mp4"


def _stem(pair: RenderPair) -> str:
    return f"{Path(pair.video).stem}--{Path(pair.speech).stem}"


def _safe(out: str) -> str:
    """A path that can only be below the folder it is joined to, and is none of the names kept for ourselves.

    Raises:
        ValueError: it is not such a path.
    """
    path = PurePosixPath(out)
    if path.is_absolute() or any(part.startswith(".") for part in path.parts):
        raise ValueError(f"{out}: name a file below the folder of the results; no part may begin with a dot")
    if path.suffix.lower() != ".mp4" or not out.isprintable():
        raise ValueError(f"{out!r}: the result is an MP4; name it .mp4")
    return str(path)


def _real(location: Location) -> str:
    """Where a name leads: one file may have many."""
    return str(location.resolve()) if isinstance(location, Path) else str(location)


def check_outs(pairs: Sequence[RenderPair], root: Location) -> None:
    """Refuse results that would replace an input.

    Raises:
        ValueError: one would.
    """
    inputs = {_real(location) for pair in pairs for location in (pair.video_location, pair.speech_location)}
    if taken := inputs & {_real(root / pair.out) for pair in pairs}:
        raise ValueError(f"{min(taken)}: is an input, and would be replaced by a result; choose another --out")
