"""What goes over HTTP as JSON."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lawdnet.serving.jobs import Job
from lawdnet.serving.service import TemplateStatus


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    kind: str = Field(description="A short word for programs, such as queue_full.")
    detail: str = Field(description="One sentence for a person.")


class VideoOptions(BaseModel):
    """The field `options` of a new video: a JSON object."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str = Field(default="", max_length=64, description="Name of a checkpoint of this server; empty: its first.")
    keep_seconds: float = Field(default=0, ge=0, description="How long the result is kept; 0: the server's default.")


class Video(BaseModel):
    """The state of a video."""

    id: str
    state: str = Field(description="queued, running, succeeded, failed or cancelled.")
    model: str
    progress: float = Field(description="0 to 1.")
    frames: int = Field(description="Frames that are done.")
    total: int = Field(description="Frames in all.")
    place: int = Field(description="Place in the queue; 1 is next, 0 if it does not wait.")
    created: float = Field(description="Seconds since 1970, like the other times; 0: not yet.")
    started: float
    finished: float
    expires: float = Field(description="When the result is deleted.")
    problem: Problem | None
    summary: dict[str, Any] | None = Field(description="Figures of the finished video.")
    urls: dict[str, str]

    @classmethod
    def of(cls, job: Job, place: int) -> Video:
        """From a job and its place in the queue."""
        url = f"/v1/videos/{job.id}"
        done = 1.0 if job.state == "succeeded" else min(1.0, job.frames / max(1, job.total))
        names = ("id", "state", "model", "frames", "total", "created", "started", "finished", "expires", "summary")
        return cls(
            **{name: getattr(job, name) for name in names},
            place=place,
            progress=round(done, 4),
            problem=Problem(**job.problem) if job.problem else None,
            urls={"self": url, "events": f"{url}/events", "content": f"{url}/content"},
        )


class Template(BaseModel):
    """A template: a person who can speak."""

    name: str
    state: str = Field(description="preparing, ready or failed.")
    pinned: bool = Field(description="Given by the server's owner; it cannot be deleted.")
    width: int
    height: int
    seconds: float
    face: str
    frames: int = Field(description="Frames that its preparation has looked at.")
    problem: Problem | None
    urls: dict[str, str]

    @classmethod
    def of(cls, status: TemplateStatus) -> Template:
        """From the service's view of it."""
        row, job = status.row, status.job
        url = f"/v1/templates/{row.name}"
        return cls(
            name=row.name,
            state=status.state,
            pinned=row.pinned,
            width=row.width,
            height=row.height,
            seconds=row.frames / 25,
            face=row.face,
            frames=job.frames if job else 0,
            problem=Problem(**job.problem) if job and job.problem else None,
            urls={"self": url, "content": f"{url}/content"},
        )


class Info(BaseModel):
    """What a client may want to know of the server."""

    version: str
    models: list[str]
    default_template: str
    limits: dict[str, float]


def file_form(required: dict[str, str], optional: dict[str, str]) -> dict[str, Any]:
    """OpenAPI of a multipart form; fields that begin with `@` are files."""

    def schema(field: str, description: str) -> tuple[str, dict[str, Any]]:
        shape = {"type": "string", "description": description}
        is_file = field.startswith("@")
        return field.removeprefix("@"), shape | ({"format": "binary"} if is_file else {"maxLength": 4096})

    fields = dict(schema(*item) for item in (required | optional).items())
    needed = [name.removeprefix("@") for name in required]
    form = {"type": "object", "properties": fields, "required": needed, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI of the problem documents that a route may answer with."""
    reference = {"$ref": "#/components/schemas/Problem"}
    document = {"application/problem+json": {"schema": reference}}
    return {
        status: {"description": "A problem document", "content": document}
        for status in (400, 401, 403, 421, 431, 500, 503, *statuses)
    }


def media(kind: str, *, parts: bool = False) -> dict[int | str, dict[str, Any]]:
    """OpenAPI of an answer that is no JSON.

    Args:
        kind: its media type.
        parts: whether a range of it can be asked for.
    """
    found: dict[int | str, dict[str, Any]] = {200: {"content": {kind: {}}, "description": "It"}}
    return found | ({206: {"content": {kind: {}}, "description": "The part that was asked for"}} if parts else {})


UPLOAD_PROBLEMS = problems(408, 413, 415, 422, 429, 507)
