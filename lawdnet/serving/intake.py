"""Looks at uploaded files before anything is queued, in bounded time and memory, and refuses what cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lawdnet.audio.io import audio_seconds
from lawdnet.serving.limits import Limits
from lawdnet.serving.problems import Problem
from lawdnet.types import FPS, Rejected, RejectReason, Video
from lawdnet.video import probe

MIN_AUDIO_SECONDS = 1 / FPS
"""One frame."""


def check_audio(path: Path, limits: Limits) -> float:
    """Return the seconds of an audio file that decodes and is neither too short nor too long.

    Raises:
        Problem: 422 it cannot be used, 413 it is too long.
    """
    with _about(path, "audio"):
        seconds = audio_seconds(path, limit=limits.audio_seconds)
    if seconds > limits.audio_seconds:
        raise Problem(413, "audio_too_long", f"audio: longer than {limits.audio_seconds:g} s; cut it")
    if seconds < MIN_AUDIO_SECONDS:
        raise Problem(422, str(RejectReason.AUDIO_TOO_SHORT), f"audio: {seconds:.3f} s, less than one frame (0.04 s)")
    return seconds


def check_video(path: Path, limits: Limits) -> Video:
    """Return the properties of a video that may become a template.

    Raises:
        Problem: 422 it cannot be used, 413 it is too long or too large.
    """
    with _about(path, "video"):
        video = probe(path)
    seconds = video.num_frames / FPS
    if seconds > limits.video_seconds or video.num_source_frames > limits.video_rate * (seconds + 1):
        detail = f"video: {seconds:.0f} s at {video.fps:.0f} frames/s, allowed are {limits.video_seconds:g} s"
        raise Problem(413, "video_too_long", f"{detail} at {limits.video_rate:g} frames/s; cut it")
    if video.height * video.width > limits.video_pixels:
        detail = f"video: {video.width}×{video.height} px, allowed are {limits.video_pixels} in all; make it smaller"
        raise Problem(413, "video_too_large", detail)
    return video


@contextmanager
def _about(path: Path, field: str) -> Iterator[None]:
    """Name the field of the form in place of our own path."""
    try:
        yield
    except Rejected as error:
        raise Problem(422, str(error.reason), f"{field}: {error.detail.replace(f'{path}: ', '')}") from error
