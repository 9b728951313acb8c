"""The jobs of a server and its templates, in one SQLite file: what is asked for, who works on it, what became of it.

A worker holds a job by a lease, which it extends with every heartbeat. A job whose lease ran out has lost its worker:
it is tried once more, and then fails. Whoever lost a lease can change nothing any more.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from lawdnet.serving.problems import Problem

MAX_ATTEMPTS = 2
"""A job that lost its worker so often fails."""
LEASE_SECONDS = 15.0
"""A worker that is silent for this long is taken for dead."""
VERSION = 1
"""Of the file's tables."""
TABLES = (
    "CREATE TABLE IF NOT EXISTS jobs (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE,"
    " state TEXT, model TEXT, lease REAL, expires REAL, body TEXT)",
    "CREATE INDEX IF NOT EXISTS jobs_state ON jobs (state, number)",
    "CREATE TABLE IF NOT EXISTS templates (name TEXT PRIMARY KEY, content TEXT, body TEXT)",
    "CREATE TABLE IF NOT EXISTS totals (name TEXT PRIMARY KEY, value REAL)",
)


class State(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether it stays so."""
        return self not in (State.QUEUED, State.RUNNING)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One piece of work."""

    id: str
    """128 random bits: who knows it may read the result."""
    kind: str
    """`video` or `template`."""
    model: str
    """Which of the server's checkpoints."""
    template: str
    """Content hash of the template."""
    face: str = "largest"
    """Which face of the template."""
    state: State = State.QUEUED
    created: float = 0.0
    """Seconds since 1970, like the other times; 0 for not yet."""
    started: float = 0.0
    finished: float = 0.0
    expires: float = 0.0
    keep_seconds: float = 0.0
    """How long the result is kept."""
    frames: int = 0
    """Done."""
    total: int = 0
    attempts: int = 0
    worker: str = ""
    problem: Mapping[str, Any] | None = None
    """Why it failed; see `Problem.document`."""
    summary: Mapping[str, Any] | None = None
    """Figures of the result."""


@dataclass(frozen=True, kw_only=True)
class TemplateRow:
    """A template by its name; several names may share one content."""

    name: str
    content: str
    """Hash of the video, of its landmarks and of the choice of the face: where its files are."""
    job: str
    """The job that prepares it; "" once it is ready."""
    pinned: bool
    """Given on the command line; no client can remove it."""
    created: float
    height: int
    width: int
    frames: int
    face: str


class Store(Protocol):
    """What services and workers ask of the jobs; `JobStore` in this process, or a stand-in that asks another one."""

    def submit(self, job: Job, max_queue: int) -> Job: ...
    def get(self, job_id: str) -> Job | None: ...
    def place(self, job_id: str) -> int: ...
    def claim(self, worker: str, models: list[str]) -> Job | None: ...
    def beat(self, job_id: str, worker: str, frames: int, total: int) -> bool: ...
    def finish(self, job_id: str, worker: str, state: State, **results: Any) -> bool: ...
    def release(self, job_id: str, worker: str) -> None: ...
    def cancel(self, job_id: str) -> bool: ...
    def remove(self, job_id: str) -> None: ...
    def retry_lost(self, everything: bool = False) -> int: ...
    def expired(self) -> list[str]: ...
    def contents_in_use(self) -> list[str]: ...
    def job_ids(self) -> list[str]: ...
    def counts(self) -> dict[str, int]: ...
    def totals(self) -> dict[str, float]: ...
    def add_template(self, row: TemplateRow, max_templates: int) -> None: ...
    def template(self, name: str) -> TemplateRow | None: ...
    def templates(self) -> list[TemplateRow]: ...
    def remove_template(self, name: str) -> None: ...


class JobStore:
    """The SQLite file of one server; safe to use from several threads of one process, and from no other process.

    Args:
        path: the file; it is made if it is missing.
        lease_seconds: how long a worker may be silent.
        clock: seconds since 1970.

    Raises:
        ValueError: the file was written by a later version, or is damaged.
    """

    def __init__(
        self, path: Path, *, lease_seconds: float = LEASE_SECONDS, clock: Callable[[], float] = time.time
    ) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # of faces and voices
        self.lease_seconds = lease_seconds
        self._clock = clock
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=2)
        try:
            self._open(path)
        except sqlite3.OperationalError as error:
            hint = "another server uses this folder; stop it, or give another one"
            raise ValueError(f"{path}: {hint if 'locked' in str(error) else error}") from error
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path}: damaged ({error}); move it away to begin with an empty one") from error

    def _open(self, path: Path) -> None:
        # one process alone writes, so that the file may also be on a network file system
        for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=NORMAL"):
            self._db.execute(f"PRAGMA {pragma}")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            self._db.close()
            raise ValueError(f"{path}: written by a later version of lawdnet; update it, or use another folder")
        with self._writing() as db:
            for statement in TABLES:
                db.execute(statement)
            db.execute(f"PRAGMA user_version={VERSION}")

    def close(self) -> None:
        """Close the file; other processes may then open it."""
        with self._lock:
            self._db.close()

    def submit(self, job: Job, max_queue: int) -> Job:
        """Add a job to the end of the queue, and return it with its id.

        Raises:
            Problem: 503, the queue is full.
        """
        with self._writing() as db:
            (waiting,) = db.execute("SELECT COUNT(*) FROM jobs WHERE state = ?", (State.QUEUED,)).fetchone()
            if waiting >= max_queue:
                detail = f"{waiting} jobs are waiting, which is as many as this server takes; try again later"
                raise Problem(503, "queue_full", detail, retry_after=10)
            job = replace(job, id=job.id or new_id(), created=self._clock())
            db.execute(
                "INSERT INTO jobs (id, state, model, lease, expires, body) VALUES (?, ?, ?, 0, 0, ?)",
                (job.id, job.state, job.model, _encoded(job)),
            )
        return job

    def get(self, job_id: str) -> Job | None:
        """The job with this id."""
        with self._lock:
            row = self._db.execute("SELECT body FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return _decoded(row[0]) if row else None

    def place(self, job_id: str) -> int:
        """How many jobs the queue holds up to this one; 1 is next, 0 if it does not wait."""
        query = (
            "SELECT COUNT(*) FROM jobs WHERE state = ? AND number <="
            " (SELECT number FROM jobs WHERE id = ? AND state = ?)"
        )
        with self._lock:
            return int(self._db.execute(query, (State.QUEUED, job_id, State.QUEUED)).fetchone()[0])

    def claim(self, worker: str, models: list[str]) -> Job | None:
        """Give the oldest waiting job of these models to a worker; None if there is none."""
        marks = ",".join("?" * len(models))
        query = f"SELECT body FROM jobs WHERE state = ? AND model IN ({marks}) ORDER BY number LIMIT 1"
        with self._writing() as db:
            row = db.execute(query, (State.QUEUED, *models)).fetchone()
            if row is None:
                return None
            job = _decoded(row[0])
            now = self._clock()
            job = replace(job, state=State.RUNNING, worker=worker, started=now, attempts=job.attempts + 1, frames=0)
            return self._write(job, lease=now + self.lease_seconds)

    def beat(self, job_id: str, worker: str, frames: int, total: int) -> bool:
        """Extend a worker's lease and record its progress; False tells it to stop: the job is no longer its own."""
        with self._writing():
            job = self._owned(job_id, worker)
            if job is not None:
                self._write(replace(job, frames=frames, total=total), lease=self._clock() + self.lease_seconds)
            return job is not None

    def finish(self, job_id: str, worker: str, state: State, **results: Any) -> bool:
        """Record what became of a job; False, and nothing changes, if the worker does not hold it any more.

        Args:
            results: other fields, such as `problem` or `summary`.
        """
        with self._writing():
            job = self._owned(job_id, worker)
            if job is not None:
                self._end(replace(job, **results), state)
            return job is not None

    def release(self, job_id: str, worker: str) -> None:
        """Put a job back to where it was in the queue, because its worker is asked to end; this is no lost attempt."""
        with self._writing():
            if job := self._owned(job_id, worker):
                back = replace(job, state=State.QUEUED, worker="", frames=0, attempts=job.attempts - 1)
                self._write(back, lease=0)

    def cancel(self, job_id: str) -> bool:
        """End a job that waits or runs; its worker learns it with its next heartbeat. False if it had ended before."""
        with self._writing():
            job = self.get(job_id)
            if job is None or job.state.is_final:
                return False
            self._end(job, State.CANCELLED)
            return True

    def remove(self, job_id: str) -> None:
        """Forget a job."""
        with self._writing() as db:
            db.execute("DELETE FROM jobs WHERE id = ?", (job_id,))

    def retry_lost(self, everything: bool = False) -> int:
        """Put jobs that lost their worker back to where they were in the queue, or let them fail; return how many.

        Args:
            everything: all running jobs have lost theirs, because the server has just started.
        """
        now = self._clock()
        query = "SELECT body FROM jobs WHERE state = ? AND lease < ?"
        with self._writing() as db:
            rows = db.execute(query, (State.RUNNING, float("inf") if everything else now)).fetchall()
            for job in map(_decoded, (body for (body,) in rows)):
                if job.attempts < MAX_ATTEMPTS:
                    self._write(replace(job, state=State.QUEUED, worker="", frames=0), lease=0)
                else:
                    detail = f"its worker ended {job.attempts} times (out of memory, a crash, or the server stopped)"
                    self._end(replace(job, problem=Problem(500, "worker_lost", detail).document), State.FAILED)
        return len(rows)

    def expired(self) -> list[str]:
        """Ids of the jobs whose results are not kept any longer."""
        with self._lock:
            rows = self._db.execute("SELECT id FROM jobs WHERE expires > 0 AND expires < ?", (self._clock(),))
            return [row[0] for row in rows.fetchall()]

    def contents_in_use(self) -> list[str]:
        """Content hashes of all templates, and of those that jobs still need."""
        query = (
            "SELECT content FROM templates UNION"
            " SELECT json_extract(body, '$.template') FROM jobs WHERE state IN (?, ?)"
        )
        with self._lock:
            return [row[0] for row in self._db.execute(query, (State.QUEUED, State.RUNNING)).fetchall()]

    def job_ids(self) -> list[str]:
        """Ids of all jobs."""
        with self._lock:
            return [row[0] for row in self._db.execute("SELECT id FROM jobs").fetchall()]

    def counts(self) -> dict[str, int]:
        """Number of jobs in each state, and in each state for each model as `STATE:MODEL`."""
        with self._lock:
            rows = self._db.execute("SELECT state, model, COUNT(*) FROM jobs GROUP BY state, model").fetchall()
        found = dict.fromkeys(map(str, State), 0)
        for state, model, number in rows:
            found[state] += number
            found[f"{state}:{model}"] = number
        return found

    def totals(self) -> dict[str, float]:
        """What has been done since the file was made: jobs by how they ended, frames, seconds of rendering."""
        with self._lock:
            return dict(self._db.execute("SELECT name, value FROM totals").fetchall())

    def add_template(self, row: TemplateRow, max_templates: int) -> None:
        """Add a template; one of the same name and content is replaced.

        Raises:
            Problem: 409, the name has another content; 503, there are too many.
        """
        with self._writing() as db:
            before = self.template(row.name)
            if before and before.content != row.content and not row.pinned:
                detail = f"template {row.name} exists with another content; delete it, or choose another name"
                raise Problem(409, "name_taken", detail)
            if before is None and len(self.templates()) >= max_templates:
                raise Problem(503, "too_many_templates", f"there are {max_templates} templates; delete one first")
            db.execute(
                "INSERT OR REPLACE INTO templates (name, content, body) VALUES (?, ?, ?)",
                (row.name, row.content, json.dumps(asdict(row))),
            )

    def template(self, name: str) -> TemplateRow | None:
        """The template of this name."""
        with self._lock:
            found = self._db.execute("SELECT body FROM templates WHERE name = ?", (name,)).fetchone()
        return TemplateRow(**json.loads(found[0])) if found else None

    def templates(self) -> list[TemplateRow]:
        """All templates, by name."""
        with self._lock:
            rows = self._db.execute("SELECT body FROM templates ORDER BY name").fetchall()
        return [TemplateRow(**json.loads(body)) for (body,) in rows]

    def remove_template(self, name: str) -> None:
        """Forget a template."""
        with self._writing() as db:
            db.execute("DELETE FROM templates WHERE name = ?", (name,))

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction; those inside another one belong to it."""
        with self._lock:
            if self._db.in_transaction:
                yield self._db
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _owned(self, job_id: str, worker: str) -> Job | None:
        job = self.get(job_id)
        return job if job and job.state is State.RUNNING and job.worker == worker else None

    def _end(self, job: Job, state: State) -> None:
        now = self._clock()
        self._write(replace(job, state=state, finished=now, expires=now + job.keep_seconds), lease=0)
        sums = {f"{job.kind}:{state}": 1.0}
        if state is State.SUCCEEDED and job.kind == "video":
            sums |= {"frames": float(job.total), "seconds": now - job.started}
        for name, value in sums.items():
            self._db.execute(
                "INSERT INTO totals VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
                (name, value),
            )

    def _write(self, job: Job, *, lease: float) -> Job:
        self._db.execute(
            "UPDATE jobs SET state = ?, lease = ?, expires = ?, body = ? WHERE id = ?",
            (job.state, lease, job.expires, _encoded(job), job.id),
        )
        return job


def new_id() -> str:
    """A job's id, which nobody can guess."""
    return secrets.token_hex(16)


def _encoded(job: Job) -> str:
    return json.dumps(asdict(job))


def _decoded(body: str) -> Job:
    values = json.loads(body)
    return Job(**values | {"state": State(values["state"])})
