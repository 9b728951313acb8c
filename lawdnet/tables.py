"""Arrow tables that are a good part of the memory there is."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc


def sort_pieces(pieces: list[pa.Table], by: Sequence[str]) -> pa.Table:
    """Make one sorted table of pieces, column by column, so that there are never two of it; the list is emptied."""
    table = pa.concat_tables(pieces)
    pieces.clear()
    order = pc.sort_indices(table, [(name, "ascending") for name in by])
    columns = {}
    for name in table.column_names:
        columns[name] = table[name].take(order).combine_chunks()
        table = table.drop_columns(name)
        pa.default_memory_pool().release_unused()
    return pa.table(columns)
