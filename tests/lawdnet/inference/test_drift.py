"""Sound and image stay together from the first second to the last, to the sample."""

from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from lawdnet.audio import load_audio
from lawdnet.types import Float32
from lawdnet.video import VideoWriter

RATE = 48_000
SECONDS = 90


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Float32]:
    """A video that turns white for one frame every second, and noise."""
    path: Path = tmp_path_factory.mktemp("long") / "long.mp4"
    audio = (0.2 * np.random.default_rng(0).standard_normal(SECONDS * RATE)).astype(np.float32)
    with VideoWriter(path, height=32, width=48, audio=audio, sample_rate=RATE, crf=17, preset="veryfast") as writer:
        for number in range(SECONDS * 25):
            writer.write(np.full((32, 48, 3), 255 if number % 25 == 0 else 30, np.uint8))
    return path, audio


def test_the_sound_has_not_moved_by_a_sample(long_video: tuple[Path, Float32]) -> None:
    path, audio = long_video
    heard = load_audio(path, rate=RATE)
    for second in (1, SECONDS // 2, SECONDS - 2):
        part = audio[second * RATE : (second + 1) * RATE]
        wide = heard[second * RATE - 2000 : (second + 1) * RATE + 2000]
        size = len(wide) + len(part)
        match = np.fft.irfft(np.fft.rfft(wide, size) * np.fft.rfft(part, size).conj(), size)
        assert int(match.argmax()) - 2000 == 0
    assert abs(len(heard) - SECONDS * RATE) <= 1024


def test_no_image_has_moved(long_video: tuple[Path, Float32]) -> None:
    path, _ = long_video
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        shown = [(frame.pts or 0, frame.to_ndarray(format="gray").mean()) for frame in container.decode(stream)]
        times = [pts * stream.time_base for pts, _ in shown]
    assert len(shown) == SECONDS * 25
    assert all(later - time == times[1] for time, later in pairwise(times))
    assert [round(float(time), 6) for time, (_, level) in zip(times, shown, strict=True) if level > 200] == list(
        range(SECONDS)
    )
