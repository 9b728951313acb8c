"""A part of a video's audio is what the whole has there."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lawdnet.audio import load_video_audio, parts
from lawdnet.audio.io import audio_frames
from lawdnet.audio.parts import hear, part_of_audio
from lawdnet.types import Rejected, RejectReason

FRAMES = 900
PARTS = [range(50), range(10, 60), range(437, 512), range(850, 900)]


def write_video(path: Path, codec: str, rate: int, *, hole: int = 0, seconds: float = FRAMES / 25) -> Path:
    """Small frames, and a chirp at `rate` Hz with a `hole` of some samples after 12 s."""
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("libx264", rate=25)
        video.width = video.height = 32
        audio: Any = container.add_stream(codec, rate=rate, layout="mono")
        for tick in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), tick % 250, np.uint8))
            frame.pts, frame.time_base = tick, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        time_S = np.arange(int(seconds * rate)) / rate
        chirp_S = (np.sin(2 * np.pi * (200 + 20 * time_S) * time_S) * 20_000).astype(np.int16)
        size = audio.codec_context.frame_size or 1024
        for start in range(0, len(chirp_S), size):
            piece = av.AudioFrame.from_ndarray(chirp_S[None, start : start + size], format="s16", layout="mono")
            piece.sample_rate, piece.time_base = rate, Fraction(1, rate)
            piece.pts = start + (hole if start >= 12 * rate else 0)
            for converted in av.AudioResampler(format=audio.codec_context.format, layout="mono").resample(piece):
                container.mux(audio.encode(converted))
        container.mux(audio.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        ("a.mov", "pcm_s16le", 44_100),
        ("a.avi", "pcm_s16le", 48_000),
        ("a.mp4", "libmp3lame", 44_100),
        ("a.mkv", "libopus", 48_000),
    ],
)
def test_a_part_is_a_slice_of_the_whole(tmp_path: Path, name: str, codec: str, rate: int) -> None:
    path = write_video(tmp_path / name, codec, rate)
    whole, heard = load_video_audio(path, num_frames=FRAMES), hear(path, num_frames=FRAMES)
    assert (heard.frames, heard.missing) == (whole.frames, whole.missing)
    assert len(heard.marks_M3) > 30
    for part in PARTS:
        samples_S = part_of_audio(path, part, heard.marks_M3)
        np.testing.assert_array_equal(samples_S, whole.samples[part.start * 640 : part.stop * 640])


def test_a_part_is_read_without_what_is_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mov", "pcm_s16le", 44_100)
    marks_M3 = hear(path, num_frames=FRAMES).marks_M3
    decoded: list[float] = []
    monkeypatch.setattr(parts, "audio_frames", lambda container: _told(container, decoded))
    part_of_audio(path, PARTS[-1], marks_M3)
    assert min(decoded) > 850 / 25 - 4


def _told(container: Any, decoded: list[float]) -> Iterator[Any]:
    frames: Iterator[Any] = audio_frames(container)
    for frame in frames:
        decoded.append(float(frame.pts * frame.time_base))
        yield frame


def test_a_hole_in_the_audio_and_an_early_end(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", "pcm_s16le", 44_100, hole=44_100, seconds=20)
    whole, heard = load_video_audio(path, num_frames=FRAMES), hear(path, num_frames=FRAMES)
    assert (heard.frames, heard.missing) == (whole.frames, whole.missing) == (range(525), "ends 15.00 s early")
    for part in [range(250, 350), range(320, 400), range(500, 600), range(700, 800)]:
        samples_S = part_of_audio(path, part, heard.marks_M3)
        np.testing.assert_array_equal(samples_S, whole.samples[part.start * 640 : part.stop * 640])


def test_marks_of_another_file_lead_to_the_beginning(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mov", "pcm_s16le", 44_100)
    whole = load_video_audio(path, num_frames=FRAMES).samples
    wrong_M3 = np.array([[0, 1, 0], [100_000, 7_777_777, 0]])
    np.testing.assert_array_equal(part_of_audio(path, PARTS[2], wrong_M3), whole[437 * 640 : 512 * 640])


def test_a_video_without_samples(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mov", "pcm_s16le", 44_100)
    with pytest.raises(Rejected) as caught:
        hear(path, num_frames=0)
    assert caught.value.reason == RejectReason.NO_AUDIO
