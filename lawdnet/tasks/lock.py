"""One driver per folder: whoever works on a dataset, a run or renders says so in its folder, with a heartbeat.

This guards against a command that is started twice by mistake, not against two that start at the same moment.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from lawdnet.storage import Location, read_json, write_json
from lawdnet.tasks.background import repeated

log = logging.getLogger(__name__)

DRIVER = "driver"
"""Name of the file, in the folder of a job's records."""
BEAT_SECONDS = 5.0
SILENT_SECONDS = 20.0
"""A driver on another machine whose heartbeat has stopped for this long is gone."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PID_SPACE = Path("/proc/self/ns/pid")
"""A process number is only meaningful within one of these."""
CLOCK_SECONDS = 60.0
"""Tolerance for when a process started: that is counted from the clock, which may be corrected meanwhile."""


@contextmanager
def held(path: Location) -> Iterator[None]:
    """Hold the lock of a folder while the block runs.

    Args:
        path: a small file in the folder that nobody else writes; it is removed when the block ends, and so are the
            folders that were made for it and are still empty, so that a refusal leaves nothing.

    Raises:
        ValueError: another driver that is alive holds the lock.
    """
    _check_free(path)
    mine = _here() | {"id": uuid4().hex, "beat": 0}
    made = [folder for folder in path.parents if isinstance(folder, Path) and not folder.exists()]

    def beat() -> None:
        if mine["beat"] and (_read(path) or mine)["id"] != mine["id"]:
            return  # this process was suspended for so long that another one took over
        mine["beat"] += 1
        try:
            write_json(path, mine)
        except Exception as error:  # each protocol's client has its own; the work itself will fail if it matters
            log.warning("%s: cannot be written (%s)", path, error)

    try:
        with repeated(beat, BEAT_SECONDS):
            beat()
            yield
    finally:
        if (_read(path) or {}).get("id") == mine["id"]:  # a machine that had slept may have lost it to another
            with suppress(Exception):
                path.unlink(missing_ok=True)
                for folder in made:
                    folder.rmdir()


def _here() -> dict[str, Any]:
    """Identify this process, so that a later one on the same machine can tell whether it is still alive."""
    boot = BOOT_ID.read_text(encoding="ascii").strip() if BOOT_ID.exists() else ""
    boot += f" {os.readlink(PID_SPACE)}" if PID_SPACE.is_symlink() else ""
    started = psutil.Process().create_time()
    return {"host": socket.gethostname(), "boot": boot, "pid": os.getpid(), "started": started}


def _check_free(path: Location) -> None:
    other = _read(path)
    if other is None or _is_dead(other):
        return
    who = f"process {other['pid']} on {other['host']}"
    refusal = ValueError(f"{path.parent}: {who} is working on it; wait for it to end, or stop it")
    if _is_neighbour(other):
        raise refusal
    log.warning("%s: %s may be working on it; watching for %.0f s", path.parent, who, SILENT_SECONDS)
    end = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, SILENT_SECONDS / 4))
        now = _read(path)
        if now is None:  # what was read of the folder so far is out of date
            raise ValueError(f"{path.parent}: {who} has just finished here; run the same command again")
        if now != other:
            raise refusal


def _read(path: Location) -> dict[str, Any] | None:
    with suppress(FileNotFoundError, ValueError):
        found = read_json(path)
        return found if isinstance(found, dict) and found.keys() >= _here().keys() else None
    return None


def _is_neighbour(other: dict[str, Any]) -> bool:
    """Whether the other driver ran, or runs, on this machine."""
    here = _here()
    return (other["host"], other["boot"]) == (here["host"], here["boot"])


def _is_dead(other: dict[str, Any]) -> bool:
    if not _is_neighbour(other):
        return False
    with suppress(psutil.Error):
        return abs(psutil.Process(other["pid"]).create_time() - other["started"]) > CLOCK_SECONDS
    return True
