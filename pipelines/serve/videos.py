"""`/v1/videos`: ask for a video, follow it, fetch it, cancel it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter, Depends, Request
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from lawdnet.serving.jobs import Job
from lawdnet.serving.problems import Problem
from lawdnet.serving.worker import AUDIO
from pipelines.serve.files import file_response
from pipelines.serve.schemas import UPLOAD_PROBLEMS, Video, VideoOptions, file_form, media, problems
from pipelines.serve.state import ServerState, State, check_key
from pipelines.serve.upload import received

POLL_SECONDS = 0.25
"""How often an event stream looks at its job."""
ALIVE_SECONDS = 15.0
"""An event stream says something at least this often, so that no proxy closes it."""

router = APIRouter(prefix="/v1/videos", tags=["videos"], dependencies=[Depends(check_key)])

FORM = file_form(
    {"@audio": "What to say: an audio file, or a video with audio."},
    {
        "template": "Name of a template; the server's first if it is missing.",
        "options": 'A JSON object: {"model": NAME, "keep_seconds": NUMBER}.',
    },
)


def shown(state: ServerState, job: Job) -> Video:
    """A job with its place in the queue."""
    return Video.of(job, state.service.store.place(job.id))


@router.post("", status_code=202, response_model=Video, openapi_extra=FORM, responses=UPLOAD_PROBLEMS)
async def create_video(request: Request, state: State) -> JSONResponse:
    """Ask for a video of a template that says what the audio says."""
    service = state.service
    texts = frozenset({"template", "options"})
    async with received(request, state, files={"audio": AUDIO}, texts=texts, max_bytes=service.limits.audio_bytes) as (
        job_id,
        _,
        form,
    ):
        if "audio" not in form.names:
            raise Problem(422, "no_audio_field", "audio: this field is missing; send a file in it")
        options = _options(form.fields.get("options", ""))
        template = form.fields.get("template", "")
        job = await run_in_threadpool(
            service.submit_video, job_id, template=template, model=options.model, keep_seconds=options.keep_seconds
        )
    video = await run_in_threadpool(shown, state, job)
    return JSONResponse(video.model_dump(mode="json"), 202, headers={"location": video.urls["self"]})


@router.get("/{video_id}", response_model=Video, responses=problems(404, 422))
def read_video(video_id: str, state: State) -> Video:
    """State, progress and place in the queue."""
    return shown(state, state.service.video(video_id))


@router.get(
    "/{video_id}/events",
    response_class=StreamingResponse,
    responses=media("text/event-stream") | problems(404, 422),
)
async def follow_video(video_id: str, state: State) -> StreamingResponse:
    """Server-sent events: `state` with the video's JSON, at every change and at last when it has ended."""
    state.check_listeners()
    await run_in_threadpool(state.service.video, video_id)
    return StreamingResponse(
        _events(state, video_id), media_type="text/event-stream", headers={"x-accel-buffering": "no"}
    )


@router.head("/{video_id}/content", include_in_schema=False)
@router.get(
    "/{video_id}/content",
    response_class=Response,
    responses=media("video/mp4", parts=True) | problems(404, 409, 410, 416, 422, 507),
)
def fetch_video(video_id: str, request: Request, state: State) -> Response:
    """The finished MP4; `Range` asks for a part."""
    return file_response(request, state.service.content(video_id), name="video.mp4")


@router.delete("/{video_id}", status_code=204, responses=problems(404, 422))
def delete_video(video_id: str, state: State) -> Response:
    """Cancel a video that is not finished; delete one that is."""
    state.service.delete_video(video_id)
    return Response(status_code=204)


async def _events(state: ServerState, video_id: str) -> AsyncIterator[str]:
    said, silent = "", 0.0
    async with state.listeners:
        while True:
            try:
                video = await run_in_threadpool(lambda: shown(state, state.service.video(video_id)))
            except Problem as problem:  # it was deleted meanwhile
                yield f"event: gone\ndata: {problem.detail}\n\n"
                return
            if (text := video.model_dump_json()) != said:
                said, silent = text, 0.0
                yield f"event: state\ndata: {text}\n\n"
            if video.finished:
                return
            if silent >= ALIVE_SECONDS:
                silent = 0.0
                yield ": alive\n\n"
            await asyncio.sleep(POLL_SECONDS)
            silent += POLL_SECONDS


def _options(text: str) -> VideoOptions:
    try:
        return VideoOptions.model_validate_json(text) if text else VideoOptions()
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:40] for part in found["loc"])
        raise Problem(422, "bad_options", f"options{'.' if where else ''}{where}: {found['msg']}") from error
