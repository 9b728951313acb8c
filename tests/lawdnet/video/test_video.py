"""lawdnet.video: the 25 fps clock, orientation and colour, and what is refused."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from lawdnet.types import Rejected, RejectReason
from lawdnet.video import decode, probe, rgb
from lawdnet.video import reading as video
from lawdnet.video.clock import on_clock

RATES = [Fraction(24000, 1001), 24, 25, Fraction(30000, 1001), 30, 50, 60, Fraction(25, 2)]


def nearest(times: list[Fraction]) -> list[int]:
    """Compute the clock by brute force: the earliest of the nearest frames, for round(25·duration) ticks."""
    duration = times[-1] - times[0] + (times[-1] - times[0]) / (len(times) - 1)
    gaps = lambda tick: [abs(time - times[0] - Fraction(tick, 25)) for time in times]  # noqa: E731
    return [int(np.argmin(gaps(tick))) for tick in range(round(25 * duration))]


def decoded(path: Path) -> list[int]:
    """Return source indices in clock order, after checking that each frame shows its own index."""
    indices = []
    for index, frame in decode(path):
        shown_index = (frame[12, 4::8, 1] > 127) @ (1 << np.arange(8))
        assert shown_index == index
        indices.append(index)
    return indices


def reason_of(path: Path) -> tuple[RejectReason, str]:
    with pytest.raises(Rejected) as caught:
        probe(path)
    with pytest.raises(Rejected):
        list(decode(path))
    return caught.value.reason, caught.value.detail


@pytest.mark.parametrize("rate", RATES, ids=str)
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_every_rate_lands_on_the_clock_by_nearest_time(media: Any, rate: Fraction, name: str) -> None:
    times = [Fraction(index) / rate for index in range(97)]
    path = media.write(name, times=times)
    found, info = decoded(path), probe(path)
    if name == "clip.mkv":
        times = [Fraction(math.floor(time * 1000 + 0.5), 1000) for time in times]  # Matroska's milliseconds
    assert found == nearest(times)
    assert len(found) == info.num_frames == round(25 * 97 / rate)
    assert info.num_source_frames == 97
    assert info.fps == pytest.approx(float(rate), rel=1e-3)
    assert (info.height, info.width, info.sample_rate) == (48, 64, None)


def test_a_variable_rate_holds_frames_until_the_next(media: Any) -> None:
    steps = np.random.default_rng(0).choice([20, 33, 50, 200], 60)
    times = [Fraction(int(step), 1000) for step in np.cumsum([0, *steps])]
    path = media.write("clip.mp4", times=times)
    assert decoded(path) == nearest(times)
    assert probe(path).num_frames == len(nearest(times))


def test_time_starts_at_the_first_frame(media: Any) -> None:
    late = media.write("clip.mkv", times=[Fraction(3, 2) + Fraction(index, 25) for index in range(10)])
    assert decoded(late) == list(range(10))
    assert probe(late).num_frames == 10


def test_frames_cut_off_by_an_edit_list_do_not_count(media: Any) -> None:
    times = [Fraction(index - 10, 25) for index in range(50)]
    path = media.write("clip.mp4", times=times, options={"avoid_negative_ts": "disabled"})
    first = next(frame for _, frame in decode(path))
    assert media.read(first) == 10
    assert len(list(decode(path))) == probe(path).num_source_frames == 40


def test_one_frame_is_one_tick(media: Any) -> None:
    path = media.write("clip.mkv", times=[0])
    assert decoded(path) == [0]
    assert probe(path).num_frames == 1


def test_the_clock_refuses_broken_time_stamps() -> None:
    with pytest.raises(Rejected, match=r"no frame between 0\.04 s and 4000\.00 s"):
        list(on_clock([(Fraction(0), 0), (Fraction(1, 25), 1), (Fraction(4000), 2)]))


@pytest.mark.parametrize(
    ("codec", "name", "pix_fmt"),
    [
        ("libx264", "clip.avi", "yuv420p"),
        ("libx264", "clip.mpegts", "yuv420p"),
        ("libx264", "clip.h264", "yuv420p"),
        ("mpeg4", "clip.avi", "yuv420p"),
        ("libvpx", "clip.webm", "yuv420p"),
        ("libx264", "clip.mp4", "yuv420p10le"),
        ("mjpeg", "clip.mov", "yuvj420p"),
        ("png", "clip.mov", "rgba"),
        ("gif", "clip.gif", "rgb8"),
    ],
)
def test_containers_and_pixel_formats(media: Any, codec: str, name: str, pix_fmt: str) -> None:
    def rate_25(stream: Any) -> None:
        stream.codec_context.time_base = Fraction(1, 25)

    times = [Fraction(index, 25) for index in range(30)]
    path = media.write(name, times=times, codec=codec, pix_fmt=pix_fmt, setup=rate_25)
    assert decoded(path) == list(range(30))
    assert (probe(path).num_frames, probe(path).num_source_frames) == (30, 30)


def corner_frame() -> np.ndarray:
    frame = np.zeros((32, 64, 3), np.uint8)
    frame[:8, :16] = 255, 0, 0
    frame[:8, -16:] = 0, 255, 0
    return frame


@pytest.mark.parametrize("angle", [0, 90, 180, -90])
def test_frames_come_upright(media: Any, angle: int) -> None:
    path = media.write(
        "clip.mp4",
        times=[0, 0.04],
        frames=[corner_frame()],
        setup=lambda s: s.set_display_rotation(angle),
    )
    expected = np.rot90(corner_frame(), angle // 90)  # both count counterclockwise
    frame = next(frame for _, frame in decode(path))
    np.testing.assert_array_equal(frame, expected)
    assert frame.flags.c_contiguous
    assert (probe(path).height, probe(path).width) == expected.shape[:2]


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
        ((1, 0, 0, -1), lambda p: p[::-1]),
        ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
    ],
    ids=["mirror", "flip", "transpose"],
)
def test_mirrored_frames_are_mirrored_back(matrix: tuple[int, ...], expected: Any) -> None:
    a, b, c, d = (value << 16 for value in matrix)
    data = struct.pack("=9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    frame: Any = SimpleNamespace(side_data={"DISPLAYMATRIX": data})
    np.testing.assert_array_equal(rgb.upright(corner_frame(), rgb.turn_of(frame)), expected(corner_frame()))


COLOURS = [(255, 255, 255), (0, 0, 0), (200, 30, 40), (30, 180, 60), (40, 50, 210), (128, 128, 128)]


@pytest.mark.parametrize(
    ("height", "tag", "written_as", "full"),
    [
        (48, 1, Colorspace.ITU709, False),
        (48, 6, Colorspace.ITU601, False),
        (48, 9, Colorspace.BT2020, False),
        (48, 1, Colorspace.ITU709, True),
        (48, None, Colorspace.ITU601, False),
        (720, None, Colorspace.ITU709, False),
    ],
)
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le"])
def test_colours_follow_the_tagged_matrix_and_range(
    media: Any, height: int, tag: int | None, written_as: Colorspace, full: bool, pix_fmt: str
) -> None:
    colour_range = ColorRange.JPEG if full else ColorRange.MPEG

    def tags(stream: Any) -> None:
        if tag is not None:
            stream.codec_context.colorspace = tag
        stream.codec_context.color_range = colour_range

    patches = np.repeat(np.array(COLOURS, np.uint8), 16, axis=0)[None].repeat(height, 0)
    convert = {"dst_colorspace": written_as, "dst_color_range": colour_range}
    path = media.write(
        "clip.mkv",
        times=[0],
        frames=[patches],
        codec="libx264",
        pix_fmt=pix_fmt,
        setup=tags,
        convert=convert,
    )
    frame = next(frame for _, frame in decode(path))
    np.testing.assert_allclose(frame[height // 2, 8::16].astype(int), COLOURS, atol=3)


def test_empty_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"")
    assert reason_of(path)[0] is RejectReason.EMPTY_FILE
    path.write_text("hello\nworld\n" * 50)
    assert reason_of(path)[0] is RejectReason.NOT_A_VIDEO
    with pytest.raises(FileNotFoundError):
        probe(tmp_path / "missing.mp4")


def test_a_playlist_cannot_open_other_files(media: Any) -> None:
    clip = media.write("clip.mp4", times=[0, 0.04])
    playlist = media.folder / "playlist.mp4"
    playlist.write_text(f"ffconcat version 1.0\nfile {clip}\n")
    assert reason_of(playlist)[0] is RejectReason.NOT_A_VIDEO
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.mp4\n#EXT-X-ENDLIST\n")
    assert reason_of(playlist)[0] is RejectReason.NOT_A_VIDEO


def test_audio_alone_and_cover_art_are_no_video(media: Any) -> None:
    audio = np.zeros((1, 16_000), np.float32)
    assert reason_of(media.write("audio.wav", audio=audio))[0] is RejectReason.NO_VIDEO_STREAM
    path = media.folder / "cover.mp3"
    cover = media.write("cover.mov", times=[0], codec="png")
    with av.open(str(path), "w") as output, av.open(str(cover)) as source:
        audio = output.add_stream("mp3", rate=16_000, layout="mono")
        cover = output.add_stream_from_template(source.streams.video[0])
        cover.disposition = av.stream.Disposition.attached_pic
        packet = next(source.demux(video=0))
        packet.stream = cover
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        output.mux(audio.encode(frame))
        output.mux(packet)
        output.mux(audio.encode())
    with av.open(str(path)) as check:
        assert len(check.streams.video) == 1
    assert reason_of(path)[0] is RejectReason.NO_VIDEO_STREAM


def test_a_truncated_file_is_damaged(media: Any) -> None:
    times = [Fraction(index, 25) for index in range(100)]
    noise = np.random.default_rng(0).integers(0, 255, (100, 48, 64, 3), dtype=np.uint8)
    cases = [({}, "looks truncated"), ({"movflags": "+faststart"}, "of 100 frames")]
    for options, expected in cases:
        whole = media.write("whole.mp4", times=times, frames=list(noise), options=options)
        assert probe(whole).num_source_frames == 100
        cut = media.folder / "cut.mp4"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
        reason, detail = reason_of(cut)
        assert reason is RejectReason.DAMAGED
        assert expected in detail


@pytest.mark.parametrize(("codec", "length"), [("libx264", 200), ("libx264", 20_000), ("libvpx-vp9", 200)])
def test_garbage_in_the_middle_is_reported_with_its_position(media: Any, codec: str, length: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 48, 64, 3), dtype=np.uint8)
    times = [Fraction(index, 25) for index in range(60)]
    path = media.write("clip.mp4", times=times, frames=list(noise), codec=codec, pix_fmt="yuv420p")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + length] = np.random.default_rng(1).bytes(length)
    path.write_bytes(content)
    with pytest.raises(Rejected, match=r"decoding stopped at frame [23]\d of about 60") as caught:
        list(decode(path))
    assert caught.value.reason is RejectReason.DAMAGED


class FakePacket:
    """A packet that promises a frame at pts and decodes to that frame, or to nothing."""

    size, is_discard = 1, False

    def __init__(self, pts: int, *, shown: bool = True) -> None:
        self.pts, self.shown = pts, shown

    def decode(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(pts=self.pts, is_corrupt=False)] if self.shown else []


def fake_frames(packets: list[FakePacket]) -> Iterator[tuple[Fraction, Any]]:
    stream: Any = SimpleNamespace(
        time_base=Fraction(1, 25), average_rate=Fraction(25), frames=len(packets), index_entries=[]
    )
    container: Any = SimpleNamespace(demux=lambda _: packets)
    return video._frames(container, stream)


@pytest.mark.parametrize(
    ("hidden", "message"),
    [({4}, "frame 4 of about 10: a frame"), ({8, 9}, "frame 8 of about 10: the last"), ({0, 1}, None)],
)
def test_a_frame_that_the_decoder_leaves_out_is_damage(hidden: set[int], message: str | None) -> None:
    packets = [FakePacket(pts, shown=pts not in hidden) for pts in range(10)]
    if message is None:  # nothing is missing before the first frame: the recording starts there
        assert [time for time, _ in fake_frames(packets)] == [Fraction(index, 25) for index in range(8)]
        return
    with pytest.raises(Rejected, match=message):
        list(fake_frames(packets))


def test_unsteady_time_stamps_do_not_shift_later_frames() -> None:
    packets = [FakePacket(pts) for pts in (0, 1, 2, 2, 4, 3, 6, 7)]
    times = [25 * time for time, _ in fake_frames(packets)]
    assert times == [0, 1, 2, 2, 4, 4, 6, 7]
    ticks = [index for index, _ in on_clock((time / 25, None) for time in times)]
    assert ticks == [0, 1, 2, 3, 4, 5, 6, 7]


def test_time_stamps_that_start_again_are_damage() -> None:
    packets = [FakePacket(pts) for pts in (0, 1, 2, 3, 4, 0, 1, 2)]
    with pytest.raises(Rejected, match="stopped at frame 5 of about 8: the time stamps go back"):
        list(fake_frames(packets))


def test_declared_lengths_are_not_believed(media: Any) -> None:
    path = media.write("clip.mp4", times=[Fraction(index, 25) for index in range(10)])
    content = bytearray(path.read_bytes())
    at = content.index(b"mvhd") + 20
    content[at : at + 4] = b"\x7f\xff\xff\xff"
    path.write_bytes(content)
    assert (probe(path).num_frames, len(decoded(path))) == (10, 10)


def test_a_frame_that_changes_size_is_damage(media: Any) -> None:
    small = media.write("small.h264", times=[0, 0.04], codec="libx264", pix_fmt="yuv420p")
    large = media.write("large.h264", times=[0, 0.04], codec="libx264", pix_fmt="yuv420p", frames=[corner_frame()])
    path = media.folder / "both.h264"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    with pytest.raises(Rejected, match="frame size changes at frame 2"):
        list(decode(path))
