"""Upgrading a dataset to the format of today: each segment file is one item of work, and appears whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2

from lawdnet import storage
from lawdnet.data.levels import lacking
from lawdnet.data.manifest import BUILD, SEGMENTS
from lawdnet.data.transfer import claim, refuse_inside
from lawdnet.data.upgrade import Old, add_levels, finish, open_old
from lawdnet.storage import Location, locate
from lawdnet.tasks import lock
from lawdnet.tasks.records import RecordStore, TaskRecord
from lawdnet.tasks.task import STALL_SECONDS, Job, OnProgress, Task
from lawdnet.types import Beat
from pipelines.executor import Execute, complete

RECORDS = "upgrade"
"""Folder of the records, beside those of the build; it is removed when all files are upgraded."""


@dataclass(kw_only=True)
class FileRecord(TaskRecord):
    """What became of a segment file: `status` is upgraded, or failed."""

    name: str
    bytes_before: int = 0
    bytes_after: int = 0


@dataclass(frozen=True)
class FileItem:
    """A segment file to upgrade."""

    key: str
    """Its name without the suffix."""
    inputs: tuple[str, ...] = ()
    """Nothing: the file itself says whether it has the levels."""

    @property
    def name(self) -> str:
        """The name of the file."""
        return f"{self.key}.parquet"

    def record(self) -> FileRecord:
        """A record that says nothing yet."""
        return FileRecord(inputs=[], name=self.name)


@dataclass(frozen=True, kw_only=True)
class UpgradeJob(Job):
    """What all workers of an upgrade are told; `root` is where the upgraded files go."""

    source: str
    levels: tuple[int, ...]
    jpeg_quality: int


class UpgradeTask(Task[FileItem, FileRecord]):
    """A segment file in, the same file with small levels out."""

    item_type = FileItem
    record_type = FileRecord

    def __init__(self, job: UpgradeJob, beat: Beat) -> None:
        cv2.setNumThreads(1)  # Ray counts one CPU for this process
        self.job = job
        self.beat = beat
        self.store = _records(locate(job.root))

    def run(self, item: FileItem, record: FileRecord) -> None:
        """Upgrade one file, or copy it if it has the levels."""
        source, target = (locate(root) / SEGMENTS / item.name for root in (self.job.source, self.job.root))
        with storage.local_copy(source, beat=self.beat) as old, storage.atomic(target, beat=self.beat) as new:
            if lacking([old], self.job.levels):
                add_levels(old, new, self.job.jpeg_quality, self.beat)
            else:
                shutil.copyfile(old, new)
            record.bytes_before, record.bytes_after = old.stat().st_size, new.stat().st_size
        record.status = "upgraded"


@dataclass(frozen=True, kw_only=True)
class Upgraded:
    """What an upgrade did."""

    files: int
    """Number of files that were upgraded."""
    ready: int
    """Number of files that had nothing to do."""
    bytes_before: int
    """Size of the upgraded files."""
    bytes_after: int


def upgrade(
    root: Location,
    out: Location | None = None,
    *,
    on_progress: OnProgress[FileRecord] | None = None,
    stall_seconds: float = STALL_SECONDS,
    execute: Execute | None = None,
) -> Upgraded:
    """Give a dataset of format 2 the format of today. Ids, hash, index and whole crops stay as they are.

    An upgrade that was stopped is completed by the next one; a dataset that has the format is left as it is.

    Args:
        root: the dataset, or the folder of a build that was stopped; local or in an object store.
        out: folder of an upgraded copy, which leaves `root` as it is; None upgrades `root` itself.
        on_progress: called with the record of every file.
        stall_seconds: a file that makes no progress for this long is given up.
        execute: where the work is done; on Ray if None.

    Raises:
        ValueError: as `open_old`; or a file could not be upgraded, `out` is in use or `root` a selection of another
            dataset's files, or another driver is working on the folder.
        DiskFull: the disk is full.
    """
    root = locate(root)
    out = locate(out) if out else root
    old = open_old(root)  # before anything is written
    if out != root:
        _claim(old, out)
    with lock.held(out / BUILD / lock.DRIVER):
        old = open_old(root)  # a build may have ended since
        records = _upgrade_files(old, out, on_progress, stall_seconds, execute)
        finish(root, out)
        storage.remove_temporaries(out / SEGMENTS)
        _forget(out)
    done = [record for record in records if record.bytes_after]
    return Upgraded(
        files=len(done),
        ready=len(records) - len(done),
        bytes_before=sum(record.bytes_before for record in done),
        bytes_after=sum(record.bytes_after for record in done),
    )


def _claim(old: Old, out: Location) -> None:
    if old.is_view:
        raise ValueError(
            f"{old.root}: a selection without files of its own; leave --out out, or select again with --copy"
        )
    refuse_inside(out, [old.root])
    claim(out, "upgrade", {"source": str(old.root)})


def _upgrade_files(
    old: Old, out: Location, on_progress: OnProgress[FileRecord] | None, stall_seconds: float, execute: Execute | None
) -> Sequence[FileRecord]:
    """Return the record of every file.

    Raises:
        ValueError: one of them could not be upgraded.
    """
    items = [FileItem(os.path.splitext(name)[0]) for name in old.files]
    todo = {path.name for path in lacking([out / SEGMENTS / item.name for item in items], old.levels)}
    job = UpgradeJob(
        root=str(out),
        source=str(old.root),
        levels=old.levels,
        jpeg_quality=old.jpeg_quality,
        stall_seconds=stall_seconds,
    )
    ready = {item.key: item.record() for item in items if item.name not in todo}
    work = complete(
        UpgradeTask, job, items, _records(out), ready, name="upgrade", on_progress=on_progress, execute=execute
    )
    done = [record for _, record in work]
    failed = [record for record in done if record.reason]
    if failed:
        text = f"{len(failed)} of {len(items)} segment files could not be upgraded, the first is {failed[0].name}"
        raise ValueError(f"{old.root}: {text} ({failed[0].detail}); the rest is done, the next run tries these again")
    return done


def _records(root: Location) -> RecordStore[FileRecord]:
    return RecordStore(root / BUILD / RECORDS, FileRecord)


def _forget(root: Location) -> None:
    """Remove the records: the files themselves say that they are upgraded."""
    folder = _records(root).folder
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        folder.fs.rm(folder.path, recursive=True)
