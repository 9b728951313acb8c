"""WS /v1/live: frames come on the clock with their audio, and no client can hold or break the server."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import av
import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketTestSession
from starlette.websockets import WebSocketDisconnect

from lawdnet.evaluation.image import psnr
from lawdnet.inference.engine import Engine
from lawdnet.inference.template import Template
from lawdnet.types import Float32
from tests.support.live_heads import noise
from tests.support.live_host import OneTemplate, eventually, make_app

pytestmark = pytest.mark.usefixtures("frees_everything")


def client(engine: Engine, template: Template, key: str = "", **limits: Any) -> TestClient:
    return TestClient(make_app(OneTemplate(engine, template, key), **limits))


def pcm(audio: Float32) -> bytes:
    data: bytes = np.round(audio * 32768).clip(-32768, 32767).astype("<i2").tobytes()
    return data


def start(socket: WebSocketTestSession, **options: Any) -> dict[str, Any]:
    socket.send_text(json.dumps({"type": "start", **options}))
    ready: dict[str, Any] = socket.receive_json()
    return ready


def frame(socket: WebSocketTestSession) -> tuple[dict[str, Any], bytes, bytes]:
    """The next message, the image and the audio."""
    text = socket.receive_json()
    data = socket.receive_bytes() if text.get("image", 0) + text.get("audio", 0) + text.get("bytes", 0) else b""
    image = text.get("image", text.get("bytes", 0))
    return text, data[:image], data[image:]


def until(socket: WebSocketTestSession, kind: str) -> dict[str, Any]:
    while (text := frame(socket)[0])["type"] != kind:
        pass
    return text


def test_speech_comes_back_with_its_frames(live_engine: Engine, live_template: Template) -> None:
    audio = noise(12)
    with client(live_engine, live_template) as http, http.websocket_connect("/v1/live") as socket:
        ready = start(socket, quality=95)
        assert ready == {
            "type": "ready",
            "fps": 25,
            "rate": 16_000,
            "samples_per_frame": 640,
            "mime": "image/jpeg",
            "width": 128,
            "height": 160,
            "look_ahead": pytest.approx(0.12),
        }
        idle, image, sound = frame(socket)
        assert (idle["type"], idle["number"], idle["position"], idle["latency_ms"], sound) == (
            "frame",
            0,
            None,
            None,
            b"",
        )
        assert cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR).shape == (160, 128, 3)
        for piece in np.split(audio, 12):
            socket.send_bytes(pcm(piece))
        socket.send_text('{"type": "end"}')
        spoken = [got for got in (frame(socket) for _ in range(60)) if got[0]["position"] is not None]
        socket.send_text('{"type": "close"}')
        summary = until(socket, "end")["summary"]
    assert [text["position"] for text, _, _ in spoken] == [640 * number for number in range(12)]
    assert b"".join(sound for _, _, sound in spoken) == pcm(audio)
    assert all(text["latency_ms"] > 0 for text, _, _ in spoken)
    assert summary["spoken"] == 12
    assert 0 < summary["draw_p50"] < 1


def test_images_have_the_right_colours(live_engine: Engine, live_template: Template) -> None:
    silent = next(live_engine.frames(live_template, np.zeros(640, np.float32)))
    with client(live_engine, live_template) as http, http.websocket_connect("/v1/live") as socket:
        start(socket, quality=100)
        image = cv2.imdecode(np.frombuffer(frame(socket)[1], np.uint8), cv2.IMREAD_COLOR)
    assert psnr(image[..., ::-1], silent) > 35


def test_an_mp4_of_the_session_plays(live_engine: Engine, live_template: Template) -> None:
    data = b""
    with client(live_engine, live_template) as http, http.websocket_connect("/v1/live") as socket:
        ready = start(socket, format="mp4", rate=24_000)
        assert ready["mime"].startswith('video/mp4; codecs="avc1.')
        socket.send_bytes(pcm(noise(20, rate=24_000)))
        texts = []
        while len(texts) < 40:
            text, piece, _ = frame(socket)
            texts.append(text)
            data += piece
    assert sum(text["position"] is not None for text in texts) >= 18
    with av.open(io.BytesIO(data)) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 30
    with av.open(io.BytesIO(data)) as container:
        sound = np.concatenate([part.to_ndarray()[0] for part in container.decode(audio=0)])
    assert np.abs(sound).max() > 0.1


def test_an_interrupt_stops_speech_at_once(live_engine: Engine, live_template: Template) -> None:
    with client(live_engine, live_template) as http, http.websocket_connect("/v1/live") as socket:
        start(socket)
        socket.send_bytes(pcm(noise(250)))
        while frame(socket)[0]["position"] is None:
            pass
        socket.send_text('{"type": "interrupt"}')
        dropped = until(socket, "interrupted")["dropped"]
        assert 7 < dropped < 10
        after = [frame(socket)[0] for _ in range(10)]
        assert sum(text["position"] is not None for text in after) <= 1
        socket.send_text('{"type": "ping"}')
        assert until(socket, "pong")["queued"] == 0


REFUSED = [
    ("hello", 422, "bad_start"),
    ('{"type": "end"}', 422, "bad_start"),
    ('{"type": "start", "rate": 16001}', 422, "bad_start"),
    ('{"type": "start", "rate": "16000"}', 422, "bad_start"),
    ('{"type": "start", "format": "avi"}', 422, "bad_start"),
    ('{"type": "start", "path": "/etc/passwd"}', 422, "bad_start"),
    ('{"type": "start", "template": "../head"}', 422, "unknown_template"),
    (json.dumps({"type": "start", "template": "a" * 65}), 422, "bad_start"),
    ("[" * 100_000, 422, "bad_start"),
    ("x" * 2_000_000, 413, "message_too_large"),
]


@pytest.mark.parametrize(("message", "status", "kind"), REFUSED)
def test_a_bad_start_is_refused_and_the_next_works(
    live_engine: Engine, live_template: Template, message: str, status: int, kind: str
) -> None:
    with client(live_engine, live_template) as http:
        with http.websocket_connect("/v1/live") as socket:
            socket.send_text(message)
            error = socket.receive_json()
            assert (error["type"], error["status"], error["kind"]) == ("error", status, kind)
            with pytest.raises(WebSocketDisconnect) as closed:
                socket.receive_text()
            assert closed.value.code == (1009 if status == 413 else 1008)
        with http.websocket_connect("/v1/live") as socket:
            assert start(socket)["type"] == "ready"


BAD: list[tuple[str | bytes, str]] = [
    ("no json", "bad_message"),
    ("[]", "bad_message"),
    ('{"type": "exec"}', "unknown_message"),
    ('{"type": "seen", "number": "1"}', "unknown_message"),
    (b"odd", "odd_bytes"),
    (bytes(2 * 16_000 * 7), "too_much_audio"),
]


@pytest.mark.parametrize(("message", "kind"), BAD)
def test_a_bad_message_ends_the_session(
    live_engine: Engine, live_template: Template, message: str | bytes, kind: str
) -> None:
    with client(live_engine, live_template, waiting_seconds=5) as http, http.websocket_connect("/v1/live") as socket:
        start(socket)
        socket.send_bytes(message) if isinstance(message, bytes) else socket.send_text(message)
        assert until(socket, "error")["kind"] == kind


def test_two_clients_hear_their_own_speech(live_engine: Engine, live_template: Template) -> None:
    first, second = (pcm(noise(8, seed=seed)) for seed in (1, 2))
    with (
        client(live_engine, live_template) as http,
        http.websocket_connect("/v1/live") as one,
        http.websocket_connect("/v1/live") as other,
    ):
        for socket in (one, other):
            start(socket)
        for socket, speech in ((one, first), (other, second)):
            socket.send_bytes(speech)
            socket.send_text('{"type": "end"}')
        for socket, speech in ((other, second), (one, first)):
            heard = b""
            while len(heard) < len(speech):
                heard += frame(socket)[2]
            assert heard == speech


def test_no_more_frames_are_under_way_than_the_window_allows(live_engine: Engine, live_template: Template) -> None:
    with client(live_engine, live_template) as http, http.websocket_connect("/v1/live") as socket:
        start(socket, window=3)
        assert [frame(socket)[0]["number"] for _ in range(3)] == [0, 1, 2]
        time.sleep(0.6)
        socket.send_text('{"type": "ping"}')
        assert socket.receive_json()["type"] == "pong"  # no frame came before it
        for number in range(3, 9):
            socket.send_text(json.dumps({"type": "seen", "number": number - 1}))
            assert frame(socket)[0]["number"] == number
        socket.send_text('{"type": "close"}')
        assert until(socket, "end")["summary"]["dropped_idle"] >= 10


def test_who_sees_nothing_any_more_is_given_up(live_engine: Engine, live_template: Template) -> None:
    with client(live_engine, live_template, stalled_seconds=0.3) as http, http.websocket_connect("/v1/live") as socket:
        start(socket, window=1)
        assert eventually(lambda: used(http) == 0)


def test_a_flood_of_messages_is_refused(live_engine: Engine, live_template: Template) -> None:
    app = client(live_engine, live_template, messages_per_second=20)
    with app as http, http.websocket_connect("/v1/live") as socket:
        start(socket)
        for _ in range(60):
            socket.send_bytes(b"\0\0")
        assert until(socket, "error")["kind"] == "too_many_messages"


def test_the_key_comes_in_a_header_or_in_the_start(live_engine: Engine, live_template: Template) -> None:
    with client(live_engine, live_template, key="secret") as http:
        for options, headers in (({}, {}), ({"key": "wrong"}, {}), ({"key": "wrong"}, {"x-api-key": "secret"})):
            with http.websocket_connect("/v1/live", headers=headers) as socket:
                assert start(socket, **options)["kind"] == "no_key"
        for options, headers in (({"key": "secret"}, {}), ({}, {"x-api-key": "secret"})):
            with http.websocket_connect("/v1/live", headers=headers) as socket:
                assert start(socket, **options)["type"] == "ready"
        assert http.get("/v1/live/info").status_code == 401


def test_pages_of_other_sites_are_refused(live_engine: Engine, live_template: Template) -> None:
    with client(live_engine, live_template) as http:
        with (
            pytest.raises(WebSocketDisconnect) as closed,
            http.websocket_connect("/v1/live", headers={"origin": "https://evil.example"}),
        ):
            pass
        assert closed.value.code == 1008
        with http.websocket_connect("/v1/live", headers={"origin": "http://testserver"}) as socket:
            assert start(socket)["type"] == "ready"


def used(http: TestClient) -> int:
    return int(http.get("/v1/live/info").json()["sessions"]["used"])


def test_sessions_are_limited_and_a_client_that_goes_away_frees_its_own(
    live_engine: Engine, live_template: Template
) -> None:
    with client(live_engine, live_template, sessions=1) as http:
        with http.websocket_connect("/v1/live") as socket:
            start(socket)
            frame(socket)
            with http.websocket_connect("/v1/live") as second:
                error = start(second)
                assert (error["status"], error["kind"]) == (503, "busy")
            assert used(http) == 1
            socket.send_bytes(pcm(noise(50)))  # and it goes away while it speaks
        assert eventually(lambda: used(http) == 0)
        with http.websocket_connect("/v1/live") as socket:
            assert start(socket)["type"] == "ready"


@pytest.mark.parametrize(("limit", "kind"), [("start_seconds", "no_start"), ("idle_seconds", "idle")])
def test_who_says_nothing_is_shown_out(live_engine: Engine, live_template: Template, limit: str, kind: str) -> None:
    with client(live_engine, live_template, **{limit: 0.3}) as http, http.websocket_connect("/v1/live") as socket:
        if kind == "idle":
            start(socket)
        assert until(socket, "error")["kind"] == kind


def test_a_session_has_an_end(live_engine: Engine, live_template: Template) -> None:
    with client(live_engine, live_template, session_seconds=0.5) as http, http.websocket_connect("/v1/live") as socket:
        began = time.monotonic()
        start(socket)
        assert until(socket, "error")["kind"] == "session_over"
        assert time.monotonic() - began < 5
        assert eventually(lambda: used(http) == 0)


def test_a_failure_says_nothing_of_the_inside(
    live_engine: Engine, live_template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret path")

    with client(live_engine, live_template) as http, http.websocket_connect("/v1/live") as socket:
        start(socket)
        monkeypatch.setattr(live_engine, "draw", fail)
        socket.send_bytes(pcm(noise(10)))
        error = until(socket, "error")
        assert (error["status"], error["kind"]) == (500, "internal_error")
        assert "secret" not in json.dumps(error)
