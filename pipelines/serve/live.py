"""Routes of what is drawn while it is watched: a video streamed as it is made, and live speech.

`GET /v1/live/info`, `POST /v1/videos/stream`, `WS /v1/live`, `POST /v1/live/offer` (WebRTC). They need a `LiveHost`;
`app.include_router(live_router(host))` mounts them.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, WebSocket
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from lawdnet.audio.io import audio_seconds, load_audio
from lawdnet.inference.engine import OUTPUT_RATE, Engine
from lawdnet.inference.listening import HIGHEST_RATE, LOWEST_RATE
from lawdnet.inference.template import Template
from lawdnet.install import install_hint
from lawdnet.serving.problems import Problem
from lawdnet.tasks.background import ahead
from lawdnet.types import FPS, SAMPLE_RATE, Float32
from lawdnet.video.fragments import FragmentWriter
from pipelines.serve.live_limits import LiveHost, LiveLimits, Slots, check_origin
from pipelines.serve.live_schemas import Offer, parsed
from pipelines.serve.live_socket import serve_socket

FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "audio": {"type": "string", "format": "binary", "description": "What to say."},
                        "template": {"type": "string", "maxLength": 64, "description": "Empty: the server's first."},
                    },
                    "required": ["audio"],
                    "additionalProperties": False,
                }
            }
        },
    }
}
OFFER = {"requestBody": {"required": True, "content": {"application/json": {"schema": Offer.model_json_schema()}}}}
FORM_BYTES = 64 << 10
"""Room for the other fields and the boundaries, beside the file."""
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": "A problem document", "content": {"application/problem+json": {}}}
    for status in (400, 401, 403, 408, 413, 422, 500, 503)
}

Route = Callable[..., Awaitable[Response]]


def live_router(host: LiveHost, limits: LiveLimits | None = None) -> APIRouter:
    """Return the live routes.

    Args:
        host: who may come, and where networks and templates are.
        limits: how much one client may ask for.
    """
    limits = limits or LiveLimits()
    sessions = Slots(limits.sessions, "live sessions")
    streams = Slots(limits.streams, "streams")
    router = APIRouter(tags=["live"])

    @router.get("/v1/live/info", responses=PROBLEMS)
    @problem_documents
    async def live_info(request: Request) -> Response:
        """What live clients may send, and how many more may come."""
        host.check(request)
        info = {
            "fps": FPS,
            "formats": ["jpeg", "mp4"],
            "rate": {"lowest": LOWEST_RATE, "highest": HIGHEST_RATE, "multiple_of": FPS, "usual": SAMPLE_RATE},
            "webrtc": has_webrtc(),
            "sessions": {"used": sessions.used, "most": sessions.count},
            "waiting_seconds": limits.waiting_seconds,
            "idle_seconds": limits.idle_seconds,
        }
        return JSONResponse(info)

    @router.post(
        "/v1/videos/stream",
        openapi_extra=FORM,
        response_class=StreamingResponse,
        responses=PROBLEMS | {200: {"content": {"video/mp4": {}}, "description": "A fragmented MP4"}},
    )
    @problem_documents
    async def stream_video(request: Request) -> Response:
        """A video of a template that says what the audio says, sent while it is drawn."""
        host.check(request)
        check_origin(request)
        streams.take()
        try:
            wave, sound, name = await _received(request, limits)
            engine, template = await run_in_threadpool(host.open, name)
            film = _Film(engine, template, wave, sound)
        except BaseException:
            streams.give_back()
            raise
        return _Streamed(film, streams, limits.stalled_seconds)

    @router.websocket("/v1/live")
    async def live(socket: WebSocket) -> None:
        await serve_socket(socket, host, limits, sessions)

    @router.post(
        "/v1/live/offer",
        openapi_extra=OFFER,
        responses=PROBLEMS | {501: {"description": "aiortc is not installed"}},
    )
    @problem_documents
    async def offer_webrtc(request: Request) -> Response:
        """Answer the offer of a WebRTC client: its microphone in, video and audio out."""
        host.check(request)
        check_origin(request)
        if not has_webrtc():
            raise Problem(501, "no_webrtc", f"this server has no aiortc; {install_hint('live')}")
        from pipelines.serve.live_rtc import answer

        body = await _bounded(request, limits.message_bytes, limits).body()
        return JSONResponse(await answer(parsed(Offer, body, "bad_offer"), host, limits, sessions))

    return router


def has_webrtc() -> bool:
    """Whether the extra `live` is installed."""
    return importlib.util.find_spec("aiortc") is not None


def problem_documents(route: Route) -> Route:
    """Answer with a problem document where a route raises one, whatever app it is mounted in."""

    @wraps(route)
    async def wrapped(*args: Any, **kwargs: Any) -> Response:
        try:
            return await route(*args, **kwargs)
        except ValueError as error:  # of the form, the audio, the offer
            problem = Problem.of(error) if type(error) is not ValueError else Problem(422, "unusable", str(error))
        except Problem as error:
            problem = error
        headers = {} if problem.retry_after is None else {"retry-after": str(round(problem.retry_after))}
        return JSONResponse(problem.document, problem.status, headers, "application/problem+json")

    return wrapped


async def _received(request: Request, limits: LiveLimits) -> tuple[Float32, Float32, str]:
    """Return the audio of a form at 16 and at 48 kHz, and the template's name; nothing of it stays on disk."""
    bounded = _bounded(request, limits.audio_bytes + FORM_BYTES, limits)
    try:
        async with asyncio.timeout(limits.upload_seconds):
            async with bounded.form(max_files=1, max_fields=4) as form:
                upload, name = form.get("audio"), form.get("template") or ""
                if upload is None or isinstance(upload, str) or not isinstance(name, str):
                    raise Problem(422, "no_audio_field", "audio: this field is missing; send a file in it")
                wave, sound = await run_in_threadpool(_decoded, upload.file, limits.audio_seconds)
    except TimeoutError:
        raise Problem(408, "too_slow", f"the upload takes more than {limits.upload_seconds:g} s") from None
    except HTTPException as error:
        raise Problem(400, "malformed_form", f"the multipart form is malformed: {error.detail}") from error
    return wave, sound, name[:64]


def _bounded(request: Request, most: int, limits: LiveLimits) -> Request:
    """The same request, whose body must not be larger than this, and not stand still."""
    left = most

    async def receive() -> Message:
        nonlocal left
        try:
            async with asyncio.timeout(limits.upload_idle_seconds):
                message = await request.receive()
        except TimeoutError:
            raise Problem(408, "too_slow", f"nothing came for {limits.upload_idle_seconds:g} s") from None
        left -= len(message.get("body", b""))
        if left < 0:
            raise Problem(413, "too_large", f"the request is larger than {most} bytes")
        return message

    return Request(request.scope, receive)


def _decoded(upload: Any, longest: float) -> tuple[Float32, Float32]:
    with TemporaryDirectory(prefix="lawdnet-stream-") as folder:
        path = Path(folder) / "audio"
        with path.open("wb") as file:
            while block := upload.read(1 << 20):
                file.write(block)
        if audio_seconds(path, limit=longest) > longest:
            raise Problem(413, "audio_too_long", f"audio: longer than {longest:g} s; cut it")
        return load_audio(path), load_audio(path, rate=OUTPUT_RATE)


class _Film:
    """The pieces of a fragmented MP4, drawn when they are asked for; closing it stops the drawing."""

    def __init__(self, engine: Engine, template: Template, wave: Float32, sound: Float32) -> None:
        self._writer = FragmentWriter(height=template.height, width=template.width, sample_rate=OUTPUT_RATE)
        self.mime = self._writer.mime
        self._frames = engine.frames(template, wave)
        self._sound, self._batch = sound, engine.batch_size
        self._pieces = self._made()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._pieces)

    def close(self) -> None:
        """End the threads that draw, and free the encoders."""
        self._pieces.close()  # type: ignore[attr-defined]
        self._writer.close()

    def _made(self) -> Iterator[bytes]:
        length = OUTPUT_RATE // FPS
        with closing(ahead(self._frames, self._batch)) as drawn:
            for number, frame_HW3 in enumerate(drawn):
                audio = self._sound[number * length : (number + 1) * length]
                if piece := self._writer.write(frame_HW3, np.pad(audio, (0, length - len(audio)))):
                    yield piece
        yield self._writer.finish()


class _Streamed(StreamingResponse):
    """A response whose film is closed and whose slot is free when it has ended, however it ended."""

    def __init__(self, film: _Film, slots: Slots, stalled_seconds: float) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(film, media_type=film.mime, headers=headers)
        self._film, self._slots, self._stalled_seconds = film, slots, stalled_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self._stalled_seconds):
                await send(message)

        try:
            await super().__call__(scope, receive, send_in_time)
        except TimeoutError:
            return  # the client has stopped reading: the connection is closed
        finally:
            self._slots.give_back()
            await run_in_threadpool(self._film.close)
