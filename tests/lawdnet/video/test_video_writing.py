"""lawdnet.video.writing: what is written comes back, and what cannot be written is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lawdnet.audio import load_audio
from lawdnet.video import VideoWriter, decode, probe, write_video


@pytest.mark.parametrize("name", ["a b.mp4", "-y.mp4", "%d.mp4", "%03d.jpg", "file:x.mp4", "说话 'quo\"te'.mp4", "x"])
def test_any_file_name_is_read_and_written(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    frames = [np.full((16, 16, 3), value, np.uint8) for value in (0, 100, 200)]
    assert write_video(Path(name), frames) == 3
    assert probe(Path(name)).num_frames == len(list(decode(Path(name)))) == 3
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("fps", [25, 30, 29.97])
def test_what_is_written_comes_back(tmp_path: Path, fps: float) -> None:
    ramp = np.arange(64, dtype=np.uint8)[None, :, None] * np.array([1, 2, 3], np.uint8)
    frames = [np.broadcast_to(ramp + index, (48, 64, 3)).astype(np.uint8) // 2 for index in range(40)]
    audio = (0.5 * np.sin(np.arange(round(16_000 * 40 / fps)) * 0.1)).astype(np.float32)
    path = tmp_path / "new" / "out.mp4"
    write_video(path, frames, audio, fps=fps, crf=5)
    info = probe(path)
    assert (info.num_source_frames, info.height, info.width, info.sample_rate) == (40, 48, 64, 16_000)
    assert info.fps == pytest.approx(fps, rel=1e-4)
    for index, frame in decode(path):
        np.testing.assert_allclose(frame.astype(int), frames[index].astype(int), atol=14)
        assert abs(frame.astype(int) - frames[index]).mean() < 3
    heard = load_audio(path, num_frames=info.num_frames)[: len(audio)]
    assert np.abs(heard[1000:-1000] - audio[1000 : len(heard) - 1000]).max() < 0.05
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_audio_beyond_the_last_frame_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    write_video(path, [np.zeros((16, 16, 3), np.uint8)] * 25, np.full(40_000, 0.5, np.float32))
    assert 16_000 <= len(load_audio(path)) <= 16_000 + 2048


def test_odd_sizes_grow_by_one(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    write_video(path, [np.full((33, 47, 3), 90, np.uint8)])
    assert (probe(path).height, probe(path).width) == (34, 48)
    frame = next(frame for _, frame in decode(path))
    np.testing.assert_allclose(frame.astype(int), 90, atol=3)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"old")

    def frames() -> Iterator[np.ndarray]:
        yield np.zeros((16, 16, 3), np.uint8)
        raise RuntimeError("the renderer failed")

    with pytest.raises(RuntimeError, match="the renderer failed"):
        write_video(path, frames())
    with pytest.raises(ValueError, match="no frame was written"), VideoWriter(path, height=16, width=16):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.mp4"]
    assert path.read_bytes() == b"old"


def test_the_writer_names_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with pytest.raises(ValueError, match="no frame to write"):
        write_video(path, [])
    with pytest.raises(ValueError, match="1×16 px"):
        VideoWriter(path, height=1, width=16)
    with pytest.raises(ValueError, match=r"audio has shape \(2, 640\)"):
        VideoWriter(path, height=16, width=16, audio=np.zeros((2, 640), np.float32))
    with pytest.raises(ValueError, match="sample rate 10000 Hz"):
        VideoWriter(path, height=16, width=16, audio=np.zeros(640, np.float32), sample_rate=10_000)
    frames = [np.zeros((16, 16, 3), np.uint8), np.zeros((16, 18, 3), np.uint8)]
    with pytest.raises(ValueError, match=r"frame 1: uint8 \(16, 18, 3\), expected uint8 \(16, 16, 3\)"):
        write_video(path, frames)
