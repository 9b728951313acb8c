"""What clients can ask of a server, whatever protocol they use: videos, templates, and how it is doing."""

from __future__ import annotations

import logging
import math
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lawdnet.face.track import one_face
from lawdnet.serving.intake import check_audio, check_video
from lawdnet.serving.jobs import Job, State, Store, TemplateRow, new_id
from lawdnet.serving.limits import Limits
from lawdnet.serving.problems import Problem
from lawdnet.serving.templates import TemplateFiles
from lawdnet.serving.worker import AUDIO, RESULT
from lawdnet.types import FPS

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Of a template."""
JOB_ID = re.compile(r"[0-9a-f]{32}")
MIN_KEEP_SECONDS = 60.0
MAX_FACE = 8
"""Characters of the choice of a face."""
NO_LIMIT = 1 << 30


@dataclass(frozen=True, kw_only=True)
class TemplateStatus:
    """A template as clients see it."""

    row: TemplateRow
    state: str
    """`preparing`, `ready` or `failed`."""
    job: Job | None
    """The one that prepares it, as long as its record is kept."""


class Service:
    """The server behind its protocols. Safe to use from several threads.

    Args:
        store: the jobs.
        data: folder of the server: uploads, results and templates.
        files: the templates in it.
        models: names of the checkpoints; the first is used where none is named.
        limits: what one client may ask for.
        wake: called when there is a new job.
    """

    def __init__(
        self,
        store: Store,
        data: Path,
        files: TemplateFiles,
        models: Sequence[str],
        *,
        limits: Limits | None = None,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.store, self.data, self.files = store, data, files
        self.models = list(models)
        self.limits = limits or Limits()
        self.wake = wake

    def begin(self) -> tuple[str, Path]:
        """Return the id of a new job, and its empty folder for what the client sends.

        Raises:
            Problem: 503, the queue is full; 507, the disk is.
        """
        waiting = self.store.counts()[State.QUEUED]
        if waiting >= self.limits.queue:
            raise Problem(503, "queue_full", f"{waiting} jobs are waiting; try again later", retry_after=10)
        self.data.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self.data).free < self.limits.free_bytes:
            raise Problem(507, "disk_full", "the server's disk is nearly full; try again later", retry_after=60)
        job_id = new_id()
        folder = self.folder(job_id)
        folder.mkdir(parents=True)
        return job_id, folder

    def folder(self, job_id: str) -> Path:
        """The folder of a job."""
        return self.data / "jobs" / job_id

    def discard(self, job_id: str) -> None:
        """Delete the files of a job."""
        shutil.rmtree(self.folder(job_id), ignore_errors=True)

    def submit_video(self, job_id: str, *, template: str, model: str = "", keep_seconds: float = 0) -> Job:
        """Queue a video whose audio is in the job's folder.

        Args:
            template: name of a template; "" is `default_template`.
            model: name of a checkpoint; "" is the first.
            keep_seconds: how long the result is kept; 0 is as long as the server keeps results.

        Raises:
            Problem: 422 a name is unknown or the audio cannot be used, 413 it is too long, 503 the queue is full.
        """
        model = self._model(model)
        row = self.usable_template(template)
        seconds = check_audio(self.folder(job_id) / AUDIO, self.limits)
        job = Job(
            id=job_id,
            kind="video",
            model=model,
            template=row.content,
            face=row.face,
            total=math.ceil(seconds * FPS),
            keep_seconds=self._keep(keep_seconds),
        )
        return self._submit(job, self.limits.queue)

    def submit_template(self, job_id: str, video: Path, *, name: str, face: str = "largest", model: str = "") -> Job:
        """Queue the preparation of a template that a client has sent into the job's folder.

        Raises:
            Problem: 422 the name or the video cannot be used, 413 it is too long or too large, 409 the name is taken.
        """
        if not NAME.fullmatch(name):
            raise Problem(422, "bad_name", "name: 1 to 64 letters, digits, dots, dashes and underscores")
        model = self._model(model)
        return self._add_template(video, name, face, model, job_id=job_id, pinned=False)

    def pin_template(self, video: Path, *, name: str, face: str = "largest") -> None:
        """Add a template of the server's owner, which clients cannot remove; the video is copied.

        Raises:
            ValueError: the name or the video cannot be used.
        """
        if not NAME.fullmatch(name):
            raise ValueError(f"{name}: a template's name is 1 to 64 letters, digits, dots, dashes and underscores")
        try:
            row = self.store.template(name)
            if (
                row
                and row.pinned
                and self.files.content(video, face) == row.content
                and self._status(row).state == "ready"
            ):
                return
            for model in self.models:
                self._add_template(video, name, face, model, job_id=new_id(), pinned=True)
        except Problem as problem:
            raise ValueError(f"{video}: {problem.detail}") from problem

    @property
    def default_template(self) -> str:
        """Name of the template that is used where none is named: the first of the owner's; "" if there is none."""
        rows = [row for row in self.store.templates() if row.pinned]
        return min(rows, key=lambda row: row.created).name if rows else ""

    def video(self, job_id: str) -> Job:
        """A client's video.

        Raises:
            Problem: 404, nothing with this id (any more).
        """
        job = self.store.get(job_id) if JOB_ID.fullmatch(job_id) else None
        if job is None or job.kind != "video":
            raise Problem(404, "unknown_video", "no video has this id; results expire, and can be deleted")
        return job

    def content(self, job_id: str) -> Path:
        """The finished file of a video.

        Raises:
            Problem: 404 unknown, 409 not finished, 410 cancelled, or why it failed.
        """
        job = self.video(job_id)
        if job.state is State.FAILED and job.problem:
            status = job.problem["status"]
            raise Problem(status if status >= 500 else 422, job.problem["kind"], job.problem["detail"])
        if job.state is State.CANCELLED:
            raise Problem(410, "cancelled", "the video was cancelled")
        path = self.folder(job_id) / RESULT
        if job.state is not State.SUCCEEDED:
            raise Problem(409, "not_finished", f"the video is {job.state}; ask for its state first", retry_after=1)
        if not path.is_file():
            raise Problem(404, "unknown_video", "the result is gone")
        return path

    def delete_video(self, job_id: str) -> None:
        """Cancel a video that waits or runs; forget one that has ended.

        Raises:
            Problem: 404, unknown.
        """
        self.video(job_id)
        if not self.store.cancel(job_id):
            self.store.remove(job_id)
        self.discard(job_id)

    def templates(self) -> list[TemplateStatus]:
        """All templates, by name."""
        return [self._status(row) for row in self.store.templates()]

    def template(self, name: str) -> TemplateStatus:
        """One template.

        Raises:
            Problem: 404, unknown.
        """
        row = self.store.template(name)
        if row is None:
            raise Problem(404, "unknown_template", "no template has this name")
        return self._status(row)

    def usable_template(self, name: str) -> TemplateRow:
        """A template that is ready, or will be.

        Args:
            name: "" is `default_template`.

        Raises:
            Problem: 422, there is none of this name, or it could not be prepared.
        """
        name = name or self.default_template
        row = self.store.template(name) if NAME.fullmatch(name) else None
        if row is None:
            raise Problem(422, "unknown_template", "template: no template has this name; GET /v1/templates lists them")
        status = self._status(row)
        if status.state == "failed":
            why = status.job.problem["detail"] if status.job and status.job.problem else "its preparation was lost"
            raise Problem(422, "template_failed", f"template {name} cannot be used: {why}")
        return row

    def delete_template(self, name: str) -> None:
        """Remove a template, and cancel its preparation; videos that wait for it still get it.

        Raises:
            Problem: 404 unknown, 409 it belongs to the server's owner.
        """
        row = self.template(name).row
        if row.pinned:
            raise Problem(409, "pinned", f"template {name} was given on the server's command line; it stays")
        self.store.cancel(row.job)
        self.store.remove_template(name)
        if row.content not in self.store.contents_in_use():
            shutil.rmtree(self.files.folder / row.content, ignore_errors=True)

    def sweep(self) -> None:
        """Retry lost jobs, and delete what has expired; call it every few seconds."""
        if self.store.retry_lost():
            self.wake()
        for job_id in self.store.expired():
            self.store.remove(job_id)
            self.discard(job_id)
        for status in self.templates():  # one that never got ready goes with the record of why
            if status.state == "failed" and status.job is None and not status.row.pinned:
                self.store.remove_template(status.row.name)

    def tidy(self, older_than: float = 3600.0) -> None:
        """Delete the files of no job and of no template, which a killed server left behind."""
        known = {"jobs": set(self.store.job_ids()), "templates": set(self.store.contents_in_use())}
        for kind, names in known.items():
            folder = self.data / kind
            for path in folder.iterdir() if folder.is_dir() else ():
                if path.name not in names and time.time() - path.stat().st_mtime > older_than:
                    shutil.rmtree(path, ignore_errors=True)

    def figures(self) -> dict[str, Any]:
        """Numbers for metrics: jobs by state now, and totals."""
        return {"now": self.store.counts(), "totals": self.store.totals()}

    def _model(self, model: str) -> str:
        if model and model not in self.models:
            raise Problem(422, "unknown_model", f"model: unknown; this server has {', '.join(self.models)}")
        return model or self.models[0]

    def _keep(self, seconds: float) -> float:
        most = self.limits.keep_seconds
        if seconds and not min(MIN_KEEP_SECONDS, most) <= seconds <= most:
            raise Problem(422, "bad_keep", f"keep_seconds: from {MIN_KEEP_SECONDS:g} to {most:g}")
        return seconds or most

    def _add_template(self, video: Path, name: str, face: str, model: str, *, job_id: str, pinned: bool) -> Job:
        if len(face) > MAX_FACE:
            raise Problem(422, "bad_face", "face: largest, or a number (0 is the largest face)")
        try:
            one_face(face)
        except ValueError as error:
            raise Problem(422, "bad_face", str(error)) from error
        found = check_video(video, self.limits)
        content = self.files.add(video, face, move=not pinned)
        self.discard(job_id)
        before = self.store.template(name)
        if before and before.content == content and not pinned and (status := self._status(before)).state != "failed":
            if status.job:
                return status.job
        elif before and before.content != content and not pinned:
            detail = f"template {name} exists with another content; delete it, or choose another name"
            raise Problem(409, "name_taken", detail)
        job = Job(id=job_id, kind="template", model=model, template=content, face=face, keep_seconds=self._keep(0))
        row = TemplateRow(
            name=name,
            content=content,
            job=job_id,
            pinned=pinned,
            created=time.time(),
            height=found.height,
            width=found.width,
            frames=found.num_frames,
            face=face,
        )
        job = self._submit(job, self.limits.queue if not pinned else NO_LIMIT)  # first, so that the row never lacks it
        try:
            self.store.add_template(row, self.limits.templates if not pinned else NO_LIMIT)
        except Problem:
            self.store.cancel(job_id)
            raise
        return job

    def _submit(self, job: Job, max_queue: int) -> Job:
        job = self.store.submit(job, max_queue)
        self.wake()
        return job

    def _status(self, row: TemplateRow) -> TemplateStatus:
        job = self.store.get(row.job)
        if self.files.is_prepared(row.content):
            state = "ready"
        elif job is None or job.state.is_final:
            state = "failed"
        else:
            state = "preparing"
        return TemplateStatus(row=row, state=state, job=job)
