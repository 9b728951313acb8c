"""Live speech: frames on a 25 fps clock while the audio is still being spoken, and an idle template in between.

Shape letters: H W frame, C feature dimension.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import Literal, Protocol

import numpy as np

from lawdnet.inference.engine import Engine
from lawdnet.inference.listening import Heard, Listener
from lawdnet.inference.resting import Resting
from lawdnet.inference.stream import back_and_forth
from lawdnet.inference.template import Template
from lawdnet.tasks.background import ahead
from lawdnet.types import AUDIO_WINDOW, FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, Float32, UInt8

MAX_SECONDS = 120.0
PAUSE_SECONDS = 0.3
"""Silence of the sender after which an utterance ends by itself."""
LATE_SECONDS = 2 / FPS
"""A frame that is later than this is not drawn: its audio leaves without an image."""
STALL_SECONDS = 1.0
"""If frames are later than this, because nobody took them, the clock is set back and nothing is rushed."""
AHEAD = 8
"""Frames of the template that are decoded ahead: backwards it is decoded in blocks, which takes a moment."""
MEASURED = 10_000
"""Latest frames whose latency counts."""


class Clock(Protocol):
    """Tells the time, and waits."""

    def now(self) -> float:
        """Return seconds; only differences count."""
        ...

    def wait(self, until: float, stop: threading.Event) -> None:
        """Return at a time, or as soon as `stop` is set."""
        ...


class WallClock:
    """Real time."""

    def now(self) -> float:
        """Return seconds."""
        return time.perf_counter()

    def wait(self, until: float, stop: threading.Event) -> None:
        """Sleep."""
        stop.wait(max(0.0, until - self.now()))


@dataclass(frozen=True, kw_only=True)
class LiveFrame:
    """What is shown and heard for 1/25 s."""

    number: int
    """Counts the frames of the session."""
    image_HW3: UInt8 | None
    """uint8 RGB; None means: show the last one again, this one would have come too late."""
    audio: Float32
    """rate / 25 samples; silence while nobody speaks."""
    position: int | None
    """Number of the first sample of this audio among all that were pushed; None while nobody speaks."""
    latency: float | None
    """Seconds since the last sample of this audio was pushed; None while nobody speaks."""


@dataclass(frozen=True, kw_only=True)
class LiveSummary:
    """Figures of a session; percentiles are those of its latest 10,000 frames, NaN if there are none."""

    frames: int
    spoken: int
    """Frames with speech."""
    skipped_images: int
    """Frames with speech whose image was not drawn, because the network or the receiver was late."""
    dropped_idle: int
    """Idle frames that were left out, because the receiver was late."""
    dropped_seconds: float
    """Speech that was left out: because the lag reached `max_lag`, or by `interrupt`."""
    stalls: int
    """Times that the receiver took nothing for more than a second while there was speech."""
    latency_p50: float
    latency_p95: float
    """Seconds from the last sample of a frame to the frame."""
    draw_p50: float
    draw_p95: float
    """Seconds to draw one frame."""


class LiveSession:
    """A template that speaks what is pushed, and rests in between. `push` and `frames` run in different threads.

    Whoever takes frames slower than 25 a second gets fewer, in this order: idle frames are left out, then frames with
    speech have no image (`image_HW3` is None), while the audio stays on the clock. Nothing is ever queued behind
    the clock but the audio itself, of which at most `max_seconds` wait.

    Args:
        engine: its network draws.
        template: prepared by the engine.
        rate: of the audio, Hz; a multiple of 25 from 8000 to 48000.
        idle: what is shown while nobody speaks: `rest` draws the mouth for silence, so that a template that talks is
            quiet, and nothing jumps when speech begins; `template` shows the template as it is.
        max_seconds: most audio that may wait.
        max_lag: for a microphone: if more seconds than this wait although they could be spoken, the oldest are dropped;
            None speaks everything, as for a speech synthesiser, which is faster than real time.
        pause: seconds without audio after which an utterance ends by itself.
        clock: real time.

    Raises:
        ValueError: a rate that is not supported.
    """

    def __init__(
        self,
        engine: Engine,
        template: Template,
        *,
        rate: int = SAMPLE_RATE,
        idle: Literal["rest", "template"] = "rest",
        max_seconds: float = MAX_SECONDS,
        max_lag: float | None = None,
        pause: float = PAUSE_SECONDS,
        clock: Clock | None = None,
    ) -> None:
        self.engine, self.template, self.rate, self.idle = engine, template, rate, idle
        self.max_lag, self.pause = max_lag, pause
        self.clock: Clock = clock or WallClock()
        self._listener = Listener(engine.extractor, rate=rate, max_seconds=max_seconds, now=self.clock.now)
        silent_TC5 = engine.audio_windows(np.zeros(AUDIO_WINDOW * SAMPLES_PER_FRAME, np.float32))
        self._silent_C5 = self._window_C5 = silent_TC5[AUDIO_WINDOW // 2]
        self._since_speech = AUDIO_WINDOW
        self._resting = Resting()
        self._closed = threading.Event()
        self._frames = self._spoken = self._skipped = self._dropped_idle = self._stalls = 0
        self._dropped_seconds = 0.0
        self._latencies: deque[float] = deque(maxlen=MEASURED)
        self._draws: deque[float] = deque(maxlen=MEASURED)

    @property
    def look_ahead(self) -> float:
        """Seconds of audio, from the beginning of a frame on, that are heard before it is drawn."""
        return self._listener.look_ahead

    @property
    def queued(self) -> float:
        """Seconds of audio that wait."""
        return self._listener.queued

    def push(self, samples: Float32) -> None:
        """Add mono samples in [-1, 1] at the session's rate, as they are spoken or faster.

        Raises:
            ValueError: they are not mono or not finite, or more than `max_seconds` would wait.
        """
        self._listener.push(samples)

    def end(self) -> None:
        """End the utterance, so that its last frames wait for nothing; without it, a pause does."""
        self._listener.end()

    def interrupt(self) -> float:
        """Stop speaking from the next frame on; return the seconds of audio that are not spoken."""
        dropped = self._listener.interrupt()
        self._dropped_seconds += dropped
        return dropped

    def close(self) -> None:
        """End `frames`, from any thread."""
        self._closed.set()

    def frames(self) -> Iterator[LiveFrame]:
        """Yield a frame every 1/25 s until the session is closed."""
        with closing(ahead(back_and_forth(self.template.path, len(self.template.usable_T)), AHEAD)) as decoded:
            first = next(decoded)
            self._draw(*first, self._silent_C5)  # the first image takes longer: before the clock runs
            shown = chain([first], decoded)
            due = self.clock.now()
            while not self._closed.is_set():
                self.clock.wait(due, self._closed)
                late = self.clock.now() - due
                heard = self._take()
                if heard is None and late > LATE_SECONDS:
                    missed = int(late * FPS)
                    self._dropped_idle += missed
                    due += missed / FPS
                elif heard and late > STALL_SECONDS:
                    self._stalls += 1
                    due += late
                    late = 0.0
                if self._closed.is_set():
                    return
                yield self._speak(heard, shown, late) if heard else self._idle(shown)
                due += 1 / FPS

    def _take(self) -> Heard | None:
        """Return the next speech; drop what lags too much, and end an utterance that has paused."""
        listener = self._listener
        while self.max_lag is not None and listener.ready > self.max_lag and listener.take():
            self._dropped_seconds += 1 / FPS
        if listener.is_waiting and self.clock.now() - listener.last_push >= self.pause:
            listener.end()
        return listener.take()

    def _speak(self, heard: Heard, shown: Iterator[tuple[int, UInt8]], late: float) -> LiveFrame:
        self._spoken += 1
        self._window_C5, self._since_speech = heard.window_C5, 0
        image_HW3 = None
        if late <= LATE_SECONDS:
            image_HW3 = self._draw(*next(shown), heard.window_C5)
        else:
            self._skipped += 1
        latency = self.clock.now() - heard.heard_at
        self._latencies.append(latency)
        return self._frame(image_HW3, heard.audio, heard.position, latency)

    def _idle(self, shown: Iterator[tuple[int, UInt8]]) -> LiveFrame:
        tick, frame_HW3 = next(shown)
        if self.idle == "template":
            image_HW3 = frame_HW3
        elif self._since_speech < AUDIO_WINDOW:
            # silence moves into the window row by row: the mouth closes within five frames, also after an interrupt
            self._window_C5 = np.concatenate([self._window_C5[:, 1:], self._silent_C5[:, -1:]], axis=1)
            image_HW3 = self._draw(tick, frame_HW3, self._window_C5)
        else:
            image_HW3 = self._rest(tick, frame_HW3)
        self._since_speech += 1
        return self._frame(image_HW3, np.zeros(self.rate // FPS, np.float32), None, None)

    def _rest(self, tick: int, frame_HW3: UInt8) -> UInt8:
        kept_HW3 = self._resting.recall(tick, frame_HW3)
        if kept_HW3 is not None:
            return kept_HW3
        image_HW3 = self._draw(tick, frame_HW3, self._silent_C5)
        self._resting.keep(tick, frame_HW3, image_HW3)
        return image_HW3

    def _draw(self, tick: int, frame_HW3: UInt8, window_C5: Float32) -> UInt8:
        began = self.clock.now()
        (image_HW3,) = self.engine.draw(self.template, [(tick, frame_HW3.copy())], window_C5[None])
        self._draws.append(self.clock.now() - began)
        return image_HW3

    def _frame(self, image_HW3: UInt8 | None, audio: Float32, position: int | None, latency: float | None) -> LiveFrame:
        number = self._frames
        self._frames += 1
        return LiveFrame(number=number, image_HW3=image_HW3, audio=audio, position=position, latency=latency)

    def summary(self) -> LiveSummary:
        """Return the figures so far."""
        latency_p50, latency_p95 = _percentiles(self._latencies)
        draw_p50, draw_p95 = _percentiles(self._draws)
        return LiveSummary(
            frames=self._frames,
            spoken=self._spoken,
            skipped_images=self._skipped,
            dropped_idle=self._dropped_idle,
            dropped_seconds=self._dropped_seconds,
            stalls=self._stalls,
            latency_p50=latency_p50,
            latency_p95=latency_p95,
            draw_p50=draw_p50,
            draw_p95=draw_p95,
        )


def _percentiles(seconds: deque[float]) -> tuple[float, float]:
    """Return median and 95 % quantile; NaN if there is nothing."""
    if not seconds:
        return float("nan"), float("nan")
    p50, p95 = np.percentile(list(seconds), [50, 95])
    return float(p50), float(p95)
