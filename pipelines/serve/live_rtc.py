"""Live speech over WebRTC: a browser's microphone in, video and audio out. Needs aiortc (extra `live`).

The first offer imports this module, so that a server without aiortc has the other routes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from typing import Any

import numpy as np
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame, VideoFrame

from lawdnet.inference.live import LiveFrame, LiveSession
from lawdnet.serving.problems import Problem
from lawdnet.types import FPS, Float32
from lawdnet.video.writing import ToYuv
from pipelines.serve.live_limits import LiveHost, LiveLimits, Slots
from pipelines.serve.live_schemas import Offer
from pipelines.serve.live_session import AsyncSession

RATE = 48_000
"""Hz; Opus has no other."""
PACKET = 960
"""Samples in 20 ms, an Opus packet: aiortc gives several packets of one frame the same time stamp."""
VIDEO_CLOCK = 90_000

logger = logging.getLogger(__name__)

Made = tuple[VideoFrame | None, list[AudioFrame]]
_clients: set[_Client] = set()
"""Whoever is connected: nothing else holds them."""


async def answer(offer: Offer, host: LiveHost, limits: LiveLimits, slots: Slots) -> dict[str, str]:
    """Open a session for a client; it ends when the client goes away, or at a limit.

    Raises:
        Problem: 422 the offer cannot be used, 503 all sessions are in use.
    """
    slots.take()
    try:
        engine, template = await asyncio.to_thread(host.open, offer.template)
        session = await asyncio.to_thread(
            LiveSession,
            engine,
            template,
            rate=RATE,
            idle=offer.idle,
            max_seconds=limits.waiting_seconds,
            max_lag=limits.microphone_lag,
        )
    except BaseException:
        slots.give_back()
        raise
    client = _Client(session, limits, slots.give_back)
    try:
        return await client.answer(offer)
    except BaseException as error:
        await client.close()
        if isinstance(error, Exception):  # aiortc raises many kinds on descriptions that make no sense
            logger.debug("offer refused", exc_info=error)
            raise Problem(422, "bad_offer", "sdp: not an offer that this server can answer") from error
        raise


class _Client:
    """One peer: its connection, its session, and the tasks between them."""

    def __init__(self, session: LiveSession, limits: LiveLimits, on_close: Callable[[], None]) -> None:
        self._running: AsyncSession[Made] = AsyncSession(session, _Maker())
        self._limits, self._on_close = limits, on_close
        # without servers of its own, aiortc would ask a public STUN server for the address of this machine
        self._peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._video, self._audio = _Track("video", 2), _Track("audio", 10)
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._last_heard = time.monotonic()
        _clients.add(self)

    async def answer(self, offer: Offer) -> dict[str, str]:
        """Return the description that answers an offer."""
        self._peer.on("track", self._on_track)
        self._peer.on("datachannel", self._on_channel)
        self._peer.on("connectionstatechange", self._on_state)
        await self._peer.setRemoteDescription(RTCSessionDescription(sdp=offer.sdp, type=offer.type))
        kinds = {transceiver.kind for transceiver in self._peer.getTransceivers()}
        if "video" not in kinds:
            raise ValueError("no video is asked for")
        self._peer.addTrack(self._video)
        if "audio" in kinds:
            self._peer.addTrack(self._audio)
        await self._peer.setLocalDescription(await self._peer.createAnswer())
        self._start(self._watch())
        described = self._peer.localDescription
        return {"type": described.type, "sdp": described.sdp}

    async def close(self) -> None:
        """Free everything."""
        if self._is_closed:
            return
        self._is_closed = True
        _clients.discard(self)
        self._on_close()
        self._running.close()
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()
        self._video.stop()
        self._audio.stop()
        await self._peer.close()

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _on_state(self) -> None:
        state = self._peer.connectionState
        if state == "connected":
            self._start(self._show())
        elif state in ("failed", "closed", "disconnected"):
            await self.close()

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio":
            self._start(self._hear(track))

    def _on_channel(self, channel: Any) -> None:
        channel.on("message", lambda message: self._start(self._control(channel, message)))

    async def _watch(self) -> None:
        """Close what never connects, what is silent for too long, and what lasts too long."""
        began = time.monotonic()
        while not self._is_closed:
            await asyncio.sleep(0.5)
            now = time.monotonic()
            waiting = self._peer.connectionState in ("new", "connecting")
            if (
                (waiting and now - began > self._limits.start_seconds)
                or now - self._last_heard > self._limits.idle_seconds
                or now - began > self._limits.session_seconds
            ):
                await self.close()

    async def _hear(self, track: MediaStreamTrack) -> None:
        with suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                assert isinstance(frame, AudioFrame)
                self._last_heard = time.monotonic()
                with suppress(ValueError):  # more waits than may: this packet is lost
                    await self._running.push(_mono(frame))

    async def _control(self, channel: Any, message: str | bytes) -> None:
        self._last_heard = time.monotonic()
        try:
            kind = json.loads(message)["type"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return
        if kind == "interrupt":
            channel.send(json.dumps({"type": "interrupted", "dropped": await self._running.interrupt()}))
        elif kind == "end":
            await self._running.end()
        elif kind == "close":
            await self.close()

    async def _show(self) -> None:
        async for video, packets in self._running.made():
            if video is not None:
                self._video.put(video)
            for packet in packets:
                self._audio.put(packet)
        await self.close()


class _Track(MediaStreamTrack):
    """What is put in comes out; what nobody takes in time is dropped, the oldest first."""

    def __init__(self, kind: str, depth: int) -> None:
        super().__init__()
        self.kind = kind
        self._queue: asyncio.Queue[VideoFrame | AudioFrame | None] = asyncio.Queue(depth)

    def put(self, frame: VideoFrame | AudioFrame | None) -> None:
        """Add a frame."""
        if self._queue.full():
            self._queue.get_nowait()
        self._queue.put_nowait(frame)

    async def recv(self) -> VideoFrame | AudioFrame:
        """Return the next frame."""
        frame = await self._queue.get()
        if frame is None:
            raise MediaStreamError
        return frame

    def stop(self) -> None:
        """End the track."""
        super().stop()
        self.put(None)


class _Maker:
    """Makes WebRTC's frames, in the thread that draws."""

    def __init__(self) -> None:
        self._to_yuv = ToYuv()

    def __call__(self, frame: LiveFrame) -> Made:
        video = None
        if frame.image_HW3 is not None:
            video = self._to_yuv(frame.image_HW3)
            video.pts, video.time_base = frame.number * VIDEO_CLOCK // FPS, Fraction(1, VIDEO_CLOCK)
        samples = np.round(frame.audio * 32767).clip(-32768, 32767).astype(np.int16)
        packets = []
        for start in range(0, len(samples), PACKET):
            packet = AudioFrame.from_ndarray(samples[None, start : start + PACKET], format="s16", layout="mono")
            packet.sample_rate, packet.time_base = RATE, Fraction(1, RATE)
            packet.pts = frame.number * (RATE // FPS) + start
            packets.append(packet)
        return video, packets


def _mono(frame: AudioFrame) -> Float32:
    """Mean of the channels of packed 16-bit audio at 48 kHz."""
    samples = frame.to_ndarray().reshape(-1, len(frame.layout.channels))
    return (samples.mean(1) / 32768).astype(np.float32)
