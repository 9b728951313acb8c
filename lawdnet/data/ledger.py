"""What a build must know of all accepted videos at once, as columns: a few hundred bytes a video."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from lawdnet.data.config import digest
from lawdnet.data.records import VideoRecord, video_records
from lawdnet.storage import Location
from lawdnet.tables import sort_pieces

SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "path": pa.string(),
        "video_id": pa.string(),
        "sha256": pa.string(),
        "split": pa.string(),
        "listed": pa.string(),
        "perceptual_hash": pa.string(),
        "faces": pa.string(),
        "segments": pa.int32(),
        "shard": pa.string(),  # the shard that it lies in, or empty
        "is_divided": pa.bool_(),
        "kind": pa.string(),  # what its segment files have besides frames; alike where all columns are
    }
)


def ledger_row(key: str, record: VideoRecord) -> dict[str, Any]:
    """A video as a row."""
    own = {
        "key": key,
        "shard": record.parts[0] if record.is_packed else "",
        "is_divided": bool(record.borders),
        "kind": digest([sorted(record.features.items()), record.sync]),
    }
    return own | {name: getattr(record, name) for name in SCHEMA.names if name not in own}


def ledger(root: Location) -> pa.Table:
    """The accepted videos, in the order of their paths.

    Raises:
        ValueError: a record cannot be read.
    """
    tables = [SCHEMA.empty_table()]
    for piece in video_records(root).pieces():
        rows = [ledger_row(key, record) for key, record in piece.items() if record.is_accepted]
        tables.append(pa.Table.from_pylist(rows, SCHEMA))
    return sort_pieces(tables, ["path"])
