"""The input files of a job: what a folder, a list file or a remote prefix holds, before anything is opened."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from lawdnet.storage import REQUESTS, Location, fingerprints, is_remote, local_copy, locate, parquet_file, scan
from lawdnet.tables import sort_pieces
from lawdnet.types import Beat, Rejected, RejectReason

VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".ts", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp"}
AUDIO_SUFFIXES = {".wav", ".mp3", ".m4a", ".aac", ".flac", ".ogg", ".opus", ".wma"} | VIDEO_SUFFIXES
LIST_SUFFIXES = {".txt", ".lst"}
TABLE_SUFFIXES = {".csv", ".parquet"}
PATH_COLUMN = "path"
"""The column of a table that names the files."""
CSV_SUFFIXES = (".csv", ".CSV")
"""Suffixes of the landmarks beside a video; the first file that exists is used."""

KEY_DIGITS = 16
"""Of the hash that is an input's key."""


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
    columns: Mapping[str, str] = field(default_factory=dict)
    """What a table says about it, by column."""

    @property
    def location(self) -> Location:
        """Where the file is."""
        return locate(os.fsdecode(self.source))


SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "path": pa.string(),
        "source": pa.binary(),
        "fingerprint": pa.string(),
        "csv_fingerprint": pa.string(),
        "columns": pa.string(),  # as JSON
    }
)
AT_ONCE = 4096
"""Inputs that are made objects at a time."""


class InputList(Sequence[InputFile]):
    """Inputs, by number, in the order of their paths: as columns, of which a row becomes an object when it is needed.

    A million take 200 MB.
    """

    def __init__(self, files: Iterable[InputFile]) -> None:
        tables, rest = [SCHEMA.empty_table()], iter(files)
        while rows := [_to_row(file) for file in islice(rest, AT_ONCE)]:
            tables.append(pa.Table.from_pylist(rows, SCHEMA))
        self._table = sort_pieces(tables, ["path", "source"])  # two paths may be shown alike

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, place: int) -> InputFile: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[InputFile]: ...

    def __getitem__(self, place: int | slice) -> InputFile | Sequence[InputFile]:
        if isinstance(place, slice):
            return self.at(range(len(self))[place])
        return self.at([range(len(self))[place]])[0]  # an IndexError ends a loop over the list

    def __iter__(self) -> Iterator[InputFile]:
        for batch in self._table.to_batches(max_chunksize=AT_ONCE):
            yield from map(_from_row, batch.to_pylist())

    def at(self, numbers: Sequence[int]) -> list[InputFile]:
        """The inputs with these numbers."""
        return [_from_row(row) for row in self._table.take(pa.array(numbers, pa.int64())).to_pylist()]

    def numbers(self, keys: Sequence[str]) -> list[int | None]:
        """The numbers of the inputs with these keys; None where there is none."""
        order, known = self._by_key
        wanted = np.array([key.encode() for key in keys], known.dtype)
        places = np.searchsorted(known, wanted).clip(max=len(known) - 1)
        found = zip(order[places].tolist(), (known[places] == wanted).tolist(), strict=True)
        return [number if is_there else None for number, is_there in found]

    @cached_property
    def _by_key(self) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the inputs in the order of their keys, and the keys."""
        known = np.array(self._table["key"].to_pylist(), f"S{KEY_DIGITS}")
        order = np.argsort(known)
        return order, known[order]


def _to_row(file: InputFile) -> dict[str, Any]:
    row = {name: getattr(file, name) for name in SCHEMA.names}
    return row | {"columns": json.dumps(dict(file.columns)) if file.columns else ""}


def _from_row(row: Mapping[str, Any]) -> InputFile:
    return InputFile(**{**row, "columns": json.loads(row["columns"]) if row["columns"] else {}})


def list_inputs(source: Location, suffixes: Collection[str] = VIDEO_SUFFIXES, what: str = "video") -> InputList:
    """List the files that `source` names, sorted by path.

    A video is worked on again when it, or the CSV beside it, has changed, appeared or gone.

    Args:
        source: a folder or a remote prefix, searched to its full depth; one file; or a list, a `.txt` or `.lst` file
            with a path or URI on every line, relative to the list's folder. Blank lines and lines that begin with `#`
            are skipped, and what is listed twice counts once. Listed files need not exist, nor have those suffixes.
            Or a table, a `.csv` (UTF-8, with a header) or `.parquet` file that has the paths in a column `path`.
        suffixes: suffixes of the files to look for, in lower case, with their dots.
        what: the word for such a file in an error.

    Raises:
        ValueError: the source does not exist, holds no such file, or is a list that cannot be read.
    """
    source = locate(source)
    if isinstance(source, Path) and not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    is_folder = isinstance(source, Path) and source.is_dir()
    suffix = source.suffix.lower()
    if not is_folder and suffix in LIST_SUFFIXES:
        found = InputList(input_files(_listed(source), source.parent))
    elif not is_folder and suffix in TABLE_SUFFIXES:
        found = InputList(_in_table(source, _csv_rows(source) if suffix == ".csv" else _parquet_rows(source)))
    else:
        found = InputList(_inside(source, suffixes) if is_folder or is_remote(source) else ())
        found = found or InputList(_single(source, suffixes))
    if not found:
        raise ValueError(f"{source}: no {what} here (looked for {', '.join(sorted(suffixes))})")
    return found


def _inside(folder: Location, suffixes: Collection[str]) -> Iterator[InputFile]:
    files = scan(folder, {*suffixes, *(suffix.lower() for suffix in CSV_SUFFIXES)})
    start = f"{folder}".rstrip("/")
    for _, together in groupby(files, key=lambda file: os.path.dirname(file[0])):
        found = dict(together)
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
        key=hashlib.sha256(encoded).hexdigest()[:KEY_DIGITS],
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


def _in_table(source: Location, rows: Sequence[Mapping[str, str]]) -> list[InputFile]:
    """The files that a table names, each once, with what its first row says.

    Raises:
        ValueError: it has no column of paths, or one of them cannot be read.
    """
    if rows and PATH_COLUMN not in rows[0]:
        raise ValueError(f"{source}: no column {PATH_COLUMN!r}; it has {', '.join(rows[0])}")
    said: dict[str, Mapping[str, str]] = {}
    places: dict[str, Location] = {}
    for number, row in enumerate(rows, 1):
        if path := row[PATH_COLUMN].strip():
            with about_line(source, number, "row"):
                file = resolve(path, source.parent)
            places.setdefault(str(file), file)
            said.setdefault(str(file), {name: text for name, text in row.items() if name != PATH_COLUMN})
    found = input_files(list(places.values()), source.parent)
    return [replace(file, columns=columns) for file, columns in zip(found, said.values(), strict=True)]


def _csv_rows(source: Location) -> list[dict[str, str]]:
    rows = csv.DictReader(io.StringIO(os.fsdecode(_read_list(source))), restkey="", restval="", strict=True)
    try:
        return [{name: text for name, text in row.items() if name} for row in rows]
    except csv.Error as error:
        raise ValueError(f"{source}: after line {rows.line_num}: {error}") from None


def _parquet_rows(source: Location) -> list[dict[str, str]]:
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer)
    try:
        with parquet_file(source) as file:
            names = [column.name for column in file.schema_arrow if any(is_kind(column.type) for is_kind in kinds)]
            rows = file.read(columns=names).to_pylist()
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: the table cannot be read ({error})") from error
    return [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]


@contextmanager
def opened(
    location: Location, companions: Collection[str] = (), *, most: int | None = None, beat: Beat
) -> Iterator[Path]:
    """Open an input as a local file, with the files beside it; see `lawdnet.storage.local_copy`.

    Raises:
        Rejected: UNREADABLE.
    """
    with ExitStack() as stack:
        try:
            path = stack.enter_context(local_copy(location, companions, most=most, beat=beat))
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
    for number, line in enumerate(_read_list(source).split(b"\n"), 1):
        text = os.fsdecode(line.rstrip(b"\r"))
        if text.strip() and not text.strip().startswith("#"):
            yield number, text


def _read_list(source: Location) -> bytes:
    try:
        data = source.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except Exception as error:  # each protocol's client has errors of its own
        raise ValueError(f"{source}: the list cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if b"\0" in data:
        raise ValueError(f"{source}: a list is UTF-8 text, and this file holds zero bytes; save it as UTF-8")
    return data


@contextmanager
def about_line(source: Location, number: int, what: str = "line") -> Iterator[None]:
    """Add the list and the line number to every ValueError of the block."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{source}: {what} {number}: {error}") from None


def resolve(text: str, folder: Location) -> Location:
    """The location that a path or a URI names, relative to a folder.

    Raises:
        ValueError: the URI cannot be read.
    """
    if "://" in text or text.startswith("/"):
        return locate(text)
    # object stores take keys literally, so `..` must be resolved here
    return folder / text if isinstance(folder, Path) else (folder / text).resolve()
