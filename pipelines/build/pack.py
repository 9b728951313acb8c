"""Packing small segment files into shards: each shard is one item of work, and appears whole."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from lawdnet.data.manifest import SEGMENTS
from lawdnet.data.shards import ShardRecord, plan_shards, shard_records, write_shard
from lawdnet.storage import file_sizes, locate
from lawdnet.tasks.task import Job, Task
from lawdnet.types import Beat
from pipelines.executor import Execute, complete

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardItem:
    """A shard to write."""

    key: str
    """Its name without the suffix."""
    videos: Sequence[str]
    """Keys of the videos that it is to hold, in order."""
    inputs: tuple[str, ...] = ()
    """Nothing: a shard is planned only if it is to be written."""

    @property
    def name(self) -> str:
        """The name of the file."""
        return f"{self.key}.parquet"

    def record(self) -> ShardRecord:
        """A record that says nothing yet."""
        return ShardRecord(inputs=[])


class ShardTask(Task[ShardItem, ShardRecord]):
    """The segment files of some videos in, one shard out."""

    item_type = ShardItem
    record_type = ShardRecord

    def __init__(self, job: Job, beat: Beat) -> None:
        self.beat = beat
        self.root = locate(job.root)
        self.store = shard_records(self.root)

    def run(self, item: ShardItem, record: ShardRecord) -> None:
        """Write one shard, and point the records of its videos at it."""
        record.segments, record.members = write_shard(self.root, item.key, item.videos, self.beat)
        record.status = "packed"


def pack(job: Job, videos: pa.Table, most_loose: int, execute: Execute | None) -> None:
    """Pack the small segment files of a dataset, if there are many, and say so in the records of their videos.

    Videos whose shard cannot be written keep their files; the next build tries again.

    Args:
        job: what all workers of the build are told.
        videos: the accepted ones, in the columns of `lawdnet.data.ledger`.
        most_loose: see `plan_shards`.

    Raises:
        DiskFull: the disk is full.
    """
    root = locate(job.root)
    store = shard_records(root)
    totals = {name: record.segments for name, record in store.read_many(store.loose_keys()).items()}
    planned = plan_shards(videos, file_sizes(root / SEGMENTS, ".parquet"), totals, most_loose)
    items = [ShardItem(name, keys) for name, keys in planned.items()]
    plain = Job(root=job.root, run=job.run, stall_seconds=job.stall_seconds)
    for name, record in complete(ShardTask, plain, items, store, {}, name="pack segment files", execute=execute):
        if record.reason:
            log.warning("%s: could not be packed (%s); its videos keep their files", name, record.detail)
