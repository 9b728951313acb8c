"""A list of segments in a file that all processes of a machine map into memory, so that it is there once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any, overload

import pyarrow as pa

from lawdnet.data.manifest import SegmentRef

ROWS = 65536
"""Rows that are written at a time; a record batch of the file."""
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


class SegmentList(Sequence[SegmentRef]):
    """The segments of such a file; sent to another process, it is the file's name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()

    def __reduce__(self) -> tuple[Any, ...]:
        return SegmentList, (self.path,)

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
        return SegmentRef(*(column[row].as_py() for column in self._table.columns))


def write_list(path: Path, segments: Sequence[SegmentRef]) -> SegmentList:
    """Write the file."""
    names = [field.name for field in fields(SegmentRef)]
    assert names == SCHEMA.names
    rest = iter(segments)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        while rows := list(islice(rest, ROWS)):
            writer.write_batch(pa.record_batch([[getattr(row, name) for row in rows] for name in names], schema=SCHEMA))
    return SegmentList(path)
