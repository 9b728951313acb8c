"""The segments of a dataset as columns: a row becomes an object when it is asked for.

Four million rows are 200 MB, and in a file that processes map into memory they are there once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import pyarrow as pa


@dataclass(frozen=True)
class SegmentRef:
    """Location of a stored segment."""

    segment_id: str
    video_id: str
    split: str
    num_frames: int
    path: str
    row_group: int


SCHEMA = pa.schema(
    {
        "segment_id": pa.string(),
        "video_id": pa.string(),
        "split": pa.string(),
        "num_frames": pa.int32(),
        "path": pa.string(),
        "row_group": pa.int32(),
    }
)
_REPEATED = ("video_id", "split", "path")
"""Columns whose values are stored once."""


class SegmentList(Sequence[SegmentRef]):
    """Segments, by number.

    Args:
        pieces: tables with the columns of SCHEMA, and maybe others, in order; `path` may be relative.
        root: folder or URI to which relative paths belong.
    """

    def __init__(self, pieces: Iterable[pa.Table], root: str = "") -> None:
        self._table = _joined(pieces)
        pa.default_memory_pool().release_unused()  # the pieces took more
        self._root, self._file = root, ""

    @classmethod
    def of(cls, segments: Iterable[SegmentRef]) -> SegmentList:
        """From single segments."""
        return cls([pa.Table.from_pylist([asdict(segment) for segment in segments], schema=SCHEMA)])

    def in_file(self, path: Path) -> SegmentList:
        """Write the columns into a file, and return the list that maps it; sent to a process, it is the file's name."""
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, self._table.schema) as writer:
            writer.write_table(self._table)
        return _mapped(str(path), self._root)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._file:
            return _mapped, (self._file, self._root)
        return SegmentList, ([self._table], self._root)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, place: int) -> SegmentRef: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[SegmentRef]: ...

    def __getitem__(self, place: int | slice) -> SegmentRef | Sequence[SegmentRef]:
        if isinstance(place, slice):
            return [self[one] for one in range(len(self))[place]]
        row = range(len(self))[place]  # an IndexError ends a loop over the list
        values = {name: self._table[name][row].as_py() for name in SCHEMA.names}
        return SegmentRef(**values | {"path": resolve(self._root, values["path"])})


def resolve(root: str, path: str) -> str:
    """Return a path that may be relative to a folder or URI as one that can be opened from any working folder."""
    return path if not root or "://" in path or Path(path).is_absolute() else f"{root}/{path}"


def _joined(pieces: Iterable[pa.Table]) -> pa.Table:
    whole = pa.concat_tables([_compact(SCHEMA.empty_table()), *map(_compact, pieces)])
    return whole.unify_dictionaries().combine_chunks()


def _compact(piece: pa.Table) -> pa.Table:
    """The columns of SCHEMA, with repeated values stored once."""
    columns = {name: piece[name].cast(SCHEMA.field(name).type) for name in SCHEMA.names}
    return pa.table(columns | {name: columns[name].dictionary_encode() for name in _REPEATED})


def _mapped(path: str, root: str) -> SegmentList:
    found = SegmentList((), root)
    found._table, found._file = pa.ipc.open_file(pa.memory_map(path)).read_all(), path
    return found
