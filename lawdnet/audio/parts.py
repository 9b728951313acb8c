"""Parts of the audio of a long video: it is heard once, as a whole, and then each part is read by seeking.

Shape letters: M marks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from av.audio.frame import AudioFrame
from av.container import InputContainer
from av.error import FFmpegError

from lawdnet.audio.io import RunFrame, audio_frames, cover, join, resampled, runs_of
from lawdnet.types import SAMPLE_RATE, SAMPLES_PER_FRAME, Beat, Float32, Int64, Rejected, RejectReason, no_beat
from lawdnet.video import first_frame_time
from lawdnet.video.container import open_media

WARM_UP_SECONDS = 1
"""Seconds of audio that the decoder hears before a mark, and decoder and resampler from it to the part."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Heard:
    """What hearing a whole video tells."""

    frames: range
    missing: str
    """Both as in `lawdnet.audio.io.VideoAudio`."""
    marks_M3: Int64
    """Where reading may begin, at least a second apart: position in samples of 16 kHz, time stamp of the audio frame
    there, and how many of its samples come before the position."""


def hear(path: Path, *, num_frames: int, beat: Beat = no_beat) -> Heard:
    """Hear a video from its beginning to its end, in bounded memory.

    Args:
        path: a video.
        num_frames: its length on the 25 fps clock.
        beat: called after every piece of audio.

    Raises:
        Rejected: EMPTY_FILE, NOT_A_VIDEO, DAMAGED or NO_AUDIO.
    """
    origin, limit = first_frame_time(path) or Fraction(0), num_frames * SAMPLES_PER_FRAME
    begin, end = limit, 0
    marks: list[tuple[int, int, int]] = []
    with open_media(path) as container:
        runs = _marked(runs_of(audio_frames(container)), origin, marks)
        for start, samples in resampled(runs, origin, SAMPLE_RATE):
            if start >= limit:
                break
            if start + len(samples) > 0:
                begin, end = min(begin, start), max(end, start + len(samples))
            beat()
    if not end:
        raise Rejected(RejectReason.NO_AUDIO, "the audio stream has no samples during the video")
    frames, missing = cover(begin, end, num_frames, SAMPLES_PER_FRAME)
    return Heard(frames=frames, missing=missing, marks_M3=np.array(marks, np.int64).reshape(-1, 3))


def _marked(runs: Iterator[RunFrame], origin: Fraction, marks: list[tuple[int, int, int]]) -> Iterator[RunFrame]:
    """Pass frames on, and note from where on a resampler gives the same samples as from the run's beginning.

    That is a whole number of output samples after it: from elsewhere it gives samples in between.
    """
    number, begin = -1, Fraction(0)
    for run, time, frame in runs:
        if run != number:
            number, begin = run, time
        step = frame.sample_rate // math.gcd(frame.sample_rate, SAMPLE_RATE)
        before = int((time - begin) * frame.sample_rate)
        skip = -before % step
        position = round((begin - origin) * SAMPLE_RATE) + (before + skip) * SAMPLE_RATE // frame.sample_rate
        is_due = not marks or position >= marks[-1][0] + SAMPLE_RATE
        if is_due and frame.pts is not None and skip < frame.samples:
            marks.append((position, frame.pts, skip))
        yield run, time, frame


def part_of_audio(path: Path, ticks: range, marks_M3: Int64) -> Float32:
    """Read the audio of a part of a video: what `load_video_audio` gives for these ticks of its 25 fps clock.

    Decoders that draw noise (AAC's perceptual noise substitution) draw other noise.

    Args:
        path: a video.
        ticks: the part.
        marks_M3: from `hear`.

    Returns:
        640 samples of 16 kHz mono for each tick, silent where the video has no audio.

    Raises:
        Rejected: EMPTY_FILE, NOT_A_VIDEO, DAMAGED or NO_AUDIO.
    """
    begin, end = ticks.start * SAMPLES_PER_FRAME, ticks.stop * SAMPLES_PER_FRAME
    origin = first_frame_time(path) or Fraction(0)
    chunks: list[tuple[int, Float32]] = []
    for start, samples in _from_mark(path, origin, begin, marks_M3):
        if start >= end:
            break
        if start + len(samples) > begin:
            chunks.append((start - begin, samples))
    return join(chunks, end - begin)


def _from_mark(path: Path, origin: Fraction, begin: int, marks_M3: Int64) -> Iterator[tuple[int, Float32]]:
    """Yield (position, samples) from the last mark that is early enough for `begin`, or else from the start."""
    mark = int(np.searchsorted(marks_M3[:, 0], begin - WARM_UP_SECONDS * SAMPLE_RATE, "right")) - 1
    if mark >= 0:
        position, stamp, skip = marks_M3[mark].tolist()
        with open_media(path) as container:
            frames = _from_stamp(container, stamp)
            if (first := next(frames, None)) is not None:
                begin_at = origin + Fraction(position, SAMPLE_RATE)
                runs = runs_of(itertools.chain([_without(first, skip)], frames), begin_at)
                yield from resampled(runs, origin, SAMPLE_RATE)
                return
    with open_media(path) as container:
        yield from resampled(runs_of(audio_frames(container)), origin, SAMPLE_RATE)


def _from_stamp(container: InputContainer, stamp: int) -> Iterator[AudioFrame]:
    """Yield the audio frames from the one with a time stamp on; none if seeking does not lead there."""
    stream = container.streams.audio[0]
    try:
        container.seek(max(0, stamp - int(WARM_UP_SECONDS / (stream.time_base or 1))), stream=stream)
    except FFmpegError:
        return
    frames = itertools.dropwhile(lambda frame: frame.pts is None or frame.pts < stamp, audio_frames(container))
    first = next(frames, None)
    if first is not None and first.pts == stamp:
        yield from itertools.chain([first], frames)


def _without(frame: AudioFrame, skip: int) -> AudioFrame:
    """Return a frame without its first samples."""
    values: Any = frame.to_ndarray()
    per_sample = values.shape[1] // frame.samples  # channels, where they are interleaved
    rest = AudioFrame.from_ndarray(
        np.ascontiguousarray(values[:, skip * per_sample :]), format=frame.format.name, layout=frame.layout.name
    )
    rest.sample_rate, rest.pts, rest.time_base = frame.sample_rate, frame.pts, frame.time_base
    return rest
