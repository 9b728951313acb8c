"""Length and sync: a clap (flash and click) at a known time lands on one frame, whatever the file it comes in.

Each case turns one knob of an ordinary file. Shape letters: T frames of the 25 fps clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lawdnet.audio import Mel, load_audio
from lawdnet.audio.base import fit_to_video
from lawdnet.landmarks.openface import read_csv, write_csv
from lawdnet.types import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, Rejected, RejectReason
from lawdnet.video import decode, probe
from tests.support.media import Media

SECONDS = Fraction(13, 5)
CLAPS = (0.4, 1.3, 2.2)
"""About where: each is moved to the nearest frame."""
FLASH = Fraction(1, FPS)
"""Seconds of light: one frame, or more where they are shorter, so that no clock can miss it."""
WIDTH = 0.004
"""Seconds in which the click's envelope falls to 1/e."""

NTSC_FILM, NTSC = Fraction(24000, 1001), Fraction(30000, 1001)
VARIABLE = Fraction(0)


@dataclass(frozen=True)
class Case:
    """How the clip is stored."""

    name: str = "clip.mp4"
    rate: Fraction = Fraction(25)
    codec: str = "libx264"
    audio_codec: str = "aac"
    audio_rate: int = 48_000
    layout: str = "mono"
    late: float = 0.0
    """Seconds from the first frame to the first sample."""
    surplus: float = 0.0
    """Seconds from the end of the frames to the end of the audio."""

    def __str__(self) -> str:
        changed = {key: value for key, value in vars(self).items() if value != getattr(Case, key)}
        return " ".join(f"{key}={value}" for key, value in changed.items()) or "ordinary"

    def times(self) -> list[Fraction]:
        """Seconds of every frame from the first."""
        if self.rate != VARIABLE:
            return [index / self.rate for index in range(math.ceil(SECONDS * self.rate))]
        blocks = [(Fraction(0), 50), (Fraction(9, 10), 25), (Fraction(9, 5), 30)]  # with a hold of 0.2 s in between
        return [start + Fraction(index, rate) for start, rate in blocks for index in range(rate * 7 // 10 + 1)]


@dataclass(frozen=True)
class Clip:
    path: Path
    times: list[Fraction]
    claps: list[float]
    """Seconds from the first frame to the middle of each clap."""


def clap_frames(times: list[Fraction], about: float) -> range:
    """The frames that are lit: from the nearest one on, for at least `FLASH` seconds."""
    first = min(range(len(times)), key=lambda index: abs(times[index] - about))
    step = times[first + 1] - times[first]
    return range(first, first + math.ceil(FLASH / step))


def write(media: Media, case: Case) -> Clip:
    """Three claps, and the landmarks of a face that moves by 1 px per source frame."""
    times = case.times()
    lit = [clap_frames(times, about) for about in CLAPS]
    claps = [float(sum(times[index] for index in frames) / len(frames)) for frames in lit]
    bright = {index for frames in lit for index in frames}
    length = float(times[-1] + times[-1] / (len(times) - 1)) + case.surplus - case.late
    seconds = np.arange(round(length * case.audio_rate)) / case.audio_rate + case.late
    clicks = sum(0.8 * np.cos(6283 * (seconds - at)) * np.exp(-(((seconds - at) / WIDTH) ** 2)) for at in claps)
    channels = {"mono": 1, "stereo": 2, "5.1": 6}[case.layout]

    def count_pictures(stream: Any) -> None:
        if "264" not in case.codec and case.rate:  # MPEG-4 has no finer clock, and AVI no time stamps
            stream.codec_context.time_base = 1 / case.rate

    path = media.write(
        case.name,
        times=[time + Fraction(max(0.0, -case.late)) for time in times],
        frames=[media.barcode(index, bright=index in bright) for index in range(len(times))],
        codec=case.codec,
        pix_fmt="yuvj420p" if case.codec == "mjpeg" else "yuv420p",
        setup=count_pictures,
        audio=np.repeat(np.asarray(clicks)[None], channels, 0),
        audio_codec=case.audio_codec,
        audio_rate=case.audio_rate,
        audio_start=max(0.0, case.late),
        layout=case.layout,
    )
    points = np.arange(136.0).reshape(1, 68, 2) + np.arange(len(times))[:, None, None]
    write_csv(path.with_suffix(".csv"), points.astype(np.float32), float(case.rate or 25))
    return Clip(path, times, claps)


def centroid(weight: np.ndarray, seconds: np.ndarray, about: float) -> float:
    near = np.abs(seconds - about) < 0.15
    return float(weight[near] @ seconds[near] / weight[near].sum())


def mel_power(rows_TC: np.ndarray) -> np.ndarray:
    """Power of the four hops of every row."""
    level = (rows_TC.reshape(len(rows_TC), 4, -1) + 1) * 40 - 100
    return np.asarray((10 ** (level / 10)).sum(2))


CASES = [
    *(Case(rate=Fraction(rate)) for rate in (25, NTSC_FILM, 24, NTSC, 30, 50, 60, VARIABLE)),
    *(Case(rate=Fraction(rate), name="clip.mkv", audio_codec="libopus") for rate in (NTSC_FILM, NTSC, 60, VARIABLE)),
    *(Case(late=late) for late in (-2.0, -0.15, -0.1, -0.04, 0.04, 0.1, 0.15)),
    *(Case(late=late, name="clip.mkv", audio_codec="pcm_s16le") for late in (-0.15, -0.04, 0.04, 0.15)),
    *(Case(late=late, rate=NTSC, name="clip.mov", audio_codec="pcm_s16le") for late in (-0.07, 0.07)),
    *(Case(surplus=surplus) for surplus in (-0.18, -0.06, 0.06, 3.0)),
    *(Case(surplus=surplus, name="clip.mkv", audio_codec="flac") for surplus in (-0.18, 3.0)),
    *(Case(audio_rate=rate) for rate in (8_000, 16_000, 22_050, 44_100)),
    *(Case(audio_rate=rate, name="clip.mkv", audio_codec="pcm_s16le") for rate in (8_000, 22_050, 44_100, 192_000)),
    *(Case(layout=layout) for layout in ("stereo", "5.1")),
    *(Case(layout=layout, name="clip.mkv", audio_codec="pcm_s24le") for layout in ("stereo", "5.1")),
    Case(name="clip.webm", codec="libvpx", audio_codec="libopus"),
    Case(name="clip.webm", codec="libvpx-vp9", audio_codec="libopus", rate=NTSC, layout="stereo"),
    Case(name="clip.mov", codec="mjpeg", audio_codec="pcm_s16le", audio_rate=44_100),
    Case(name="clip.mov", audio_codec="alac", audio_rate=44_100, layout="stereo"),
    Case(name="clip.avi", codec="mpeg4", audio_codec="pcm_s16le", audio_rate=22_050),
    Case(name="clip.avi", codec="mjpeg", audio_codec="pcm_s16le", rate=NTSC),
    Case(name="clip.mkv", codec="mpeg4", audio_codec="libmp3lame", audio_rate=44_100),
    Case(name="clip.mp4", codec="libx265", audio_codec="ac3", rate=NTSC, layout="5.1"),
    Case(name="clip.mp4", audio_codec="libmp3lame", audio_rate=44_100),
    Case(name="clip.mp4", audio_codec="libopus"),
    Case(name="clip.mpegts", rate=NTSC),
    Case(name="clip.mpegts", audio_codec="mp2", late=0.1),
    Case(name="clip.flv", audio_rate=44_100),
    Case(name="clip.asf", codec="msmpeg4v3", audio_codec="pcm_s16le", audio_rate=44_100),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_clap_lands_on_one_frame(media: Media, case: Case) -> None:
    clip = write(media, case)
    info = probe(clip.path)
    ticks = list(decode(clip.path))
    wave = load_audio(clip.path, num_frames=info.num_frames)
    mel = Mel()
    rows_TC = fit_to_video(mel.extract(wave), mel.frame_shift, info.num_frames, tolerance_frames=0)
    landmarks = read_csv(clip.path.with_suffix(".csv")).points_T68x2

    lasts = clip.times[-1] / (len(clip.times) - 1)
    assert len(ticks) == info.num_frames == len(rows_TC) == round(FPS * (clip.times[-1] + lasts))
    assert len(wave) == len(ticks) * SAMPLES_PER_FRAME
    assert info.num_source_frames == len(landmarks) == len(clip.times)
    for source, picture in ticks:
        assert media.read(picture) == source == landmarks[source, 0, 0]

    lit = np.array([tick for tick, (_, picture) in enumerate(ticks) if picture[-8].mean() > 127])
    power_T4 = mel_power(rows_TC)
    hop_seconds = (np.arange(power_T4.size) * 160 - 240) / SAMPLE_RATE
    for clap in clip.claps:
        seen = lit[np.abs(lit - FPS * clap) < 5].mean()
        heard = centroid(power_T4.ravel(), hop_seconds, clap)
        assert seen == pytest.approx(FPS * clap, abs=0.5 + 1e-6), "the clock moves a picture by half a tick at most"
        assert seen == pytest.approx(FPS * heard, abs=0.55)
        assert heard == pytest.approx(clap, abs=0.003)
        assert centroid(wave**2, np.arange(len(wave)) / SAMPLE_RATE, clap) == pytest.approx(clap, abs=0.001)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (Case(late=0.3), "the audio begins 0.28 s"),  # AAC begins with one packet of silence
        (Case(late=0.25, name="clip.mkv", audio_codec="pcm_s16le"), "the audio begins 0.25 s after the first frame"),
        (Case(surplus=-0.4), "the audio ends 0."),
        (Case(surplus=-0.25, name="clip.mkv", audio_codec="pcm_s16le"), "the audio ends 0.25 s early"),
    ],
    ids=str,
)
def test_beyond_the_tolerance_is_a_reason(media: Media, case: Case, reason: str) -> None:
    clip = write(media, case)
    with pytest.raises(Rejected, match=reason) as caught:
        load_audio(clip.path, num_frames=probe(clip.path).num_frames)
    assert caught.value.reason is RejectReason.AUDIO_TOO_SHORT


@pytest.mark.parametrize(("milliseconds", "first"), [(481, 13), (500, 13), (519, 13), (560, 14)])
def test_a_clap_survives_a_cut_without_encoding(media: Media, milliseconds: int, first: int) -> None:
    """As `ffmpeg -ss 0.5 -c copy` leaves a file: what lies before the cut is there, and an edit list hides it."""
    cut, at = Fraction(milliseconds, 1000), 1.3
    times = [Fraction(index, 25) - cut for index in range(65)]
    lit = clap_frames(times, at)
    clap = float(times[lit.start])
    seconds = np.arange(2.6 * 48_000) / 48_000 - float(cut)
    path = media.write(
        "cut.mp4",
        times=times,
        frames=[media.barcode(index, bright=index in lit) for index in range(len(times))],
        codec="libx264",
        pix_fmt="yuv420p",
        audio=(0.8 * np.cos(6283 * (seconds - clap)) * np.exp(-(((seconds - clap) / WIDTH) ** 2)))[None],
        audio_codec="aac",
        audio_rate=48_000,
        audio_start=-float(cut),
        options={"avoid_negative_ts": "disabled"},
    )
    info = probe(path)
    assert info.num_frames == info.num_source_frames == 65 - first
    source, picture = next(iter(decode(path)))
    assert (source, media.read(picture)) == (0, first)
    wave = load_audio(path, num_frames=info.num_frames)
    expected = clap - float(times[first])
    assert centroid(wave**2, np.arange(len(wave)) / SAMPLE_RATE, expected) == pytest.approx(expected, abs=0.001)
