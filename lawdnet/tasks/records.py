"""What a job knows of its items between one run and the next: one small JSON file per item.

A record that cannot be read is an error. It must never look like work that was not done yet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import Any, Generic, Literal, Self, TypeVar

from lawdnet.storage import REQUESTS, Location, write_json
from lawdnet.types import RejectReason

VERSION = 2
"""Of the JSON. Version 1 had no number and kept the fields of `row` apart."""

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
    """The records of a job, in a folder of its own: DATASET/.build or OUT/.render."""

    folder: Location
    kind: type[R]

    def path(self, key: str) -> Location:
        """The file of an item's record."""
        return self.folder / f"{key}.json"

    def read(self, key: str) -> R | None:
        """Return the record of an item, or None if the item has none.

        Raises:
            ValueError: the record cannot be read; the message says what to do.
        """
        path = self.path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return self.kind.decode(json.loads(content))
        except ValueError as error:  # includes damaged JSON and text that is not UTF-8
            raise ValueError(f"{path}: cannot be read ({error}); delete it to do this item again") from error

    def write(self, key: str, record: R) -> None:
        """Store the record of an item, whole or not at all."""
        write_json(self.path(key), record.encode())

    def keys(self, skip: Iterable[str] = ()) -> list[str]:
        """The keys of all stored records, except for other JSON files of the folder, named by `skip`."""
        return [path.stem for path in self.folder.glob("*.json") if path.name not in set(skip)]

    def read_many(self, keys: Iterable[str], *, brief: bool = True) -> dict[str, R]:
        """Read many records at the same time, for object stores; items without one are left out.

        Args:
            brief: leave out the parts that need much memory.

        Raises:
            ValueError: one of them cannot be read.
        """

        def read(key: str) -> R | None:
            record = self.read(key)
            return record.brief() if record and brief else record

        keys = list(keys)
        with ThreadPoolExecutor(REQUESTS) as pool:
            found = zip(keys, pool.map(read, keys), strict=True)
            return {key: record for key, record in found if record}
