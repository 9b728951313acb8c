"""lawdnet.video.fragments: what was sent so far plays, and audio and video belong together to the sample."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from lawdnet.types import Float32, UInt8
from lawdnet.video.fragments import FragmentWriter

RATES = [16_000, 24_000, 44_100, 48_000]


def film(count: int, flash: int, rate: int, size: tuple[int, int] = (48, 64)) -> list[tuple[UInt8, Float32]]:
    """Noise that hardly moves, with one white frame and a click at its beginning."""
    rng = np.random.default_rng(0)
    still = rng.integers(0, 60, (*size, 3)).astype(np.uint8)
    made = []
    for number in range(count):
        image = np.roll(still, number, axis=1) if number != flash else np.full((*size, 3), 255, np.uint8)
        audio = np.zeros(rate // 25, np.float32)
        audio[: rate // 400] = 0.9 * (number == flash)
        made.append((image, audio))
    return made


def write(frames: list[tuple[UInt8, Float32]], rate: int, **options: float) -> list[bytes]:
    height, width = frames[0][0].shape[:2]
    writer = FragmentWriter(height=height, width=width, sample_rate=rate, **options)
    return [*(writer.write(*frame) for frame in frames), writer.finish()]


def read(data: bytes) -> tuple[list[float], list[UInt8], Float32, float]:
    """Times and images of the frames; the audio, and the time of its first sample."""
    times, images, sound, begin = [], [], [], None
    with av.open(io.BytesIO(data)) as container:
        for packet in container.demux():
            for frame in packet.decode():
                if isinstance(frame, av.VideoFrame):
                    times.append(frame.time)
                    images.append(frame.to_ndarray(format="rgb24"))
                else:
                    begin = frame.time if begin is None else begin
                    sound.append(frame.to_ndarray()[0])
    return times, images, np.concatenate(sound), begin or 0.0


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("flash", [0, 33, 55])
def test_audio_and_video_are_not_offset(rate: int, flash: int) -> None:
    times, images, sound, begin = read(b"".join(write(film(60, flash, rate), rate)))
    np.testing.assert_allclose(times, np.arange(60) / 25, atol=1e-6)
    assert [number for number, image in enumerate(images) if image.mean() > 200] == [flash]
    click = begin + np.argmax(np.abs(sound) > 0.4) / rate
    assert abs(click - flash / 25) < 0.001
    assert begin == 0.0
    assert len(sound) / rate >= 60 / 25


def test_the_pictures_come_back() -> None:
    frames = film(30, 10, 16_000)
    images = read(b"".join(write(frames, 16_000, crf=5)))[1]
    errors = [np.abs(image.astype(int) - true).mean() for image, (true, _) in zip(images, frames, strict=True)]
    assert max(errors) < 12  # the colours of noise are halved in resolution


def test_what_has_arrived_plays() -> None:
    parts = write(film(100, 33, 48_000), 48_000)
    played = []
    for number in range(8, 100, 9):
        data = b"".join(parts[:number])
        times = read(data)[0]
        np.testing.assert_allclose(times, np.arange(len(times)) / 25, atol=1e-6)
        played.append(number - len(times))
        assert data.count(b"moof") == sum(part.count(b"moof") for part in parts[:number])
    assert min(played) >= 0
    assert max(played) <= 7  # a fragment, and one packet of audio


def test_a_broken_connection_plays_up_to_the_last_whole_fragment() -> None:
    data = b"".join(write(film(100, 33, 48_000), 48_000))
    cut = data[: data.rindex(b"moof", 0, len(data) // 2) + 30]
    with av.open(io.BytesIO(cut)) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 30


def test_the_first_bytes_come_within_the_first_fragment() -> None:
    parts = write(film(40, 3, 48_000), 48_000)
    first = next(number for number, part in enumerate(parts) if part)
    assert first <= 6
    assert parts[first].index(b"ftyp") == 4
    assert b"moov" in parts[first]
    assert b"moof" in parts[first]


def test_the_type_names_the_codecs_as_browsers_do() -> None:
    writer = FragmentWriter(height=480, width=640, sample_rate=48_000)
    assert writer.mime == 'video/mp4; codecs="avc1.64001e, mp4a.40.2"'  # High profile, level 3.0
    writer.close()


def test_memory_does_not_grow() -> None:
    writer = FragmentWriter(height=48, width=64, sample_rate=16_000)
    for image, audio in film(500, 1, 16_000):
        writer.write(image, audio)
        assert len(writer._sink._parts) == 0
    writer.close()


def test_odd_sizes_grow_by_one() -> None:
    assert read(b"".join(write(film(10, 3, 16_000, (47, 63)), 16_000)))[1][0].shape == (48, 64, 3)


def test_the_writer_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="1×16 px"):
        FragmentWriter(height=1, width=16, sample_rate=16_000)
    with pytest.raises(ValueError, match="sample rate 17000"):
        FragmentWriter(height=16, width=16, sample_rate=17_000)
    writer = FragmentWriter(height=16, width=16, sample_rate=16_000)
    with pytest.raises(ValueError, match=r"uint8 \(16, 17, 3\)"):
        writer.write(np.zeros((16, 17, 3), np.uint8), np.zeros(640, np.float32))
    with pytest.raises(ValueError, match=r"audio \(639,\)"):
        writer.write(np.zeros((16, 16, 3), np.uint8), np.zeros(639, np.float32))
    with pytest.raises(ValueError, match="no frame"):
        writer.finish()


@pytest.mark.slow
def test_ten_minutes_do_not_drift() -> None:
    rate, flash = 44_100, 14_990
    times, images, sound, begin = read(b"".join(write(film(15_000, flash, rate, (16, 16)), rate)))
    assert times[-1] == pytest.approx(14_999 / 25, abs=1e-6)
    assert [number for number, image in enumerate(images) if image.mean() > 200] == [flash]
    assert abs(begin + np.argmax(np.abs(sound) > 0.4) / rate - flash / 25) < 0.001
