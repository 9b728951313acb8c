"""What a job knows of its items between one run and the next: a small JSON file per item, or a larger one for many.

A record that cannot be read is an error. It must never look like work that was not done yet.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, Generic, Literal, Self, TypeVar

from lawdnet.storage import REQUESTS, Location, atomic, write_json
from lawdnet.types import RejectReason

VERSION = 2
"""Of the JSON. Version 1 had no number and kept the fields of `row` apart."""

PACKED = "packed"
"""Folder of the files of many records, below that of the records."""
PREFIX = 3
"""Records whose keys begin with the same so many characters, which are hexadecimal, share a file when they are packed:
there are at most 4096, of 250 records each where there are a million."""
LIKELY = 256
"""Records that a packed file is taken to hold where only its name is known."""
PIECE = 4096
"""About so many records are in memory at a time."""

R = TypeVar("R", bound="TaskRecord")


@dataclass(frozen=True)
class Refusal:
    """Why an item gave no result."""

    status: Literal["rejected", "failed"]
    """`rejected`: the input cannot be used. `failed`: something unforeseen; the next run tries the item again."""
    reason: RejectReason
    detail: str
    """One sentence for a person."""

    @property
    def printable(self) -> str:
        """The detail as UTF-8: it may name a file."""
        return self.detail.encode("utf8", "backslashreplace").decode("utf8")


@dataclass(kw_only=True)
class TaskRecord:
    """What became of one item. Subclasses add fields with plain values; `status` is theirs where an item succeeds."""

    inputs: list[str]
    """Fingerprints of the item's input files and settings when it was worked on."""
    run: str = ""
    """The run of the job that wrote this record."""
    status: str = ""
    reason: str = ""
    detail: str = ""
    seconds: float = 0.0

    @property
    def is_failed(self) -> bool:
        """Whether the item is to be tried again."""
        return self.status == "failed"

    def refuse(self, refusal: Refusal) -> None:
        """Record that the item gave no result."""
        self.status = refusal.status
        self.reason = str(refusal.reason)
        self.detail = refusal.printable

    def brief(self) -> Self:
        """This record without the parts that need much memory."""
        return self

    def encode(self) -> dict[str, Any]:
        """This record as plain values for JSON."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def decode(cls, content: Any) -> Self:
        """The inverse of `encode`, which also reads version 1.

        Raises:
            ValueError: the content is not a record of this kind, or its version is unknown.
        """
        if not isinstance(content, dict):
            raise ValueError("not a record")
        version = content.get("version", 1)
        if version not in (1, VERSION):
            raise ValueError(f"record version {version}, this code reads 1 to {VERSION}; update lawdnet")
        try:
            record = cls.from_fields(cls.upgrade(content) if version == 1 else content)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a {cls.__name__} ({error})") from None
        if not isinstance(record.inputs, list) or not isinstance(record.status, str):
            raise ValueError(f"not a {cls.__name__} (inputs {record.inputs!r}, status {record.status!r})")
        return record

    @classmethod
    def from_fields(cls, content: dict[str, Any]) -> Self:
        """The record with these fields; others are ignored.

        Raises:
            KeyError, TypeError: a field is missing or of another type.
        """
        return cls(**{field.name: content[field.name] for field in fields(cls) if field.name in content})

    @classmethod
    def upgrade(cls, content: dict[str, Any]) -> dict[str, Any]:
        """The fields of a record of version 1."""
        row = content.get("row")
        if not isinstance(row, dict):
            raise ValueError("not a record (`row` is missing)")
        return {**content, **row}


@dataclass(frozen=True)
class RecordStore(Generic[R]):
    """The records of a job, in a folder of its own: DATASET/.build or OUT/.render.

    Each is a file of its own until a driver packs them: then those whose keys begin alike share a file. A file of its
    own overrides what is packed.
    """

    folder: Location
    kind: type[R]
    others: tuple[str, ...] = ()
    """Names of other JSON files of the folder."""

    def path(self, key: str) -> Location:
        """The file of an item's record, if it is not packed."""
        return self.folder / f"{key}.json"

    def read(self, key: str) -> R | None:
        """Return the record of an item, or None if the item has none.

        Raises:
            ValueError: the record cannot be read; the message says what to do.
        """
        found = self.read_loose(key)
        return found if found is not None else self._read_packed(key[:PREFIX]).get(key)

    def read_loose(self, key: str) -> R | None:
        """Return the record of an item, or None if it was not written since the records were packed.

        Raises:
            ValueError: the record cannot be read.
        """
        path = self.path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        with _named(path, "this item"):
            return self.kind.decode(json.loads(content))

    def _read_packed(self, prefix: str) -> dict[str, R]:
        path = self._packed / f"{prefix}.json"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return {}
        with _named(path, "these items"):
            return {key: self.kind.decode(record) for key, record in json.loads(content).items()}

    @property
    def _packed(self) -> Location:
        return self.folder / PACKED

    def write(self, key: str, record: R) -> None:
        """Store the record of an item, whole or not at all."""
        write_json(self.path(key), record.encode())

    def loose_keys(self) -> list[str]:
        """The keys of the records that have a file of their own."""
        return [path.stem for path in self.folder.glob("*.json") if path.name not in self.others]

    def read_many(self, keys: Iterable[str], *, brief: bool = True) -> dict[str, R]:
        """Read many records at the same time, for object stores; items without one are left out.

        Args:
            brief: leave out the parts that need much memory.

        Raises:
            ValueError: one of them cannot be read.
        """
        return self._read_all(self.read, list(keys), brief)

    def _read_all(self, read: Callable[[str], R | None], keys: Sequence[str], brief: bool) -> dict[str, R]:
        with ThreadPoolExecutor(REQUESTS) as pool:
            found = zip(keys, pool.map(read, keys), strict=True)
            return {key: record.brief() if brief else record for key, record in found if record}

    def pieces(self, *, brief: bool = True, most_loose: int | None = None) -> Iterator[dict[str, R]]:
        """Read all records, some thousands at a time, in the order of their keys.

        Args:
            brief: leave out the parts that need much memory.
            most_loose: if more records than this have a file of their own, pack each piece when the next one is asked
                for. Needs whole records, which the caller must not change.

        Raises:
            ValueError: one of them cannot be read.
        """
        assert not (brief and most_loose is not None)
        keys = self.loose_keys()
        is_to_pack = most_loose is not None and len(keys) > most_loose
        loose: defaultdict[str, list[str]] = defaultdict(list)
        for key in keys:
            loose[key[:PREFIX]].append(key)
        del keys
        packed = {path.stem for path in self._packed.glob("*.json")}
        for prefixes in _bundles(loose, packed):
            piece = self._piece(prefixes, loose, brief)
            yield piece
            for prefix in prefixes if is_to_pack else ():
                if own := loose.pop(prefix, []):
                    self.write_packed({key: record for key, record in piece.items() if key[:PREFIX] == prefix})
                    self._remove(own)

    def _piece(self, prefixes: Sequence[str], loose: Mapping[str, Sequence[str]], brief: bool) -> dict[str, R]:
        found: dict[str, R] = {}
        with ThreadPoolExecutor(REQUESTS) as pool:
            for records in pool.map(self._read_packed, prefixes):
                found |= {key: record.brief() if brief else record for key, record in records.items()}
        found |= self._read_all(self.read_loose, [key for prefix in prefixes for key in loose.get(prefix, ())], brief)
        return dict(sorted(found.items()))

    def write_packed(self, records: Mapping[str, R]) -> None:
        """Store all records whose keys begin alike in the file that they share, whole or not at all."""
        (prefix,) = {key[:PREFIX] for key in records}
        with atomic(self._packed / f"{prefix}.json") as temporary:
            content = {key: record.encode() for key, record in records.items()}
            temporary.write_text(json.dumps(content, ensure_ascii=False), encoding="utf8")

    def _remove(self, loose: Sequence[str]) -> None:
        with ThreadPoolExecutor(REQUESTS) as pool:
            list(pool.map(lambda key: self.path(key).unlink(missing_ok=True), loose))


def _bundles(loose: Mapping[str, Sequence[str]], packed: Set[str]) -> Iterator[list[str]]:
    """Prefixes of about `PIECE` records together."""
    bundle: list[str] = []
    size = 0
    for prefix in sorted(loose.keys() | packed):
        bundle.append(prefix)
        size += len(loose.get(prefix, ())) + LIKELY * (prefix in packed)
        if size >= PIECE:
            yield bundle
            bundle, size = [], 0
    if bundle:
        yield bundle


@contextmanager
def _named(path: Location, what: str) -> Iterator[None]:
    """Say which file cannot be read: it is damaged, or not UTF-8, or holds something else."""
    try:
        yield
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); delete it to do {what} again") from error
