"""Rows that are written in any order come back in that of their keys, in pieces."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest

from lawdnet.data import spill
from lawdnet.data.spill import Spill, borders_of

SCHEMA = pa.schema({"name": pa.string(), "number": pa.int32()})


def test_pieces_in_any_order_come_back_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "RANGE", 10)
    rows = [{"name": f"ü{n:03d}", "number": m} for n in range(35) for m in range(3)]
    shuffled = random.Random(0).sample(rows, len(rows))
    borders = borders_of(pa.chunked_array([[row["name"] for row in rows[::3]]]))
    assert borders == ["ü010", "ü020", "ü030"]
    with Spill(SCHEMA, ("name", "number"), borders) as spilled:
        for start in range(0, len(rows), 7):
            spilled.add(pa.Table.from_pylist(shuffled[start : start + 7], SCHEMA))
        pieces = list(spilled.read())
    assert [len(piece) for piece in pieces] == [30, 30, 30, 15]
    assert [row for piece in pieces for row in piece.to_pylist()] == rows


def test_nothing_is_one_empty_piece_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Spill(SCHEMA, ("name",), borders_of(pa.chunked_array([], pa.string()))) as spilled:
        assert len(list(tmp_path.iterdir())) == 1
        spilled.add(SCHEMA.empty_table())
        assert list(spilled.read()) == [SCHEMA.empty_table()]
    assert not list(tmp_path.iterdir())
