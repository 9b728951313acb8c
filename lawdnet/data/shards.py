"""Shards: segment files of many videos, made of the small ones that a build leaves.

A shard is written whole under a name that depends on what is in it, and never changed. What changes a video in it
writes a file of its own for the video again; so every record names a file that exists, whenever the work is stopped.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa

from lawdnet.data.config import digest
from lawdnet.data.manifest import BUILD, SEGMENTS
from lawdnet.data.records import VideoRecord, video_records
from lawdnet.data.schema import read_segments, write_tables
from lawdnet.storage import Location, atomic, parquet_file
from lawdnet.tasks.records import RecordStore, TaskRecord
from lawdnet.types import Beat

log = logging.getLogger(__name__)

SHARDS = "shards"
"""Folder below that of the records."""
SMALL_BYTES = 64 << 20
"""A segment file with less than this is packed."""
SHARD_BYTES = 256 << 20
"""A shard is full with this; with the file that fills it, it has less than 320 MiB."""


@dataclass(kw_only=True)
class ShardRecord(TaskRecord):
    """What became of a shard: `status` is packed, or failed."""

    segments: int = 0
    """Number of segments in it, also of videos that have left it since."""
    members: list[str] = field(default_factory=list)
    """Keys of the videos that were put into it."""


def shard_records(root: Location) -> RecordStore[ShardRecord]:
    """The records of the shards of the dataset in `root`."""
    return RecordStore(root / BUILD / SHARDS, ShardRecord)


def plan_shards(
    videos: pa.Table, sizes: Mapping[str, int], totals: Mapping[str, int], most_loose: int
) -> dict[str, list[str]]:
    """Say which videos are to be packed: name of a shard → the keys of its videos, by video id.

    Nothing is packed unless there are many small files, or a shard is mostly made of segments that nothing names; then
    all of both are. Long videos, which were divided, keep their files.

    Args:
        videos: the accepted ones, in the columns of `lawdnet.data.ledger`.
        sizes: name of a segment file → its bytes.
        totals: name of a shard, without suffix → the number of segments in it.
        most_loose: number of small files that may stay as they are; 0 packs nothing.
    """
    if not most_loose or not len(videos):
        return {}
    live: Counter[str] = Counter()
    for shard, segments in zip(videos["shard"].to_pylist(), videos["segments"].to_pylist(), strict=True):
        live[shard] += segments
    poor = {name for name, segments in live.items() if 2 * segments < totals.get(name, 0)}
    bytes_of, loose, leaving = np.full(len(videos), -1, np.int64), 0, 0
    names = ("video_id", "shard", "segments", "is_divided")
    for number, (video_id, shard, segments, is_divided) in enumerate(
        zip(*(videos[n].to_pylist() for n in names), strict=True)
    ):
        if shard in poor:
            bytes_of[number] = sizes[f"{shard}.parquet"] * segments // totals[shard]
            leaving += 1
        elif not shard and not is_divided and (size := sizes[f"{video_id}.parquet"]) < SMALL_BYTES:
            bytes_of[number] = size
            loose += 1
    if not leaving and loose <= most_loose:
        return {}
    packed = videos.append_column("bytes", pa.array(bytes_of)).filter(pa.array(bytes_of >= 0))
    packed = packed.sort_by([("kind", "ascending"), ("video_id", "ascending")]).combine_chunks()
    return {_name(bundle): bundle["key"].to_pylist() for bundle in _bundles(packed)}


def _bundles(videos: pa.Table) -> Iterator[pa.Table]:
    """The videos of each shard; what is left over of a kind goes into its last one, if it would be small alone."""
    kinds = videos["kind"].to_numpy()
    bytes_of = videos["bytes"].to_numpy()
    starts = [0, *(np.flatnonzero(kinds[1:] != kinds[:-1]) + 1).tolist(), len(videos)]
    for begin, end in pairwise(starts):
        left = int(bytes_of[begin:end].sum())
        start, size = begin, 0
        for stop in range(begin + 1, end + 1):
            size += int(bytes_of[stop - 1])
            if stop == end or (size >= SHARD_BYTES and left - size >= SMALL_BYTES):
                yield videos.slice(start, stop - start)
                start, left, size = stop, left - size, 0


def _name(videos: pa.Table) -> str:
    """A name that no other content has, so that no shard is ever written over by another one."""
    return f"shard-{digest(videos.select(['video_id', 'segments', 'split', 'kind']).to_pylist())}"


def write_shard(root: Location, name: str, keys: Sequence[str], beat: Beat) -> tuple[int, list[str]]:
    """Copy the segments of videos into a shard, then point their records at it. No JPEG is decoded.

    It may be done again at any time, also if some records point at the shard already.

    Args:
        keys: of the videos, in order. Those with other columns than the first keep their files.
        beat: called after every segment and every record.

    Returns:
        The number of segments in it, and the keys of its videos.

    Raises:
        FileNotFoundError: a segment file is missing.
    """
    store = video_records(root)
    videos = {key: record for key, record in store.read_many(keys, brief=False).items() if record.is_accepted}
    taken: list[str] = []
    with atomic(root / SEGMENTS / f"{name}.parquet", beat=beat) as temporary:
        segments = write_tables(temporary, _tables(root, videos, taken.append, beat))
    first = 0
    for key in taken:
        videos[key].place(name, first)
        first += len(videos[key].rows)
        store.write(key, videos[key])
        beat()
    return segments, taken


def _tables(
    root: Location, videos: Mapping[str, VideoRecord], take: Callable[[str], None], beat: Beat
) -> Iterator[pa.Table]:
    schema: pa.Schema | None = None
    for key, record in videos.items():
        (file_name,) = record.files
        with parquet_file(root / SEGMENTS / file_name) as file:
            schema = schema or file.schema_arrow
            if file.schema_arrow != schema:
                log.info("%s: has other columns than the rest of its shard, and keeps its file", file_name)
                continue
            take(key)
            for table in read_segments(file, [row.row_group for row in record.rows]):
                yield table
                beat()
