"""Sound from any file as 16 kHz mono, on the clock of the pictures it belongs to."""

from __future__ import annotations

import itertools
import logging
import wave as wave_format
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.container import InputContainer
from av.error import FFmpegError

from lawdnet.types import FPS, SAMPLE_RATE, Float32, Rejected, RejectReason
from lawdnet.video import picture_start
from lawdnet.video.container import demux, open_media

AUDIO_TOLERANCE_FRAMES = 5
"""Video frames (0.2 s) of sound that may be missing at either end and are filled with silence."""
MAX_JITTER = Fraction(1, FPS)
"""Seconds by which time stamps may stray from the count of samples before the sound is moved to its stamp."""
MAX_HOLE_SECONDS = 3600
"""Silence between time stamps, in all, that is believed where no pictures bound it (a muted microphone sends none)."""

logger = logging.getLogger(__name__)


def load_audio(path: Path, *, num_frames: int | None = None, rate: int = SAMPLE_RATE) -> Float32:
    """The first audio stream of a file as mono float32 in [-1, 1], at 16 kHz unless told.

    Holes between time stamps are silent. Channels are mixed by FFmpeg's weights, scaled so that no mix clips.

    Args:
        path: an audio or video file.
        num_frames: frames of the video on the 25 fps clock. With it, sample 0 is at the file's first picture
            (the first sample where there are no pictures), and the wave has exactly 640·num_frames samples:
            up to `AUDIO_TOLERANCE_FRAMES` missing at either end are silence, a surplus is left out.
        rate: samples per second, a multiple of 25; what is heard rather than analysed deserves 48 000.

    Raises:
        Rejected: EMPTY_FILE, NOT_A_VIDEO, DAMAGED, NO_AUDIO or, with num_frames, AUDIO_TOO_SHORT.
    """
    origin = picture_start(path) if num_frames is not None else None
    limit = None if num_frames is None else num_frames * rate // FPS
    pieces: list[tuple[int, Float32]] = []
    heard = 0
    with open_media(path) as container:
        for start, samples in _resampled(container, origin, rate):
            if limit is not None and start >= limit:
                break
            if limit is None and start - heard > MAX_HOLE_SECONDS * rate:
                raise Rejected(RejectReason.DAMAGED, f"hardly any sound before {start / rate:.0f} s")
            heard += len(samples)
            if start + len(samples) > 0:
                pieces.append((start, samples))
    if not pieces:
        where = "" if limit is None else " while there are pictures"
        raise Rejected(RejectReason.NO_AUDIO, f"the audio stream holds no sound{where}")
    end = max(start + len(samples) for start, samples in pieces)
    if limit is not None:
        _check_cover(min(start for start, _ in pieces) / rate, (limit - end) / rate)
    return _join(pieces, end if limit is None else limit)


def write_wav(path: Path, wave: Float32) -> None:
    """Write a 16 kHz mono wave in [-1, 1] as a 16-bit WAV file; values beyond are clipped."""
    with wave_format.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.round(wave * 32768).clip(-32768, 32767).astype("<i2").tobytes())


def _join(pieces: list[tuple[int, Float32]], length: int) -> Float32:
    """Lay pieces at their positions (samples) into silence; what lies outside is left out."""
    wave = np.zeros(length, np.float32)
    for start, samples in pieces:
        inside = samples[max(0, -start) : max(0, length - start)]
        at = max(0, start)
        wave[at : at + len(inside)] = inside
    np.nan_to_num(wave, copy=False, nan=0.0)  # in place: an hour is 230 MB
    return np.clip(wave, -1, 1, out=wave)


def _check_cover(late: float, early: float) -> None:
    """Seconds missing at the beginning and at the end."""
    allowed = AUDIO_TOLERANCE_FRAMES / FPS
    for missing, where in ((late, "begins {} s after the first picture"), (early, "ends {} s early")):
        if missing > allowed:
            text = where.format(f"{missing:.2f}")
            detail = f"the sound {text} (allowed: {allowed:.2f} s)"
            raise Rejected(RejectReason.AUDIO_TOO_SHORT, detail)


def _resampled(container: InputContainer, origin: Fraction | None, rate: int) -> Iterator[tuple[int, Float32]]:
    """(position, samples) at `rate`, counted from origin (s), or from the first sample where that is None."""
    for _, run in itertools.groupby(_runs(container), key=lambda item: item[0]):
        _, start, first = next(run)
        origin = start if origin is None else origin
        position = round((start - origin) * rate)
        # Without rematrix_maxval a float mix of two equal channels would be √2 too loud.
        options = {"rematrix_maxval": "1.0"}
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate, options=options)
        for frame in itertools.chain([first], (item[2] for item in run), [None]):
            for output in resampler.resample(frame):
                if output is not None:  # what a resampler with nothing to do answers to the flush
                    samples = output.to_ndarray()[0]
                    yield position, samples
                    position += len(samples)


def _runs(container: InputContainer) -> Iterator[tuple[int, Fraction, AudioFrame]]:
    """(number of the run, time in s, frame); a run has one format and no holes."""
    run, expected = -1, Fraction(0)
    layout: tuple[str, str, int] | None = None
    for frame in _frames(container):
        time = expected if frame.pts is None else frame.pts * (frame.time_base or Fraction(1))
        this = frame.format.name, frame.layout.name, frame.sample_rate
        if this != layout or abs(time - expected) > MAX_JITTER:
            run, expected, layout = run + 1, time, this
        yield run, expected, frame
        expected += Fraction(frame.samples, frame.sample_rate)


def _frames(container: InputContainer) -> Iterator[AudioFrame]:
    """What decodes of the first audio stream; time stamps tell of the hole that a broken packet leaves."""
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
        logger.warning("%d broken audio packets were left out", broken)
