"""Live speech over a WebSocket: audio chunks in, frames out. docs/live.md describes the messages."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import math
import time
from typing import Any

import cv2
import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from lawdnet.inference.live import LiveFrame, LiveSession
from lawdnet.inference.template import Template
from lawdnet.serving.problems import Problem
from lawdnet.types import FPS, Float32
from lawdnet.video.fragments import FragmentWriter
from pipelines.serve.live_limits import LiveHost, LiveLimits, Slots, check_origin, with_key
from pipelines.serve.live_schemas import Start, parsed
from pipelines.serve.live_session import AsyncSession

CLOSE_CODES = {413: 1009, 503: 1013, 500: 1011}
"""HTTP status of a problem → code that the connection closes with; the others are 1008 (policy)."""
NORMAL = 1000

logger = logging.getLogger(__name__)


Message = tuple[dict[str, Any], bytes]
"""What is sent for a frame: a text, and then a binary message, if it is not empty."""


async def serve_socket(socket: WebSocket, host: LiveHost, limits: LiveLimits, slots: Slots) -> None:
    """Serve one client until it goes away, closes, or exceeds a limit."""
    line = _Line(socket, limits)
    try:
        check_origin(socket)
        await socket.accept()
        start = await _start(line, limits)
        host.check(socket if start.key is None else with_key(socket, start.key))
        with slots.place():
            async with asyncio.timeout(limits.session_seconds):
                await _serve(line, host, start)
    except WebSocketDisconnect:
        return
    except TimeoutError:
        await line.refuse(Problem(408, "session_over", f"a session lasts {limits.session_seconds:g} s at most"))
    except Exception as error:  # whatever happens, the client is told
        problem = Problem.of(error)
        if problem.status >= 500 and not isinstance(error, Problem):
            logger.exception("live session failed")
        await line.refuse(problem)


async def _serve(line: _Line, host: LiveHost, start: Start) -> None:
    engine, template = await asyncio.to_thread(host.open, start.template)
    try:
        session = await asyncio.to_thread(
            LiveSession,
            engine,
            template,
            rate=start.rate,
            idle=start.idle,
            max_seconds=line.limits.waiting_seconds,
            max_lag=line.limits.microphone_lag if start.microphone else None,
        )
        make = _JpegMaker(start) if start.format == "jpeg" else _Mp4Maker(template, start.rate)
    except ValueError as error:
        raise Problem(422, "bad_start", str(error)) from error
    running = AsyncSession(session, make)
    ready = {"fps": FPS, "rate": start.rate, "samples_per_frame": start.rate // FPS, "mime": make.mime}
    size = {"width": template.width, "height": template.height}
    try:
        await line.send({"type": "ready", **ready, **size, "look_ahead": session.look_ahead})
        window = _Window(start.window)
        await _both(_receive(line, running, window), _send(line, running, window))
        await line.send({"type": "end", "summary": _plain(dataclasses.asdict(session.summary()))})
        await line.close(NORMAL)
    finally:
        running.close()


async def _start(line: _Line, limits: LiveLimits) -> Start:
    try:
        async with asyncio.timeout(limits.start_seconds):
            message = await line.receive()
    except TimeoutError:
        raise Problem(408, "no_start", f"no start message came within {limits.start_seconds:g} s") from None
    return parsed(Start, message, "bad_start")


async def _both(*actions: Any) -> None:
    """Run until one of them ends, or fails; then end the other."""
    tasks = [asyncio.ensure_future(action) for action in actions]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _receive(line: _Line, running: AsyncSession[Message], window: _Window) -> None:
    idle_seconds = line.limits.idle_seconds
    while True:
        try:
            async with asyncio.timeout(idle_seconds):
                message = await line.receive()
        except TimeoutError:
            raise Problem(408, "idle", f"no message came for {idle_seconds:g} s; send ping to stay") from None
        if isinstance(message, bytes):
            try:
                await running.push(_samples(message))
            except ValueError as error:
                raise Problem(413, "too_much_audio", str(error)) from error
            continue
        match _object(message):
            case {"type": "end"}:
                await running.end()
            case {"type": "interrupt"}:
                await line.send({"type": "interrupted", "dropped": round(await running.interrupt(), 3)})
            case {"type": "seen", "number": int(number)}:
                window.see(number)
            case {"type": "ping"}:
                await line.send({"type": "pong", "queued": round(running.session.queued, 3)})
            case {"type": "close"}:
                return
            case _:
                raise Problem(422, "unknown_message", "expected end, interrupt, seen (with a number), ping or close")


async def _send(line: _Line, running: AsyncSession[Message], window: _Window) -> None:
    async for text, data in running.made():
        try:
            async with asyncio.timeout(line.limits.stalled_seconds):
                await window.room(text["number"])
        except TimeoutError as error:
            raise WebSocketDisconnect(1006, "frames are not seen") from error
        await line.send(text, data)


class _Window:
    """How many frames may be under way: buffers of the network hold seconds of them, which nobody could skip."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._seen = -1
        self._changed = asyncio.Event()

    def see(self, number: int) -> None:
        """Note that the client has a frame, and all before it."""
        self._seen = max(self._seen, number)
        self._changed.set()

    async def room(self, number: int) -> None:
        """Wait until a frame may leave; at once, if the client says nothing of what it sees."""
        while self._size and number - self._seen > self._size:
            self._changed.clear()
            await self._changed.wait()


class _Line:
    """One WebSocket, with its limits; a text and its data are never parted."""

    def __init__(self, socket: WebSocket, limits: LiveLimits) -> None:
        self.socket, self.limits = socket, limits
        self._lock = asyncio.Lock()
        self._second, self._count = 0, 0

    async def receive(self) -> str | bytes:
        """Return the next message.

        Raises:
            Problem: it is too large, or too many come.
            WebSocketDisconnect: the client has gone.
        """
        message = await self.socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", NORMAL))
        content: str | bytes = message.get("text") or message.get("bytes") or b""
        if len(content) > self.limits.message_bytes:
            raise Problem(413, "message_too_large", f"a message has at most {self.limits.message_bytes} bytes")
        second = int(time.monotonic())
        self._count = self._count + 1 if second == self._second else 1
        self._second = second
        if self._count > self.limits.messages_per_second:
            raise Problem(429, "too_many_messages", f"at most {self.limits.messages_per_second} messages a second")
        return content

    async def send(self, text: dict[str, Any], data: bytes = b"") -> None:
        """Send a text and the data that belong to it.

        Raises:
            WebSocketDisconnect: the client has gone, or takes nothing.
        """
        try:
            async with self._lock, asyncio.timeout(self.limits.stalled_seconds):
                await self.socket.send_text(json.dumps(text, allow_nan=False))
                if data:
                    await self.socket.send_bytes(data)
        except (TimeoutError, RuntimeError, OSError) as error:  # RuntimeError: it was closed meanwhile
            raise WebSocketDisconnect(1006, type(error).__name__) from error

    async def refuse(self, problem: Problem) -> None:
        """Tell the client why it is over, and close."""
        try:
            if self.socket.application_state.name == "CONNECTED":
                await self.send({"type": "error"} | {k: v for k, v in problem.document.items() if k != "type"})
            await self.close(CLOSE_CODES.get(problem.status, 1008))
        except WebSocketDisconnect:
            return

    async def close(self, code: int) -> None:
        """Close the connection; before it was accepted, this refuses it."""
        try:
            async with asyncio.timeout(self.limits.stalled_seconds):
                await self.socket.close(code)
        except (TimeoutError, RuntimeError, OSError) as error:
            raise WebSocketDisconnect(1006, type(error).__name__) from error


class _JpegMaker:
    """Makes a message per frame: JPEG, then PCM."""

    mime = "image/jpeg"

    def __init__(self, start: Start) -> None:
        self._options = [cv2.IMWRITE_JPEG_QUALITY, start.quality]
        self._audio = start.audio

    def __call__(self, frame: LiveFrame) -> Message:
        image = b""
        if frame.image_HW3 is not None:
            image = cv2.imencode(".jpg", frame.image_HW3[..., ::-1], self._options)[1].tobytes()
        audio = _pcm(frame.audio) if self._audio and frame.position is not None else b""
        return {**_text("frame", frame), "image": len(image), "audio": len(audio)}, image + audio


class _Mp4Maker:
    """Makes a message per frame; now and then it has a piece of the fragmented MP4."""

    def __init__(self, template: Template, rate: int) -> None:
        self._writer = FragmentWriter(height=template.height, width=template.width, sample_rate=rate)
        self.mime = self._writer.mime
        self._last_HW3 = np.zeros((template.height, template.width, 3), np.uint8)

    def __call__(self, frame: LiveFrame) -> Message:
        self._last_HW3 = self._last_HW3 if frame.image_HW3 is None else frame.image_HW3
        data = self._writer.write(self._last_HW3, frame.audio)
        return {**_text("chunk", frame), "bytes": len(data)}, data


def _text(kind: str, frame: LiveFrame) -> dict[str, Any]:
    latency = None if frame.latency is None else round(1000 * frame.latency, 1)
    return {"type": kind, "number": frame.number, "position": frame.position, "latency_ms": latency}


def _object(message: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(message)
        found["type"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Problem(422, "bad_message", "a text message must be a JSON object with a type") from None
    return found


def _samples(data: bytes) -> Float32:
    if len(data) % 2:
        raise Problem(422, "odd_bytes", "audio is 16-bit samples (little-endian): an even number of bytes")
    return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)


def _pcm(samples: Float32) -> bytes:
    data: bytes = np.round(samples * 32768).clip(-32768, 32767).astype("<i2").tobytes()
    return data


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}
