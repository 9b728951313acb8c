"""Audio features of audio that is still arriving: rows as soon as they are final, windows, another sample rate.

Shape letters: N new frames, C feature dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np

from lawdnet.audio.base import AudioExtractor, frame_features
from lawdnet.types import AUDIO_CONTEXT, AUDIO_WINDOW, FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, Float32


@dataclass(frozen=True, kw_only=True)
class Reach:
    """How much audio around a frame a feature row is computed from, in frames of 40 ms."""

    before: int
    """Frames of audio before the frame."""
    after: int
    """Frames of audio from the beginning of the frame on; at least 1."""
    block: int = 1
    """Rows computed at once: more are cheaper, and come later."""

    def __post_init__(self) -> None:
        if min(self.before, self.after - 1, self.block - 1) < 0:
            raise ValueError(f"{self}: before is at least 0, after and block at least 1")


REACHES = {"mel": Reach(before=1, after=1)}
"""Extractors whose rows are exactly those of the whole file."""
WINDOWED = Reach(before=100, after=13, block=5)
"""For extractors that look at the whole file (attention, recurrence in both directions, statistics of the file): each
row is that of a file of 4 s before the frame and 0.52 s after it began."""


class StreamingFeatures:
    """Computes feature rows of a waveform that comes in pieces, each row once and as soon as it is final.

    With `mel` the rows equal those of the whole waveform. The other extractors get a window that moves along, and
    normalise by its statistics: near the beginning their rows differ more than later.

    Args:
        extractor: computes the rows of a piece.
        reach: how much audio a row needs; None takes that of the extractor.
    """

    def __init__(self, extractor: AudioExtractor, reach: Reach | None = None) -> None:
        self.extractor = extractor
        self.reach = reach or REACHES.get(extractor.name, WINDOWED)
        self.reset()

    @property
    def look_ahead(self) -> float:
        """Seconds of audio, from the beginning of a frame on, after which its row is known at the latest."""
        return (self.reach.after + self.reach.block - 1) / FPS

    def reset(self) -> None:
        """Forget the waveform; the next piece begins another."""
        self._held = np.zeros(0, np.float32)
        self._first = 0  # frame at which the held samples begin
        self._done = 0

    def push(self, samples: Float32) -> Float32:
        """Add 16 kHz mono samples in [-1, 1]; return the N×C rows that became final, often none."""
        self._held = np.concatenate([self._held, samples])
        heard = self._first + len(self._held) // SAMPLES_PER_FRAME
        final = max(self._done, heard - self.reach.after + 1)
        final -= (final - self._done) % self.reach.block
        return self._rows(final, (final - 1 + self.reach.after - self._first) * SAMPLES_PER_FRAME)

    def finish(self) -> Float32:
        """Return the remaining rows, up to ceil(samples / 640) in all; the next piece begins another waveform."""
        stop = self._first - (-len(self._held) // SAMPLES_PER_FRAME)
        rows_NC = self._rows(stop, len(self._held))
        self.reset()
        return rows_NC

    def _rows(self, stop: int, length: int) -> Float32:
        """Compute rows up to `stop` from the first `length` held samples, and forget what no later row needs."""
        if stop <= self._done:
            return np.zeros((0, self.extractor.feature_dim), np.float32)
        samples = self._held[:length]
        values = frame_features(self.extractor, samples, -(-len(samples) // SAMPLES_PER_FRAME))
        rows_NC = values[self._done - self._first : stop - self._first]
        self._done = stop
        keep = max(self._first, stop - self.reach.before)
        self._held = self._held[(keep - self._first) * SAMPLES_PER_FRAME :]
        self._first = keep
        return rows_NC


class StreamingWindows:
    """Makes the windows of `base.windows` from rows that come in pieces: the window of a frame needs two rows more."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all rows; the next one begins another sequence."""
        self._held: Float32 | None = None

    def push(self, rows_NC: Float32) -> Float32:
        """Add N rows; return the windows that are complete, each C×5."""
        if len(rows_NC) == 0:
            return np.zeros((0, rows_NC.shape[1], AUDIO_WINDOW), np.float32)
        held = np.repeat(rows_NC[:1], AUDIO_CONTEXT, axis=0) if self._held is None else self._held
        rows = np.concatenate([held, rows_NC])
        self._held = rows[-(AUDIO_WINDOW - 1) :]
        if len(rows) < AUDIO_WINDOW:
            self._held = rows
            return np.zeros((0, rows_NC.shape[1], AUDIO_WINDOW), np.float32)
        return np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(rows, AUDIO_WINDOW, axis=0))

    def finish(self, rows_NC: Float32) -> Float32:
        """Add the last N rows and return the remaining windows; the last row is repeated beyond the end."""
        last = rows_NC if len(rows_NC) or self._held is None else self._held
        windows = self.push(np.concatenate([rows_NC, np.repeat(last[-1:], AUDIO_CONTEXT, axis=0)]))
        self.reset()
        return windows


class StreamingResampler:
    """Converts mono audio that comes in pieces to another rate, without drift: n samples give ceil(n · to / rate).

    Args:
        rate, to: Hz.

    Raises:
        ValueError: a rate that is not positive.
    """

    def __init__(self, rate: int, to: int = SAMPLE_RATE) -> None:
        if min(rate, to) < 1:
            raise ValueError(f"sample rates {rate} and {to} Hz must be positive")
        self.rate, self.to = rate, to
        self.reset()

    def reset(self) -> None:
        """Forget the waveform; the next piece begins another."""
        self._resampler = av.AudioResampler(format="fltp", layout="mono", rate=self.to)
        self._taken = self._given = 0

    def push(self, samples: Float32) -> Float32:
        """Add samples in [-1, 1]; return those at the other rate that are ready. Equal rates pass unchanged."""
        if self.rate == self.to or not len(samples):
            return samples
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples[None], np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts, frame.time_base = self.rate, self._taken, Fraction(1, self.rate)
        self._taken += len(samples)
        return self._resample(frame)

    def finish(self) -> Float32:
        """Return the remaining samples; the next piece begins another waveform."""
        rest = self._resample(None) if self._taken else np.zeros(0, np.float32)
        missing = -(-self._taken * self.to // self.rate) - (self._given - len(rest))
        self.reset()
        return np.pad(rest[:missing], (0, max(0, missing - len(rest))))

    def _resample(self, frame: av.AudioFrame | None) -> Float32:
        parts = [part.to_ndarray()[0] for part in self._resampler.resample(frame) if part is not None]
        samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        self._given += len(samples)
        return samples
