"""Datasets of format 2: their segments have no small versions of the frames."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from lawdnet.data.manifest import BUILD, MANIFEST, SEGMENTS
from lawdnet.data.records import STATE

COLUMNS = ["segment_id", "video_id", "index", "track", "start_frame", "split", "num_frames", "frames_jpeg", "landmarks",
           "matrices", "features_mel"]  # fmt: skip
"""All columns of a segment without scores, in their order."""


def as_format_2(root: Path) -> None:
    """Rewrite a dataset as the version before wrote it."""
    for path in (root / SEGMENTS).glob("*.parquet"):
        with pq.ParquetFile(path) as file:
            names = COLUMNS + [name for name in file.schema_arrow.names if name.startswith("score_")]
            tables = [file.read_row_group(group, columns=names) for group in range(file.num_row_groups)]
        with pq.ParquetWriter(path, tables[0].schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table)
    for path in (root / MANIFEST, root / BUILD / STATE):
        if path.exists():
            path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2}))
