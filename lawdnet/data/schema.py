"""The columns of a dataset. This is the only module that knows how a segment is laid out (docs/format.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lawdnet.data.levels import FRAMES, frames_column, stored_levels
from lawdnet.storage import Location, parquet_file
from lawdnet.types import NUM_LANDMARKS, Float32, Segment

POINTS = 2 * NUM_LANDMARKS
FEATURES = "features_"
SCORE = "score_"
BUILD_STAGES = ("open", "faces", "sound", "crop", "score", "write")
"""Build steps that are timed: fetch and probe, landmarks, features, decode and crop, scores, write."""

IDENTITY_COLUMNS: dict[str, pa.DataType] = {
    "segment_id": pa.string(),
    "video_id": pa.string(),
    "index": pa.int32(),
    "track": pa.int32(),
    "start_frame": pa.int64(),
    "split": pa.string(),
    "num_frames": pa.int32(),
}
"""Columns that identify a segment, in its file and in the index."""

VIDEO_SCHEMA = pa.schema(
    {
        "video_id": pa.string(),
        "path": pa.string(),
        "status": pa.string(),  # accepted | rejected | failed
        "reason": pa.string(),
        "detail": pa.string(),
        "split": pa.string(),
        "landmarks": pa.string(),
        "segments": pa.int64(),
        "frames": pa.int64(),
        "frames_used": pa.int64(),
        "seconds": pa.float64(),
        **{f"seconds_{stage}": pa.float64() for stage in BUILD_STAGES},
        "bytes": pa.int64(),
        "sha256": pa.string(),
        "landmarks_sha256": pa.string(),
        "group": pa.string(),
        "lacks": pa.string(),
    }
)


@dataclass(frozen=True, kw_only=True)
class VideoRow:
    """A row of videos.parquet: what became of one input."""

    path: str
    """Relative to the source folder, or absolute."""
    status: str
    """accepted, rejected or failed."""
    video_id: str = ""
    """Empty unless segments of the video are stored."""
    reason: str = ""
    """A `RejectReason`, or empty."""
    detail: str = ""
    split: str = ""
    landmarks: str = ""
    """Name of the landmark source."""
    segments: int = 0
    """Number of segments in the dataset."""
    frames: int = 0
    """Number of frames on the 25 fps clock."""
    frames_used: int = 0
    """Number of frames in segments of the dataset."""
    seconds: float = 0.0
    """Time that the build took."""
    step_seconds: Mapping[str, float] = field(default_factory=dict)
    """Build step → seconds of `seconds`."""
    bytes: int = 0
    sha256: str = ""
    """Hash of the source file."""
    landmarks_sha256: str = ""
    group: str = ""
    """Name of the group that is on one side of the split; empty for a video that stands alone."""
    lacks: str = ""
    """Features of the dataset that could not be added to the video, separated by commas."""

    @property
    def is_accepted(self) -> bool:
        """Whether segments of the video are in the dataset."""
        return self.status == "accepted"

    def columns(self) -> dict[str, Any]:
        """Return the row in the columns of `VIDEO_SCHEMA`."""
        steps = {f"seconds_{step}": self.step_seconds.get(step, 0.0) for step in BUILD_STAGES}
        return {**steps, **{name: getattr(self, name) for name in VIDEO_SCHEMA.names if name not in steps}}

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> VideoRow:
        """Return the row with these columns; a column that is missing or null gets its default.

        Raises:
            TypeError: `path` or `status` is missing.
        """
        known = {name: value for name, value in columns.items() if value is not None and name in VIDEO_SCHEMA.names}
        steps = {step: known.pop(f"seconds_{step}", 0.0) for step in BUILD_STAGES}
        return cls(**known, step_seconds=steps)


def rows_type(width: int) -> pa.DataType:
    """Type of T rows of `width` float32."""
    return pa.list_(pa.list_(pa.float32(), width))


def segment_schema(feature_dims: Mapping[str, int], scores: Sequence[str], levels: Iterable[int] = ()) -> pa.Schema:
    """Return the columns of segments/*.parquet.

    Args:
        feature_dims: extractor → number of values per row.
        scores: names without their prefix.
        levels: the small levels that are stored beside the whole crops.
    """
    return pa.schema(
        {
            **IDENTITY_COLUMNS,
            **{frames_column(level): pa.list_(pa.binary()) for level in (1, *levels)},
            "landmarks": rows_type(POINTS),
            "matrices": rows_type(9),
            **{FEATURES + name: rows_type(dim) for name, dim in feature_dims.items()},
            **{SCORE + name: pa.float32() for name in scores},
        }
    )


def to_rows(values_TC: Float32) -> pa.Array:
    """Return T×C float32 as one list<fixed list> value, without creating a Python object per number."""
    length, width = values_TC.shape
    flat = pa.array(np.ascontiguousarray(values_TC, np.float32).reshape(-1))
    rows = pa.FixedSizeListArray.from_arrays(flat, width)
    return pa.ListArray.from_arrays(pa.array([0, length], pa.int32()), rows)


def from_rows(column: pa.ChunkedArray | pa.Array, row: int = 0) -> Float32:
    """Return the T×C float32 of one cell written by `to_rows`."""
    rows = column[row].values
    return rows.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), rows.type.list_size)


def segment_to_table(segment: Segment) -> pa.Table:
    """Return a segment as one row in the columns of `segment_schema`."""
    frames = segment.num_frames
    columns: dict[str, Any] = {
        "segment_id": [segment.segment_id],
        "video_id": [segment.video_id],
        "index": [segment.index],
        "track": [segment.track],
        "start_frame": [segment.start_frame],
        "split": [segment.split],
        "num_frames": [frames],
        FRAMES: [list(segment.frames_jpeg)],
        **{frames_column(level): [list(jpegs)] for level, jpegs in segment.small_jpeg.items()},
        "landmarks": to_rows(segment.landmarks_T68x2.reshape(frames, POINTS)),
        "matrices": to_rows(segment.matrix_T33.reshape(frames, 9)),
        **{FEATURES + name: to_rows(rows_TC) for name, rows_TC in segment.features.items()},
        **{SCORE + name: [value] for name, value in segment.scores.items()},
    }
    dims = {name: rows_TC.shape[1] for name, rows_TC in segment.features.items()}
    return pa.table(columns, schema=segment_schema(dims, list(segment.scores), segment.small_jpeg))


def table_to_segment(table: pa.Table, row: int = 0) -> Segment:
    """Return the segment in a row; the inverse of `segment_to_table`."""
    cell = {name: table[name][row].as_py() for name in IDENTITY_COLUMNS if name != "num_frames"}
    names = table.column_names
    return Segment(
        **cell,
        frames_jpeg=tuple(table[FRAMES][row].as_py()),
        landmarks_T68x2=from_rows(table["landmarks"], row).reshape(-1, NUM_LANDMARKS, 2),
        matrix_T33=from_rows(table["matrices"], row).reshape(-1, 3, 3),
        features={n.removeprefix(FEATURES): from_rows(table[n], row) for n in names if n.startswith(FEATURES)},
        scores={n.removeprefix(SCORE): table[n][row].as_py() for n in names if n.startswith(SCORE)},
        small_jpeg={level: tuple(table[frames_column(level)][row].as_py()) for level in stored_levels(names)},
    )


def write_segments(path: Path, segments: Iterable[Segment]) -> int:
    """Write segments as a file; see `write_tables`."""
    return write_tables(path, map(segment_to_table, segments))


def write_tables(path: Path, tables: Iterable[pa.Table]) -> int:
    """Write one row group per segment, so that a reader can load one segment alone; return the number of segments.

    If there are no segments, no file is written. The caller passes a temporary path and renames it.

    Args:
        tables: the rows of single segments, all with the same columns.
    """
    count = 0
    writer: pq.ParquetWriter | None = None
    try:
        for table in tables:
            if writer is None:
                # in lists hardly a value comes twice, and their extremes would fill the footer with whole JPEGs
                flat = [field.name for field in table.schema if not pa.types.is_list(field.type)]
                options = {"use_dictionary": flat, "write_statistics": flat}
                # JPEG does not shrink further; the rest is small and does
                writer = pq.ParquetWriter(path, table.schema, compression="zstd", **options)
            writer.write_table(table)
            count += 1
    finally:
        if writer:
            writer.close()
    return count


def read_segment(path: Location, row_group: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the row of one segment, or only the named columns of it."""
    with parquet_file(path) as file:
        return file.read_row_group(row_group, columns=columns)


def read_segments(file: pq.ParquetFile, row_groups: Iterable[int]) -> Iterator[pa.Table]:
    """Yield the rows of segments as `write_tables` takes them, one in memory at a time."""
    for group in row_groups:
        yield _in_order(file.read_row_group(group))


def rewrite_segments(
    path: Location, to: Path, change: Callable[[pa.Table], pa.Table], row_groups: Sequence[int] | None = None
) -> None:
    """Copy a segment file, or some row groups of it, with `change` applied to every row, one in memory at a time.

    `change` must return the same columns for every row.
    """
    with parquet_file(path) as file:
        groups = range(file.num_row_groups) if row_groups is None else row_groups
        write_tables(to, (_in_order(change(table)) for table in read_segments(file, groups)))


def _in_order(table: pa.Table) -> pa.Table:
    """Return the table as `segment_to_table` makes it: a table read from a file has other names inside its lists."""
    names = table.column_names
    features = [name for name in names if name.startswith(FEATURES)]
    dims = {name.removeprefix(FEATURES): table.schema.field(name).type.value_type.list_size for name in features}
    scores = [name.removeprefix(SCORE) for name in names if name.startswith(SCORE)]
    schema = segment_schema(dims, scores, stored_levels(names))
    return table.select(schema.names).cast(schema)


def with_columns(table: pa.Table, columns: Mapping[str, pa.Array]) -> pa.Table:
    """Return the table with `columns` replaced, or appended if they are new."""
    for name, column in columns.items():
        position = table.schema.get_field_index(name)
        table = table.set_column(position, name, column) if position >= 0 else table.append_column(name, column)
    return table
