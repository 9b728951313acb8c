"""Sorting in little memory gives what sorting gives."""

from __future__ import annotations

import pyarrow as pa

from lawdnet.tables import sort_pieces


def test_pieces_become_one_sorted_table() -> None:
    whole = pa.table({"name": ["b", "ü", "a", "b", ""], "data": [b"2", b"\xff", b"", b"1", b"3"], "n": range(5)})
    pieces = [whole.slice(0, 2), whole.slice(2, 0), whole.slice(2)]
    found = sort_pieces(pieces, ["name", "data"])
    assert found.equals(whole.take([4, 2, 3, 0, 1]))
    assert found["name"].num_chunks == 1
    assert pieces == []
    assert sort_pieces([whole.slice(0, 0)], ["name"]).equals(whole.slice(0, 0))
