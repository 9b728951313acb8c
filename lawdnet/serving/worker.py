"""Does a server's jobs, one at a time, on engines that are loaded once; a cancelled job stops at its next frame."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lawdnet.inference.engine import Engine
from lawdnet.serving.jobs import Job, State, Store
from lawdnet.serving.problems import Problem
from lawdnet.serving.templates import TemplateFiles
from lawdnet.tasks.background import repeated

log = logging.getLogger(__name__)

BEAT_SECONDS = 0.25
"""How often a worker says that it is alive, and learns that its job is cancelled."""
STALL_SECONDS = 300.0
"""A job without one more frame for this long fails: a decoder hangs."""
AUDIO, RESULT = "audio", "result.mp4"
"""Names of the files in a job's folder."""


class Stopped(Exception):
    """The job is no longer this worker's: it was cancelled, or given to another one."""


class Lease:
    """What a worker holds of a job. `check` is called from every thread that works on it."""

    def __init__(self, store: Store, job: Job, worker: str, stopping: threading.Event) -> None:
        self.store, self.job, self.worker = store, job, worker
        self.frames, self.total = 0, job.total
        self.is_stuck = False
        self._moved = time.monotonic()
        self._stopping = stopping
        self._is_lost = threading.Event()

    def check(self) -> None:
        """Go on, or not.

        Raises:
            Stopped: not.
        """
        self._moved = time.monotonic()
        if self._is_lost.is_set() or self._stopping.is_set():
            raise Stopped

    def progress(self, frames: int, total: int) -> None:
        """Note how far the job is, and go on or not."""
        self.frames, self.total = frames, total
        self.check()

    def step(self) -> None:
        """Note that one more frame was looked at, and go on or not."""
        self.progress(self.frames + 1, self.total)

    def beat(self) -> None:
        """Tell the store; it answers whether to go on."""
        try:
            if time.monotonic() - self._moved > STALL_SECONDS and not self._is_lost.is_set():
                self.is_stuck = True
                problem = Problem(500, "timeout", f"no frame was finished for {STALL_SECONDS:g} s")
                self.store.finish(self.job.id, self.worker, State.FAILED, problem=problem.document)
            if not self.store.beat(self.job.id, self.worker, self.frames, self.total):
                self._is_lost.set()
        except Exception as error:  # the store may be starting again; if it stays away, the lease runs out
            log.warning("job %s: no heartbeat (%s)", self.job.id, error)


class Worker:
    """Takes jobs from a store.

    Args:
        store: the jobs.
        data: folder of the server, which all its processes share.
        files: the templates.
        engines: checkpoint's name → its engine.
    """

    def __init__(self, store: Store, data: Path, files: TemplateFiles, engines: Mapping[str, Engine]) -> None:
        self.store, self.data, self.files, self.engines = store, data, files, engines
        self.name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self.stopping = threading.Event()
        """Set it to put the job back into the queue, where it was."""
        self._lease: Lease | None = None

    @property
    def is_stuck(self) -> bool:
        """Whether its job hangs, so that only the end of the process helps."""
        return self._lease is not None and self._lease.is_stuck

    def run_once(self) -> bool:
        """Do the oldest waiting job; False if there is none."""
        job = self.store.claim(self.name, list(self.engines))
        if job is None:
            return False
        lease = self._lease = Lease(self.store, job, self.name, self.stopping)
        state, results = State.SUCCEEDED, dict[str, Any]()
        try:
            with repeated(lease.beat, BEAT_SECONDS):
                results = self._do(job, lease)
        except Stopped:
            self.store.release(job.id, self.name)
            return True
        except Exception as error:  # whatever it is: the next job is to be done
            state, results = State.FAILED, {"problem": self._problem(job, error)}
        self.store.finish(job.id, self.name, state, frames=lease.frames, total=lease.total, **results)
        return True

    def _do(self, job: Job, lease: Lease) -> dict[str, Any]:
        engine = copy.copy(self.engines[job.model])  # shares the network; only its heartbeat is another one
        engine.beat = lease.check
        step = lease.step if job.kind == "template" else lease.check
        template = self.files.load(job.template, engine, job.face, step)
        if job.kind == "template":
            return {}
        folder = self.data / "jobs" / job.id
        made = engine.render(template, folder / AUDIO, folder / RESULT, on_progress=lease.progress)
        return {"summary": dataclasses.asdict(made)}

    def _problem(self, job: Job, error: Exception) -> dict[str, Any]:
        if isinstance(error, FileNotFoundError):
            return Problem(410, "gone", "its template or audio was deleted").document
        problem = Problem.of(error)
        if problem.status >= 500:
            log.error("job %s failed", job.id, exc_info=error)
        for folder in (self.data / "jobs" / job.id, self.files.folder / job.template):
            problem.detail = problem.detail.replace(f"{folder}/", "")
        return problem.document


class WorkerThreads:
    """Workers in this process, which share the engines.

    Args:
        workers: one thread each.
    """

    IDLE_SECONDS = 1.0

    def __init__(self, workers: list[Worker]) -> None:
        self._workers = workers
        self._wake = threading.Semaphore(0)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(worker,), daemon=True) for worker in workers]

    def start(self) -> None:
        """Begin to work."""
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Tell them that there is a job."""
        self._wake.release()

    def stop(self, seconds: float = 5.0) -> None:
        """End; unfinished jobs go back into the queue, for the next server."""
        self._stop.set()
        for worker in self._workers:
            worker.stopping.set()
            self._wake.release()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(seconds)

    def _run(self, worker: Worker) -> None:
        while not self._stop.is_set():
            try:
                if not worker.run_once():
                    self._wake.acquire(timeout=self.IDLE_SECONDS)
            except Exception:  # of the store: a full disk, for example
                log.exception("a worker could not take a job")
                self._stop.wait(self.IDLE_SECONDS)
