"""Ranges of ticks: a seek must give the same frames as decoding from the start."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lawdnet.audio import load_audio
from lawdnet.video import decode, probe, reading

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "media"


def assert_ranges(path: Path, ranges: list[tuple[int, int | None]]) -> None:
    whole = list(decode(path))
    for start, stop in ranges:
        part = list(decode(path, start=start, stop=stop))
        assert [index for index, _ in part] == [index for index, _ in whole[start:stop]]
        for (_, seen), (_, wanted) in zip(part, whole[start:stop], strict=True):
            np.testing.assert_array_equal(seen, wanted)


def long_groups(stream: Any) -> None:
    stream.options = {"crf": "0", "g": "24", "bf": "3"}


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30_000, 1001), Fraction(12)], ids=str)
def test_a_range_is_a_slice(media: Any, name: str, rate: Fraction) -> None:
    path = media.write(name, times=[Fraction(i) / rate for i in range(100)], setup=long_groups)
    assert_ranges(path, [(0, 10), (1, 4), (30, 31), (50, 80), (70, None), (90, 1000), (3, 3), (1000, 1010)])


def test_a_variable_rate_and_a_late_start(media: Any) -> None:
    steps = np.random.default_rng(0).integers(20, 90, 80).cumsum()
    path = media.write(times=[Fraction(int(ms) + 700, 1000) for ms in steps], setup=long_groups)
    assert_ranges(path, [(5, 20), (60, 90)])


def test_a_seek_does_not_decode_earlier_frames(media: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = media.write("clip.mp4", times=[Fraction(i, 25) for i in range(250)], setup=long_groups)
    monkeypatch.setattr(reading, "_decode_all", lambda *_: pytest.fail("decoded from the start"))
    assert [media.read(frame) for _, frame in decode(path, start=200, stop=203)] == [200, 201, 202]


def test_useless_time_stamps_fall_back_to_the_start(media: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = media.write("clip.mp4", times=[Fraction(i, 25) for i in range(50)])
    wrong = replace(probe(path), stamps_F=np.array([7, 8, 9], np.int64))
    assert [media.read(frame) for _, frame in decode(path, start=1, stop=3, probed=wrong)] == [1, 2]


def test_a_range_that_a_seek_loses_continues_from_the_start(media: Any) -> None:
    path = media.write("clip.mp4", times=[Fraction(i, 25) for i in range(50)])
    video = probe(path)
    wrong = video.stamps_F.copy()
    wrong[30:] += 1
    beats: list[None] = []
    ticks = decode(path, start=20, stop=40, probed=replace(video, stamps_F=wrong), beat=lambda: beats.append(None))
    assert [media.read(frame) for _, frame in ticks] == list(range(20, 40))
    assert len(beats) == 30, "the frames before the one that was lost"


@pytest.mark.skipif(not SHARED.exists(), reason="no shared media next to the repository")
def test_real_recordings_seek() -> None:
    assert_ranges(SHARED / "silent_portrait_25fps.mp4", [(100, 110), (301, 320), (540, None)])


@pytest.mark.skipif(not SHARED.exists(), reason="no shared media next to the repository")
def test_real_recordings() -> None:
    info = probe(SHARED / "silent_portrait_25fps.mp4")
    assert (info.num_frames, info.num_source_frames, info.height, info.width) == (550, 550, 768, 576)
    assert sum(1 for _ in decode(info.path)) == 550
    info = probe(SHARED / "talk_30fps.mp4")
    assert (info.num_frames, info.num_source_frames, info.height, info.width) == (500, 600, 1920, 1080)
    assert load_audio(info.path, num_frames=500).shape == (320_000,)
