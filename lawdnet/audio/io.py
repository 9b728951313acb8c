"""Audio from any file as 16 kHz mono, aligned to the frames of its video."""

from __future__ import annotations

import itertools
import logging
import wave
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.container import InputContainer
from av.error import FFmpegError

from lawdnet.types import FPS, SAMPLE_RATE, Float32, Rejected, RejectReason
from lawdnet.video import first_frame_time
from lawdnet.video.container import demux, open_media

AUDIO_TOLERANCE_FRAMES = 5
"""Video frames (0.2 s) that may lack audio at either end and still count as having it; they are silent."""
MAX_JITTER = Fraction(1, FPS)
"""Seconds by which a time stamp may differ from the number of samples so far; beyond it, the stamp is believed."""
MAX_HOLE_SECONDS = 3600
"""Longest total silence between time stamps of a file without video (a muted microphone sends nothing)."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class VideoAudio:
    """The audio of a video, on the clock of its T frames."""

    samples: Float32
    """Exactly T · rate / 25 samples, silent where there is no audio."""
    frames: range
    """The frames that have audio: those whose samples all lie between its first and its last sample. An end that lacks
    at most `AUDIO_TOLERANCE_FRAMES` counts as complete."""
    missing: str
    """What is missing beyond the tolerance, as `begins 1.20 s after the first frame`; empty if nothing is."""


def load_audio(path: Path, *, num_frames: int | None = None, rate: int = SAMPLE_RATE) -> Float32:
    """Read the first audio stream of a file as mono float32 in [-1, 1].

    Gaps between time stamps become silence. Channels are mixed with FFmpeg's weights, scaled so that the mix never
    clips.

    Args:
        path: an audio or video file.
        num_frames: frames of the video on the 25 fps clock. If given, sample 0 is at the file's first frame (or
            the first sample, if there is no video), and the result has exactly num_frames · rate / 25 samples: up to
            `AUDIO_TOLERANCE_FRAMES` missing at either end become silence, a surplus is dropped. `load_video_audio`
            takes a video of which only a part has audio.
        rate: samples per second, a multiple of 25; use 48 000 for audio that people will hear.

    Raises:
        Rejected: EMPTY_FILE, NOT_A_VIDEO, DAMAGED, NO_AUDIO or, with num_frames, AUDIO_TOO_SHORT.
    """
    if num_frames is None:
        chunks = _read(path, None, None, rate)
        return join(chunks, _end(chunks))
    audio = load_video_audio(path, num_frames=num_frames, rate=rate)
    if audio.missing:
        detail = f"the audio {audio.missing} (allowed: {AUDIO_TOLERANCE_FRAMES / FPS:.2f} s)"
        raise Rejected(RejectReason.AUDIO_TOO_SHORT, detail)
    return audio.samples


def load_video_audio(path: Path, *, num_frames: int, rate: int = SAMPLE_RATE) -> VideoAudio:
    """Read a video's audio like `load_audio`, but accept audio that begins late or ends early.

    Raises:
        Rejected: EMPTY_FILE, NOT_A_VIDEO, DAMAGED or NO_AUDIO.
    """
    length = num_frames * rate // FPS
    chunks = _read(path, first_frame_time(path), length, rate)
    begin, end = min(start for start, _ in chunks), _end(chunks)
    frames, missing = cover(begin, end, num_frames, rate // FPS)
    return VideoAudio(samples=join(chunks, length), frames=frames, missing=missing)


def _read(path: Path, origin: Fraction | None, limit: int | None, rate: int) -> list[tuple[int, Float32]]:
    """Return (position, samples) of the audio at `rate`, up to about `limit` samples after the origin (in s)."""
    chunks: list[tuple[int, Float32]] = []
    count = 0
    with open_media(path) as container:
        for start, samples in resampled(runs_of(audio_frames(container)), origin, rate):
            if limit is not None and start >= limit:
                break
            if limit is None and start - count > MAX_HOLE_SECONDS * rate:
                raise _mostly_silent(start, rate)
            count += len(samples)
            if start + len(samples) > 0:
                chunks.append((start, samples))
    if not chunks:
        where = "" if limit is None else " during the video"
        raise Rejected(RejectReason.NO_AUDIO, f"the audio stream has no samples{where}")
    return chunks


def stream_audio(path: Path, *, rate: int = SAMPLE_RATE) -> Iterator[Float32]:
    """Read what `load_audio` reads without num_frames, piece by piece: an hour at 48 kHz would take 690 MB.

    Where time stamps step back and two pieces overlap, the first is heard (`load_audio` keeps the last).

    Args:
        path: an audio or video file.
        rate: samples per second.

    Yields:
        Consecutive samples.

    Raises:
        Rejected: EMPTY_FILE, NOT_A_VIDEO, DAMAGED or NO_AUDIO.
    """
    count = 0
    with open_media(path) as container:
        for start, samples in resampled(runs_of(audio_frames(container)), None, rate):
            if start - count > MAX_HOLE_SECONDS * rate:
                raise _mostly_silent(start, rate)
            for silent in range(count, start, rate):
                yield np.zeros(min(rate, start - silent), np.float32)
            count = max(count, start)
            if len(new := samples[count - start :]):
                yield np.clip(np.nan_to_num(new, nan=0.0), -1, 1)
                count += len(new)
    if not count:
        raise Rejected(RejectReason.NO_AUDIO, "the audio stream has no samples")


def audio_seconds(path: Path, *, limit: float) -> float:
    """Decode the first audio stream of a file and return how long it is, in bounded memory.

    Args:
        path: an audio or video file.
        limit: decoding ends where the audio turns out to be longer than this many seconds.

    Raises:
        Rejected: EMPTY_FILE, NOT_A_VIDEO, DAMAGED or NO_AUDIO.
    """
    end = 0
    with open_media(path) as container:
        for start, samples in resampled(runs_of(audio_frames(container)), None, SAMPLE_RATE):
            end = max(end, start + len(samples))
            if end > limit * SAMPLE_RATE:
                break
    if not end:
        raise Rejected(RejectReason.NO_AUDIO, "the audio stream has no samples")
    return end / SAMPLE_RATE


def write_wav(path: Path, samples: Float32) -> None:
    """Write 16 kHz mono samples in [-1, 1] as a 16-bit WAV file; values outside are clipped."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.round(samples * 32768).clip(-32768, 32767).astype("<i2").tobytes())


def join(chunks: list[tuple[int, Float32]], length: int) -> Float32:
    """Place chunks at their positions (in samples) in silence; samples outside 0 … length are dropped."""
    joined = np.zeros(length, np.float32)
    for start, samples in chunks:
        inside = samples[max(0, -start) : max(0, length - start)]
        at = max(0, start)
        joined[at : at + len(inside)] = inside
    np.nan_to_num(joined, copy=False, nan=0.0)  # in place, because an hour takes 230 MB
    return np.clip(joined, -1, 1, out=joined)


def _mostly_silent(start: int, rate: int) -> Rejected:
    return Rejected(RejectReason.DAMAGED, f"hardly any audio before {start / rate:.0f} s")


def _end(chunks: list[tuple[int, Float32]]) -> int:
    return max(start + len(samples) for start, samples in chunks)


def cover(begin: int, end: int, num_frames: int, samples_per_frame: int) -> tuple[range, str]:
    """Return the frames that have audio, and what is missing, for audio from sample `begin` to sample `end`."""
    allowed = AUDIO_TOLERANCE_FRAMES * samples_per_frame
    first, stop = 0, num_frames
    missing: list[str] = []
    if begin > allowed:
        first = -(-begin // samples_per_frame)
        missing.append(f"begins {begin / samples_per_frame / FPS:.2f} s after the first frame")
    if (early := num_frames * samples_per_frame - end) > allowed:
        stop = end // samples_per_frame
        missing.append(f"ends {early / samples_per_frame / FPS:.2f} s early")
    return range(first, stop), " and ".join(missing)


def resampled(runs: Iterable[RunFrame], origin: Fraction | None, rate: int) -> Iterator[tuple[int, Float32]]:
    """Yield (position, samples) at `rate`, counted from origin (s), or from the first sample if origin is None."""
    for _, run in itertools.groupby(runs, key=lambda item: item[0]):
        _, start, first = next(run)
        origin = start if origin is None else origin
        position = round((start - origin) * rate)
        # Without rematrix_maxval a float mix of two equal channels would be √2 too loud.
        options = {"rematrix_maxval": "1.0"}
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate, options=options)
        for frame in itertools.chain([first], (item[2] for item in run), [None]):
            for output in resampler.resample(frame):
                if output is not None:  # a resampler with nothing to do answers a flush with None
                    samples = output.to_ndarray()[0]
                    yield position, samples
                    position += len(samples)


RunFrame = tuple[int, Fraction, AudioFrame]
"""(number of the run, time in s, frame); a run has one format and no gaps."""


def runs_of(frames: Iterable[AudioFrame], begin: Fraction | None = None) -> Iterator[RunFrame]:
    """Put frames into runs, whose time is that of their first frame and the number of samples since.

    Args:
        begin: the time of the first frame in s; None takes its time stamp.
    """
    run = -1
    expected = Fraction(0)
    layout: tuple[str, str, int] | None = None
    for frame in frames:
        time = expected if frame.pts is None else frame.pts * (frame.time_base or Fraction(1))
        time = begin if begin is not None and run < 0 else time
        this = frame.format.name, frame.layout.name, frame.sample_rate
        if this != layout or abs(time - expected) > MAX_JITTER:
            run, expected, layout = run + 1, time, this
        yield run, expected, frame
        expected += Fraction(frame.samples, frame.sample_rate)


def audio_frames(container: InputContainer) -> Iterator[AudioFrame]:
    """Yield the frames of the first audio stream that decode; time stamps show the gap that a broken packet leaves."""
    stream = next(iter(container.streams.audio), None)
    if stream is None or stream.codec_context is None:
        raise Rejected(RejectReason.NO_AUDIO, "there is no audio stream" if stream is None else "unknown audio codec")
    broken = 0
    for packet in demux(container, stream):
        try:
            yield from packet.decode()
        except FFmpegError:
            broken += 1
    if broken:
        logger.warning("%d broken audio packets were skipped", broken)
