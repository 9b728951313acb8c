"""lawdnet.video and load_audio on malicious files: they must not block, take gigabytes or divide by zero."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from lawdnet.audio import load_audio
from lawdnet.types import Rejected, RejectReason
from lawdnet.video import decode, probe
from tests.support.malformed import giant
from tests.support.media import Media


@pytest.mark.parametrize("read", [probe, lambda path: list(decode(path)), load_audio], ids=["probe", "decode", "audio"])
@pytest.mark.timeout(10)
def test_anything_but_a_file_is_refused_before_it_is_opened(tmp_path: Path, read: object) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "endless.mp4").symlink_to("/dev/zero")
    for name in ("pipe.mp4", "folder.mp4", "endless.mp4"):
        with pytest.raises(Rejected, match="not a file") as caught:
            read(tmp_path / name)  # type: ignore[operator]
        assert caught.value.reason is RejectReason.UNREADABLE


def test_a_frame_of_a_gigabyte_is_not_decoded(tmp_path: Path) -> None:
    """Runs in its own process to measure the memory."""
    giant(tmp_path, tmp_path / "giant.mov")
    assert (tmp_path / "giant.mov").stat().st_size < 100_000
    code = f"""
import resource
from pathlib import Path
from lawdnet.types import Rejected
from lawdnet.video import probe
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    probe(Path({str(tmp_path / "giant.mov")!r}))
except Rejected as error:
    print(error.detail)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    detail, kilobytes = done.stdout.splitlines()
    assert detail == "no frame could be decoded: they are broken, or larger than 67108864 px"
    assert int(kilobytes) < 50_000


def test_frames_that_all_have_one_time_are_no_division_by_zero(media: Media) -> None:
    path = media.write("clip.mp4", times=[0, Fraction(1, 25)], codec="mjpeg", pix_fmt="yuvj420p", setup=_clock_of_25)
    data = bytearray(path.read_bytes())
    at = data.index(b"stts") + 16
    data[at : at + 4] = bytes(4)
    path.write_bytes(data)
    assert probe(path).num_source_frames == 2
    assert probe(path).num_frames == len(list(decode(path)))


def _clock_of_25(stream: object) -> None:
    stream.codec_context.time_base = Fraction(1, 25)  # type: ignore[attr-defined]


def test_silence_that_only_time_stamps_claim_takes_no_memory(media: Media) -> None:
    """Ten hours between two packets would be 2.3 GB of zeros."""
    path = media.write("late.mkv", audio=np.full((1, 2048), 0.5, np.float32), audio_gap=36_000.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Rejected, match=r"hardly any audio before 36000 s") as caught:
        load_audio(path)
    assert caught.value.reason is RejectReason.DAMAGED
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_half_an_hour_of_muted_microphone_is_silent(media: Media) -> None:
    path = media.write("muted.mkv", audio=np.full((1, 2048), 0.5, np.float32), audio_gap=1800.0)
    audio = load_audio(path)
    assert len(audio) == 1800 * 16_000 + 2048
    assert not audio[1024:-1024].any()
    np.testing.assert_allclose(audio[-1024:], 0.5, atol=1e-4)


def test_audio_that_ends_before_the_frames_begin_is_named(media: Media) -> None:
    times = [5 + Fraction(index, 25) for index in range(30)]
    path = media.write(times=times, audio=np.full((1, 16_000), 0.5, np.float32))
    with pytest.raises(Rejected, match="no samples during the video") as caught:
        load_audio(path, num_frames=30)
    assert caught.value.reason is RejectReason.NO_AUDIO


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_nan_and_infinite_audio_becomes_finite(media: Media, value: float, rate: int) -> None:
    audio = np.full((1, rate), 0.5, np.float32)
    audio[:, rate // 4 : rate // 2] = value
    audio = load_audio(media.write("odd.mkv", audio=audio, audio_codec="pcm_f32le", audio_rate=rate))
    assert np.isfinite(audio).all()
    assert np.abs(audio).max() <= 1
    np.testing.assert_allclose(audio[9_000:15_900], 0.5, atol=0.01)
