"""More rows than fit into memory, sorted: a temporary folder holds them in ranges of a key, each sorted on its own."""

from __future__ import annotations

import tempfile
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

RANGE = 16384
"""Keys of a range, about."""


def borders_of(keys: pa.ChunkedArray) -> list[str]:
    """Return the keys at which ranges begin, except for the first one."""
    return sorted(keys.to_pylist())[RANGE::RANGE]


class Spill:
    """Tables in pieces: written in any order, read in that of a key. To be used as a context.

    Args:
        schema: columns of the tables.
        by: the columns to sort by; ranges are of the first of them.
        borders: see `borders_of`.
    """

    def __init__(self, schema: pa.Schema, by: Sequence[str], borders: Sequence[str]) -> None:
        self._schema = schema
        self._by = by
        self._borders = borders

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lawdnet-")))
            self._paths = [folder / f"{number}.arrow" for number in range(len(self._borders) + 1)]
            self._writers = [stack.enter_context(pa.ipc.new_stream(path, self._schema)) for path in self._paths]
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add(self, table: pa.Table) -> None:
        """Write rows."""
        rows: defaultdict[int, list[int]] = defaultdict(list)
        for row, key in enumerate(table[self._by[0]].to_pylist()):
            rows[bisect_right(self._borders, key)].append(row)
        for number, own in rows.items():
            self._writers[number].write_table(table.take(own).combine_chunks())

    def read(self) -> Iterator[pa.Table]:
        """Yield all rows in order, a range at a time; afterwards nothing can be written."""
        for path, writer in zip(self._paths, self._writers, strict=True):
            writer.close()
            with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
                table = stream.read_all()
            yield table.sort_by([(name, "ascending") for name in self._by]).combine_chunks()
