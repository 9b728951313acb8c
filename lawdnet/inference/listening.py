"""The ear of a live session: audio comes in pieces, and leaves as frames of 1/25 s with what the network needs.

Shape letters: N new frames, C feature dimension.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lawdnet.audio.base import AudioExtractor
from lawdnet.audio.streaming import StreamingFeatures, StreamingResampler, StreamingWindows
from lawdnet.types import AUDIO_CONTEXT, FPS, Float32

LOWEST_RATE, HIGHEST_RATE = 8_000, 48_000
"""Hz, of the audio that a session accepts."""
_NOTHING: Float32 = np.zeros(0, np.float32)


@dataclass(frozen=True, kw_only=True)
class Heard:
    """1/25 s of speech."""

    window_C5: Float32
    audio: Float32
    """rate / 25 samples; silent beyond the end of the utterance."""
    position: int
    """Number of the first sample, counted from the first that was ever pushed."""
    heard_at: float
    """When its last sample came, by the listener's clock in seconds."""


class Listener:
    """Turns audio that is pushed into a queue of `Heard`. An utterance ends as a file ends: nothing is waited for.

    Args:
        extractor: of the network.
        rate: of the audio, Hz; a multiple of 25.
        max_seconds: most audio that may wait.
        now: a clock.

    Raises:
        ValueError: a rate that is not supported.
    """

    def __init__(self, extractor: AudioExtractor, *, rate: int, max_seconds: float, now: Callable[[], float]) -> None:
        if not LOWEST_RATE <= rate <= HIGHEST_RATE or rate % FPS:
            limits = f"{LOWEST_RATE} … {HIGHEST_RATE} Hz and a multiple of {FPS}"
            raise ValueError(f"rate: {rate} Hz, expected {limits}, such as 16000, 24000 or 48000")
        self.rate, self.max_seconds, self.now = rate, max_seconds, now
        self._resampler = StreamingResampler(rate)
        self._features = StreamingFeatures(extractor)
        self._windows = StreamingWindows()
        self._input = threading.Lock()
        self._ready: deque[Heard] = deque()
        self._sound = _NOTHING
        self._begin = self._taken = 0  # position at which the utterance begins, and samples of it
        self.last_push = now()
        self._new_utterance()

    @property
    def look_ahead(self) -> float:
        """Seconds of audio, from the beginning of a frame on, that are heard before it is drawn."""
        return self._features.look_ahead + AUDIO_CONTEXT / FPS

    @property
    def queued(self) -> float:
        """Seconds of audio that were pushed and not taken."""
        return self.ready + len(self._sound) / self.rate

    @property
    def ready(self) -> float:
        """Seconds of audio that can be taken."""
        return len(self._ready) / FPS

    @property
    def is_waiting(self) -> bool:
        """Whether an utterance has begun, and its next frame needs audio that has not come."""
        return self._taken > 0 and not self._ready

    def push(self, samples: Float32) -> None:
        """Add mono samples in [-1, 1].

        Raises:
            ValueError: they are not mono or not finite, or more than `max_seconds` would wait.
        """
        if samples.ndim != 1 or not np.isfinite(samples).all():
            raise ValueError(f"audio of shape {samples.shape}, expected finite mono samples")
        if self.queued + len(samples) / self.rate > self.max_seconds:
            raise ValueError(f"more than {self.max_seconds:g} s of audio would wait; send it as it is spoken")
        if not len(samples):
            return
        with self._input:
            self.last_push = self.now()
            self._sound = np.concatenate([self._sound, samples.astype(np.float32)])
            self._taken += len(samples)
            self._arrivals.append((self._taken, self.last_push))
            self._add(self._windows.push(self._features.push(self._resampler.push(samples))))

    def end(self) -> None:
        """End the utterance: its last frames need no look-ahead. The next samples begin another one."""
        with self._input:
            rest = [self._features.push(self._resampler.finish()), self._features.finish()]
            self._add(self._windows.finish(np.concatenate(rest)))
            self._new_utterance()

    def interrupt(self) -> float:
        """Forget everything that was not taken; return how many seconds that were."""
        dropped = self.queued
        self._ready.clear()  # at once, even if another thread is computing features
        with self._input:
            for part in (self._resampler, self._features, self._windows):
                part.reset()
            self._new_utterance()
            self._ready.clear()
        return dropped

    def take(self) -> Heard | None:
        """Return the next 1/25 s, or None if it is not there."""
        try:
            return self._ready.popleft()
        except IndexError:
            return None

    def _new_utterance(self) -> None:
        self._begin += self._taken
        self._sound = _NOTHING
        self._arrivals: deque[tuple[int, float]] = deque()
        self._taken = self._frames = 0

    def _add(self, windows_NC5: Float32) -> None:
        length = self.rate // FPS
        for window_C5 in windows_NC5:
            while len(self._arrivals) > 1 and self._arrivals[0][0] < (self._frames + 1) * length:
                self._arrivals.popleft()
            audio = np.pad(self._sound[:length], (0, max(0, length - len(self._sound))))
            heard = Heard(
                window_C5=window_C5,
                audio=audio,
                position=self._begin + self._frames * length,
                heard_at=self._arrivals[0][1],
            )
            self._frames += 1
            self._sound = self._sound[length:]
            self._ready.append(heard)
