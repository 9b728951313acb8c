"""lawdnet.audio.io: audio from any file as 16 kHz mono, aligned to the frames of its video."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lawdnet.audio import Mel, load_audio, load_video_audio, stream_audio, write_wav
from lawdnet.types import Rejected, RejectReason
from lawdnet.video import decode, probe

RATES = [Fraction(24000, 1001), 24, 25, Fraction(30000, 1001), 30, 50, 60]


def tone(rate: int, seconds: float = 2.0, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)[None]


def click(rate: int, at: float, seconds: float = 3.0) -> np.ndarray:
    """Return a burst of 20 ms that begins at the given second."""
    audio = np.zeros((1, round(rate * seconds)), np.float32)
    first = round(at * rate)
    audio[0, first : first + rate // 50] = 0.9 * np.sin(np.arange(rate // 50) * 0.8)
    return audio


def onset(audio: np.ndarray) -> float:
    """Return the seconds until half of the peak is reached."""
    return float(np.argmax(np.abs(audio) > np.abs(audio).max() / 2)) / 16_000


def without(path: Path, start: float, stop: float) -> Path:
    """Copy an audio file but for the packets between two seconds."""
    holed = path.with_stem("holed")
    with av.open(str(path)) as source, av.open(str(holed), "w") as output:
        stream = output.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is not None and not start < packet.pts * packet.time_base < stop:
                packet.stream = stream
                output.mux(packet)
    return holed


def reason_of(path: Path, **options: Any) -> tuple[RejectReason, str]:
    with pytest.raises(Rejected) as caught:
        load_audio(path, **options)
    return caught.value.reason, caught.value.detail


@pytest.mark.parametrize("rate", RATES, ids=str)
@pytest.mark.parametrize(
    ("name", "codec", "start"),
    [
        ("clip.mp4", "aac", 0.0),
        ("clip.mp4", "aac", 0.12),
        ("clip.mkv", "pcm_s16le", 0.12),
        ("clip.mkv", "aac", 0.0),
    ],
)
def test_flash_and_click_land_on_one_frame(media: Any, rate: Fraction, name: str, codec: str, start: float) -> None:
    times = [Fraction(index) / rate for index in range(round(2 * rate))]
    flash = next(index for index, time in enumerate(times) if time >= 1)
    frames = [media.barcode(index, bright=index == flash) for index in range(len(times))]
    audio = click(48_000, float(times[flash]) - start, 2.0)
    path = media.write(
        name,
        times=times,
        frames=frames,
        audio=audio,
        audio_codec=codec,
        audio_rate=48_000,
        audio_start=start,
    )
    num_frames = probe(path).num_frames
    lit = [tick for tick, (_, frame) in enumerate(decode(path)) if frame[40].mean() > 127]
    audio = load_audio(path, num_frames=num_frames)
    assert audio.shape == (num_frames * 640,)
    assert onset(audio) == pytest.approx(float(times[flash]), abs=0.002)
    energy = Mel(hops="mean").extract(audio).mean(axis=1)
    heard = (energy + 1) @ np.arange(num_frames) / (energy + 1).sum()
    centre = float(times[flash]) + 0.01
    assert heard == pytest.approx(centre * 25, abs=0.5)
    # The frame is on screen around its time for 1/rate s; fast rates may skip it, so the nearest tick counts.
    assert not lit or abs(np.mean(lit) - heard) <= 0.5 + 12.5 / float(rate)


def test_the_frames_set_time_zero(media: Any) -> None:
    times = [1 + Fraction(index, 25) for index in range(50)]
    path = media.write(times=times, audio=click(48_000, 2.0), audio_rate=48_000)
    assert onset(load_audio(path, num_frames=50)) == pytest.approx(1.0, abs=0.001)
    assert onset(load_audio(path)) == pytest.approx(2.0, abs=0.001)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize(("layout", "channels"), [("mono", 1), ("stereo", 2), ("5.1", 6)])
def test_rates_and_channels(media: Any, rate: int, layout: str, channels: int) -> None:
    path = media.write("audio.wav", audio=np.repeat(tone(rate), channels, 0), audio_rate=rate, layout=layout)
    audio = load_audio(path)
    assert audio.dtype == np.float32
    assert abs(len(audio) - 32_000) <= 1
    middle = slice(1000, 31_000)
    np.testing.assert_allclose(audio[middle], tone(16_000)[0][middle], atol=0.005)


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        ("a.mp3", "mp3", 44_100),
        ("a.ogg", "libopus", 48_000),
        ("a.flac", "flac", 44_100),
        ("a.mp4", "aac", 16_000),
    ],
)
def test_codec_delays_are_taken_out(media: Any, name: str, codec: str, rate: int) -> None:
    path = media.write(name, audio=click(rate, 1.0), audio_rate=rate, audio_codec=codec)
    assert onset(load_audio(path)) == pytest.approx(1.0, abs=0.002)


def test_the_ends_may_miss_a_fifth_of_a_second(media: Any) -> None:
    times = [Fraction(index, 25) for index in range(50)]
    path = media.write(times=times, audio=tone(16_000, 1.7), audio_start=0.15)
    audio = load_audio(path, num_frames=50)
    assert audio.shape == (32_000,)
    assert not audio[:2399].any()
    assert np.abs(audio[2400:2500]).max() > 0.1
    assert not audio[2400 + 27_200 :].any()
    reason, detail = reason_of(media.write(times=times, audio=tone(16_000, 1.5)), num_frames=50)
    assert reason is RejectReason.AUDIO_TOO_SHORT
    assert detail == "the audio ends 0.50 s early (allowed: 0.20 s)"
    reason, detail = reason_of(media.write(times=times, audio=tone(16_000), audio_start=0.3), num_frames=50)
    assert reason is RejectReason.AUDIO_TOO_SHORT
    assert detail == "the audio begins 0.30 s after the first frame (allowed: 0.20 s)"


@pytest.mark.parametrize(
    ("start", "seconds", "frames", "missing"),
    [
        (0.2, 1.6, range(50), ""),
        (0.24, 1.76, range(6, 50), "begins 0.24 s after the first frame"),
        (0.25, 5, range(7, 50), "begins 0.25 s after the first frame"),
        (0, 1.75, range(43), "ends 0.25 s early"),
        (-1, 1.5, range(12), "ends 1.50 s early"),
        (0.5, 1, range(13, 37), "begins 0.50 s after the first frame and ends 0.50 s early"),
        (0.85, 0.01, range(22, 21), "begins 0.85 s after the first frame and ends 1.14 s early"),
    ],
)
def test_the_frames_with_audio_are_those_wholly_inside(
    media: Any, start: float, seconds: float, frames: range, missing: str
) -> None:
    times = [2 + Fraction(index, 25) for index in range(50)]
    path = media.write(times=times, audio=tone(16_000, seconds), audio_start=2 + start)
    audio = load_video_audio(path, num_frames=50)
    assert (audio.frames, audio.missing) == (frames, missing)
    heard = np.flatnonzero(audio.samples)
    begin, end = max(0, round(16_000 * start)), min(32_000, round(16_000 * (start + seconds)))
    assert len(audio.samples) == 32_000
    assert begin <= heard[0] <= begin + 20
    assert end - 20 <= heard[-1] < end


def test_a_surplus_is_dropped(media: Any) -> None:
    path = media.write(times=[0, 0.04, 0.08], audio=tone(16_000, 5))
    np.testing.assert_allclose(load_audio(path, num_frames=3), tone(16_000)[0, :1920], atol=1e-4)


def test_files_without_audio_are_named(media: Any) -> None:
    assert reason_of(media.write(times=[0, 0.04])) == (RejectReason.NO_AUDIO, "there is no audio stream")
    path = media.folder / "empty.wav"
    write_wav(path, np.zeros(0, np.float32))
    assert reason_of(path)[0] is RejectReason.NO_AUDIO
    path.write_bytes(b"")
    assert reason_of(path)[0] is RejectReason.EMPTY_FILE


def test_a_gap_in_the_audio_is_silent_and_moves_nothing(media: Any) -> None:
    path = media.write("whole.mkv", audio=tone(16_000, 4), audio_codec="flac")
    holed = without(path, 1, 2)
    audio, whole = load_audio(holed), load_audio(path)
    assert len(audio) == len(whole)
    assert not audio[21_000:31_000].any()
    # Matroska's milliseconds move the audio after the gap by less than one.
    assert min(np.abs(audio[40_000:60_000] - whole[40_000 + k : 60_000 + k]).max() for k in range(-16, 17)) < 1e-3


def test_broken_packets_leave_a_gap(media: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = media.write("a.mp4", audio=tone(16_000, 4) + tone(16_000, 4, 1300), audio_codec="aac")
    whole = load_audio(path)
    content = bytearray(path.read_bytes())
    middle = content.index(b"mdat") + 10_000
    content[middle : middle + 2000] = np.random.default_rng(0).bytes(2000)
    path.write_bytes(content)
    audio = load_audio(path)
    assert "broken audio packets were skipped" in caplog.text
    assert abs(len(audio) - len(whole)) <= 1
    np.testing.assert_allclose(audio[-12_000:], whole[-12_000:], atol=0.02)
    assert np.isfinite(audio).all()
    assert np.abs(audio).max() <= 1


def test_streamed_audio_is_the_audio_with_its_gap(media: Any) -> None:
    path = media.write("whole.mkv", audio=tone(44_100, 4), audio_rate=44_100, audio_codec="flac")
    holed = without(path, 1, 2)
    for file in (path, holed):
        pieces = list(stream_audio(file, rate=48_000))
        assert max(map(len, pieces)) <= 48_000
        np.testing.assert_array_equal(np.concatenate(pieces), load_audio(file, rate=48_000))


def test_streamed_audio_is_refused_like_the_audio(media: Any) -> None:
    empty = media.folder / "empty.wav"
    write_wav(empty, np.zeros(0, np.float32))
    for file in (empty, media.write(times=[0, 0.04])):
        with pytest.raises(Rejected) as caught:
            list(stream_audio(file))
        assert (caught.value.reason, caught.value.detail) == reason_of(file)


def test_audio_survives_the_wav_file(tmp_path: Path) -> None:
    audio = np.random.default_rng(0).uniform(-1, 1, 5000).astype(np.float32)
    audio[:4] = 1.0, -1.0, 2.0, 0.0
    path = tmp_path / "说 话.wav"
    write_wav(path, audio)
    np.testing.assert_allclose(load_audio(path), audio.clip(-1, 1), atol=1 / 32768 + 1e-7)
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16_000)
