"""Full disks: of the results, which stops a job, and of the temporary folder, which costs the item that met it."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

from lawdnet.storage import Location

FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFull(OSError):
    """The disk of the results is full, which is the fault of no item: the job stops and can be resumed."""

    @classmethod
    def of(cls, error: OSError, root: Location) -> DiskFull:
        """From what the operating system reported."""
        where = f"{error.filename or root}: {os.strerror(error.errno or 0)}"
        return cls(f"{where}; make room and run the same command again, which resumes")


def is_full_disk(error: BaseException) -> bool:
    """Whether an error is about the disk rather than about the item that met it."""
    return isinstance(error, OSError) and error.errno in FULL


def is_scratch_full(error: OSError, root: Location) -> bool:
    """Whether a full disk is that of the temporary folder and not that of the results.

    A long video may fill it with its copy where a short one does not, and other nodes have temporary folders of their
    own. The operating system does not name the file that it had no room for while it was written; then it is the disk
    with less room.
    """
    scratch = Path(tempfile.gettempdir())
    if not isinstance(root, Path):
        return True  # nothing but temporary files is written here
    if error.filename:
        path = Path(os.fsdecode(error.filename))
        return path.is_relative_to(scratch) and not path.is_relative_to(root)
    disks = [shutil.disk_usage(_there(path)) for path in (scratch, root)]
    is_one_disk = _there(scratch).stat().st_dev == _there(root).stat().st_dev
    return not is_one_disk and disks[0].free < disks[1].free


def scratch_advice() -> str:
    """What to do about a full temporary folder."""
    return f"{tempfile.gettempdir()} is full; make room there or set TMPDIR, and run the same command again"


def _there(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())
