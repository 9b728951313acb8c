"""The routes of LawDNet 2024's servers, for their clients: the same fields and messages, and a video with sound.

The published servers write to one temporary file, use the client's file name as a path, and one of them returns a video
without sound; see docs/migration.md.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, Response

from lawdnet.serving.problems import Problem
from lawdnet.serving.worker import AUDIO
from pipelines.serve.files import file_response
from pipelines.serve.schemas import UPLOAD_PROBLEMS, file_form, problems
from pipelines.serve.state import ServerState, State, check_key
from pipelines.serve.upload import received

NO_AUDIO = "没有上传音频文件"
"""What the published server says when there is no audio file."""
POLL_SECONDS = 0.1

router = APIRouter(tags=["published"], dependencies=[Depends(check_key)])
ANSWERS: dict[int | str, dict[str, Any]] = (
    {200: {"content": {"video/mp4": {}}}, 404: {"content": {"text/plain": {}}}} | UPLOAD_PROBLEMS | problems(410)
)


class Refused(Exception):
    """A message of the published servers."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.response = PlainTextResponse(text, status)


@router.post(
    "/upload-audio", response_class=Response, responses=ANSWERS, openapi_extra=file_form({"@file": "Audio."}, {})
)
async def upload_audio(request: Request, state: State) -> Response:
    """Audio in the field `file`; answers with the video as an attachment."""
    return await _speak(request, state, "file", missing="No file part", unnamed="No selected file", attach=True)


AUDIO_FORM = file_form({"@audio": "Audio."}, {})


@router.post("/generate_video", response_class=Response, responses=ANSWERS, openapi_extra=AUDIO_FORM)
@router.post(
    "/generate-video",
    response_class=Response,
    responses=ANSWERS,
    openapi_extra=AUDIO_FORM,
    operation_id="generate_video_with_a_dash",
)
async def generate_video(request: Request, state: State) -> Response:
    """Audio in the field `audio`; answers with the video."""
    return await _speak(request, state, "audio", missing=NO_AUDIO, unnamed=NO_AUDIO, attach=False)


async def _speak(
    request: Request, state: ServerState, field: str, *, missing: str, unnamed: str, attach: bool
) -> Response:
    """Render the server's first template, and wait for it; a client that goes away cancels its video."""
    service = state.service
    try:
        async with received(
            request, state, files={field: AUDIO}, texts=frozenset(), max_bytes=service.limits.audio_bytes
        ) as (job_id, _, form):
            name = form.names.get(field)
            if not name:
                raise Refused(400, missing if name is None else unnamed)
            template = await run_in_threadpool(lambda: service.default_template)
            if not template:
                raise Refused(404, "Video not found")
            await run_in_threadpool(service.submit_video, job_id, template=template)
    except Refused as refusal:
        return refusal.response
    except Problem as problem:
        if problem.kind == "not_a_form":  # Flask finds no file in what is not a form
            return PlainTextResponse(missing, 400)
        raise
    try:
        while not (await run_in_threadpool(service.video, job_id)).state.is_final:
            if await request.is_disconnected():
                raise Problem(400, "cut_off", "the client went away")
            await asyncio.sleep(POLL_SECONDS)
        path = await run_in_threadpool(service.content, job_id)
    except BaseException:
        await run_in_threadpool(service.delete_video, job_id)
        raise
    return file_response(request, path, name="output_video.mp4", attach=attach)
