"""POST /v1/videos/stream: the video comes while it is drawn, and nothing stays when the client has gone."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from lawdnet.audio import write_wav
from lawdnet.inference.engine import Engine
from lawdnet.inference.template import Template
from lawdnet.types import UInt8
from tests.support.live_heads import noise
from tests.support.live_host import OneTemplate, eventually, make_app, serving


def wav(folder: Path, frames: float) -> bytes:
    write_wav(folder / "speech.wav", noise(frames))
    return (folder / "speech.wav").read_bytes()


def read(data: bytes) -> tuple[list[UInt8], float]:
    """The frames, and the length of the audio in seconds."""
    with av.open(io.BytesIO(data)) as container:
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(io.BytesIO(data)) as container:
        samples = sum(frame.samples for frame in container.decode(audio=0))
    return images, samples / 48_000


def test_the_video_is_what_render_would_make(live_engine: Engine, live_template: Template, tmp_path: Path) -> None:
    audio = wav(tmp_path, 30.5)
    with TestClient(make_app(OneTemplate(live_engine, live_template))) as http:
        answer = http.post("/v1/videos/stream", files={"audio": ("a.wav", audio)}, data={"template": "head"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith('video/mp4; codecs="avc1.')
    images, seconds = read(answer.content)
    assert len(images) == 31
    assert 31 / 25 <= seconds < 31 / 25 + 0.05
    drawn = list(live_engine.frames(live_template, noise(30.5)))
    errors = [np.abs(a.astype(int) - b).mean() for a, b in zip(images, drawn, strict=True)]
    assert max(errors) < 6


def test_the_first_bytes_come_long_before_the_last(
    live_engine: Engine, live_template: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    frames = live_engine.frames

    def counted(*given: Any) -> Iterator[UInt8]:
        for image_HW3 in frames(*given):
            drawn.append(1)
            yield image_HW3

    monkeypatch.setattr(live_engine, "frames", counted)
    app = make_app(OneTemplate(live_engine, live_template))
    with serving(app) as address, httpx.Client(base_url=f"http://{address}", timeout=60) as http:
        with http.stream("POST", "/v1/videos/stream", files={"audio": wav(tmp_path, 1500)}) as answer:
            first = next(answer.iter_raw())
            at_first = len(drawn)
        assert first[4:8] == b"ftyp"
        assert at_first <= 100
        # the client has gone: the drawing ends, and the place is free
        assert eventually(lambda: settled(drawn), 20)
        assert len(drawn) < 1500
        assert http.post("/v1/videos/stream", files={"audio": wav(tmp_path, 5)}).status_code == 200


def settled(drawn: list[Any]) -> bool:
    before = len(drawn)
    threading.Event().wait(0.5)
    return len(drawn) == before


def test_streams_are_limited_and_freed(live_engine: Engine, live_template: Template, tmp_path: Path) -> None:
    app = make_app(OneTemplate(live_engine, live_template), streams=1)
    audio = wav(tmp_path, 1500)
    with serving(app) as address, httpx.Client(base_url=f"http://{address}", timeout=60) as http:
        with http.stream("POST", "/v1/videos/stream", files={"audio": audio}) as answer:
            next(answer.iter_raw())
            busy = http.post("/v1/videos/stream", files={"audio": audio})
            assert (busy.status_code, busy.json()["kind"], busy.headers["retry-after"]) == (503, "busy", "5")
        small = wav(tmp_path, 3)
        assert eventually(lambda: http.post("/v1/videos/stream", files={"audio": small}).status_code == 200)


def test_what_cannot_be_used_is_refused_and_the_next_works(
    live_engine: Engine, live_template: Template, tmp_path: Path
) -> None:
    good = wav(tmp_path, 10)
    limits = {"audio_bytes": 100_000, "audio_seconds": 1, "streams": 1}
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"files": {"audio": b""}}, 422, "empty_file"),
        ({"files": {"audio": b"this is text"}}, 422, "not_a_video"),
        ({"files": {"audio": good[:40]}}, 422, "not_a_video"),
        ({"data": {"audio": "text"}}, 422, "no_audio_field"),
        ({"files": {"sound": good}}, 422, "no_audio_field"),
        ({"files": {"audio": good}, "data": {"template": "../head"}}, 422, "unknown_template"),
        ({"files": {"audio": good, "more": good}}, 400, "malformed_form"),
        ({"files": {"audio": wav(tmp_path, 40)}}, 413, "audio_too_long"),
        ({"files": {"audio": bytes(200_000)}}, 413, "too_large"),
        (
            {"content": b"--x\r\n", "headers": {"content-type": "multipart/form-data; boundary=y"}},
            400,
            "malformed_form",
        ),
        ({"content": b"", "headers": {"content-type": "application/json"}}, 422, "no_audio_field"),
        ({"files": {"audio": good}, "headers": {"origin": "https://evil.example"}}, 403, "other_origin"),
    ]
    with TestClient(make_app(OneTemplate(live_engine, live_template), **limits)) as http:
        for request, status, kind in cases:
            answer = http.post("/v1/videos/stream", **request)
            assert (answer.status_code, answer.json().get("kind")) == (status, kind), (request.keys(), answer.text)
            assert answer.headers["content-type"] == "application/problem+json"
            assert str(tmp_path) not in answer.text
            assert "/tmp" not in answer.text
        assert http.post("/v1/videos/stream", files={"audio": good}).status_code == 200


def test_a_key_is_needed_where_there_is_one(live_engine: Engine, live_template: Template, tmp_path: Path) -> None:
    audio = wav(tmp_path, 3)
    with TestClient(make_app(OneTemplate(live_engine, live_template, "secret"))) as http:
        assert http.post("/v1/videos/stream", files={"audio": audio}).status_code == 401
        keyed = http.post("/v1/videos/stream", files={"audio": audio}, headers={"x-api-key": "secret"})
        assert keyed.status_code == 200


def test_an_upload_that_stands_still_is_given_up(live_engine: Engine, live_template: Template) -> None:
    app = make_app(OneTemplate(live_engine, live_template), upload_idle_seconds=0.3, streams=1)
    with serving(app) as address, socket.create_connection(address.split(":"), timeout=20) as line:
        head = "POST /v1/videos/stream HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
        line.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n".encode())
        answer = line.recv(10_000).decode()
        assert answer.startswith("HTTP/1.1 408")
        assert '"kind":"too_slow"' in answer + line.recv(10_000).decode()


def test_a_client_that_reads_nothing_is_given_up(live_engine: Engine, live_template: Template, tmp_path: Path) -> None:
    app = make_app(OneTemplate(live_engine, live_template), streams=1, stalled_seconds=0.5)
    sent: list[Any] = []

    async def run() -> None:
        body = httpx.Request("POST", "http://x/v1/videos/stream", files={"audio": wav(tmp_path, 100)})
        content = body.read()
        asked = False

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if asked:
                await asyncio.sleep(100)
            asked = True
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message["type"])
            if len(sent) > 2:
                await asyncio.sleep(100)

        headers = [(key.lower().encode(), value.encode()) for key, value in body.headers.items()]
        scope = {"type": "http", "method": "POST", "path": "/v1/videos/stream", "headers": headers, "query_string": b""}
        await asyncio.wait_for(
            app(scope | {"asgi": {"version": "3.0"}, "scheme": "http", "root_path": ""}, receive, send), 20
        )

    asyncio.run(run())
    assert sent == ["http.response.start", "http.response.body", "http.response.body"]
    with TestClient(app) as http:
        assert http.post("/v1/videos/stream", files={"audio": wav(tmp_path, 3)}).status_code == 200
