"""POST /v1/live/offer: two peers in this process, on loopback, without any server of the outside."""

from __future__ import annotations

import asyncio
import json
from fractions import Fraction
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("aiortc", reason="needs aiortc: pip install -e '.[live]'")

from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from av import AudioFrame, VideoFrame
from fastapi import FastAPI

from lawdnet.inference.engine import Engine
from lawdnet.inference.template import Template
from tests.support.live_heads import noise
from tests.support.live_host import OneTemplate, make_app

pytestmark = pytest.mark.usefixtures("frees_everything")


class Microphone(MediaStreamTrack):
    """Is silent, then speaks noise of 20 ms packets in real time, then is silent."""

    kind = "audio"

    def __init__(self, begin: int, stop: int) -> None:
        super().__init__()
        self.begin, self.stop_at, self.sent = begin, stop, 0
        self._noise = np.round(noise(stop, rate=48_000) * 20_000).astype(np.int16)

    async def recv(self) -> AudioFrame:
        await asyncio.sleep(0.02)
        spoken = self._noise[self.sent * 960 : (self.sent + 1) * 960]
        samples = spoken if self.begin <= self.sent < self.stop_at else np.zeros(960, np.int16)
        frame = AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, self.sent * 960, Fraction(1, 48_000)
        self.sent += 1
        return frame


async def post(app: FastAPI, offer: dict[str, Any], **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        return await http.post("/v1/live/offer", json=offer, headers=headers)


async def used(app: FastAPI) -> int:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        return int((await http.get("/v1/live/info")).json()["sessions"]["used"])


class Browser:
    """A peer that keeps what it gets."""

    def __init__(self, microphone: Microphone) -> None:
        self.peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.images: list[tuple[float, np.ndarray]] = []
        self.sound: list[np.ndarray] = []
        self.said: list[dict[str, Any]] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.peer.addTransceiver("video", direction="recvonly")
        self.peer.addTrack(microphone)
        self.channel = self.peer.createDataChannel("control")
        self.channel.on("message", lambda message: self.said.append(json.loads(message)))
        self.peer.on("track", lambda track: self.tasks.append(asyncio.ensure_future(self.take(track))))

    async def take(self, track: Any) -> None:
        while True:
            frame = await track.recv()
            if isinstance(frame, VideoFrame):
                self.images.append((float(frame.time), frame.to_ndarray(format="rgb24")))
            else:
                self.sound.append(frame.to_ndarray()[0])

    async def connect(self, app: FastAPI) -> None:
        await self.peer.setLocalDescription(await self.peer.createOffer())
        described = self.peer.localDescription
        answer = await post(app, {"type": described.type, "sdp": described.sdp, "template": "head"})
        assert answer.status_code == 200, answer.text
        assert "candidate" in answer.json()["sdp"]
        await self.peer.setRemoteDescription(RTCSessionDescription(**answer.json()))

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await self.peer.close()


async def eventually(condition: Any, seconds: float = 10) -> bool:
    for _ in range(round(seconds / 0.05)):
        if await condition() if asyncio.iscoroutinefunction(condition) else condition():
            return True
        await asyncio.sleep(0.05)
    return False


def test_a_browser_hears_and_sees_itself_spoken(live_engine: Engine, live_template: Template) -> None:
    async def run() -> None:
        app = make_app(OneTemplate(live_engine, live_template), sessions=1)
        browser = Browser(Microphone(75, 200))
        await browser.connect(app)
        assert await used(app) == 1
        assert (await post(app, {"type": "offer", "sdp": "v=0"})).json()["kind"] == "busy"
        assert await eventually(lambda: len(browser.images) >= 80)
        assert browser.images[0][1].shape == (160, 128, 3)
        assert np.std(browser.images[-1][1]) > 10
        steps = np.diff([at for at, _ in browser.images]) * 25  # dropped ones leave whole steps out
        np.testing.assert_allclose(steps, np.round(steps), atol=0.01)
        assert min(steps) > 0.99
        loud = [np.abs(samples).mean() > 300 for samples in browser.sound]
        assert not any(loud[:20])
        assert any(loud)
        browser.channel.send('{"type": "interrupt"}')
        browser.channel.send("nonsense")
        assert await eventually(lambda: browser.said)
        assert browser.said[0]["type"] == "interrupted"
        await browser.close()

        async def free() -> bool:
            return await used(app) == 0

        assert await eventually(free, 20)

    asyncio.run(run())


def test_who_never_connects_is_forgotten(live_engine: Engine, live_template: Template) -> None:
    async def run() -> None:
        app = make_app(OneTemplate(live_engine, live_template), start_seconds=0.3)
        browser = Browser(Microphone(0, 1))
        await browser.peer.setLocalDescription(await browser.peer.createOffer())
        sdp = "\r\n".join(line for line in browser.peer.localDescription.sdp.splitlines() if "candidate" not in line)
        assert (await post(app, {"type": "offer", "sdp": sdp + "\r\n"})).status_code == 200
        assert await used(app) == 1

        async def free() -> bool:
            return await used(app) == 0

        assert await eventually(free)
        await browser.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("offer", "status", "kind"),
    [
        ({"type": "offer", "sdp": "nonsense"}, 422, "bad_offer"),
        ({"type": "offer", "sdp": ""}, 422, "bad_offer"),
        ({"type": "offer", "sdp": "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n"}, 422, "bad_offer"),
        ({"type": "answer", "sdp": "v=0"}, 422, "bad_offer"),
        ({"type": "offer"}, 422, "bad_offer"),
        ({"type": "offer", "sdp": "v=0", "path": "x"}, 422, "bad_offer"),
        ({"type": "offer", "sdp": "x" * 70_000}, 422, "bad_offer"),
        ({"type": "offer", "sdp": "x" * 2_000_000}, 413, "too_large"),
        ([1], 422, "bad_offer"),
        ({"type": "offer", "sdp": "v=0", "template": "other"}, 422, "unknown_template"),
    ],
)
def test_offers_that_cannot_be_used_are_refused(
    live_engine: Engine, live_template: Template, offer: dict[str, Any], status: int, kind: str
) -> None:
    async def run() -> None:
        app = make_app(OneTemplate(live_engine, live_template))
        answer = await post(app, offer)
        assert (answer.status_code, answer.json()["kind"]) == (status, kind)
        assert await used(app) == 0

    asyncio.run(run())


def test_the_key_is_needed_and_other_sites_are_refused(live_engine: Engine, live_template: Template) -> None:
    async def run() -> None:
        app = make_app(OneTemplate(live_engine, live_template, "secret"))
        offer = {"type": "offer", "sdp": "v=0"}
        assert (await post(app, offer)).status_code == 401
        assert (await post(app, offer, **{"x-api-key": "secret", "origin": "https://evil.example"})).status_code == 403
        assert (await post(app, offer, **{"x-api-key": "secret"})).status_code == 422

    asyncio.run(run())


def test_without_aiortc_the_answer_names_the_extra(
    live_engine: Engine, live_template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.serve.live.has_webrtc", lambda: False)

    async def run() -> None:
        answer = await post(make_app(OneTemplate(live_engine, live_template)), {"type": "offer", "sdp": "v=0"})
        assert (answer.status_code, answer.json()["kind"]) == (501, "no_webrtc")
        assert "'.[live]'" in answer.json()["detail"]

    asyncio.run(run())
