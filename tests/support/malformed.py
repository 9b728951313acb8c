"""A corpus of inputs that something is wrong with, or odd, each made from one good drawn clip.

What `tests/pipelines/build/test_build_bad_inputs.py` has (no face, no sound, no bytes, …) is not repeated here.

`CORPUS` is name → (expected outcome, maker). The outcome is `accepted` or reasons of the closed list, several joined
by `|`, or `any`: accepted or any reason but `internal_error`. A maker gets the good clip (its CSV beside it) and the
path to write.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from lawdnet.audio.io import load_audio
from lawdnet.landmarks.openface import read_csv, write_csv
from lawdnet.video import decode
from tests.support.malformed_csv import CSVS, Change, change_csv
from tests.support.media import Media

Maker = Callable[[Path, Path], object]


@cache
def content(drawn: Path) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Pictures, 16 kHz wave and points of the good clip."""
    pictures = [picture for _, picture in decode(drawn)]
    return pictures, load_audio(drawn, num_frames=len(pictures)), read_csv(drawn.with_suffix(".csv")).points_T68x2


def with_csv(drawn: Path, to: Path) -> None:
    shutil.copy(drawn.with_suffix(".csv"), to.with_suffix(".csv"))


def edited(change: Callable[[bytearray], object], drawn: Path, to: Path) -> None:
    """The file with other bytes: what `change` returns, or what it has made of them."""
    data = bytearray(drawn.read_bytes())
    changed = change(data)
    to.write_bytes(changed if isinstance(changed, bytes | bytearray) else data)
    with_csv(drawn, to)


def salted(drawn: Path, to: Path, change: Change = lambda cells: cells) -> None:
    """The clip with bytes of its own (an MP4 box that players skip says the name), and with a changed CSV."""
    name = os.fsencode(to.name)
    to.write_bytes(drawn.read_bytes() + struct.pack(">I4s", 8 + len(name), b"free") + name)
    good = drawn.with_suffix(".csv").read_text()
    to.with_suffix(".csv").write_bytes(change_csv(good, change))


def cut(share: float) -> Maker:
    return partial(edited, lambda data: data[: int(len(data) * share)])


def zeroed(start: float, stop: float) -> Maker:
    return partial(edited, lambda data: data.__setitem__(*_zeros(data, start, stop)))


def _zeros(data: bytearray, start: float, stop: float) -> tuple[slice, bytes]:
    first, last = int(len(data) * start), int(len(data) * stop)
    return slice(first, last), bytes(last - first)


def flipped(seed: int, count: int, share: float = 1.0) -> Maker:
    """Some bits of the first `share` of the file are turned over."""

    def flip(data: bytearray) -> None:
        draw = np.random.default_rng(seed)
        for place in draw.integers(0, int(len(data) * share), count):
            data[place] ^= 1 << draw.integers(8)

    return partial(edited, flip)


def patched(box: bytes, offset: int, value: bytes) -> Maker:
    """Other bytes at an offset after the first box of this name (that of the pictures)."""

    def patch(data: bytearray) -> None:
        at = data.index(box) + len(box) + offset
        data[at : at + len(value)] = value

    return partial(edited, patch)


def film(
    drawn: Path,
    to: Path,
    *,
    change: Callable[[np.ndarray], np.ndarray] = lambda picture: picture,
    size: tuple[int, int] | None = None,
    frames: int = 75,
    start: float = 0.0,
    scale: Callable[[np.ndarray], np.ndarray] = lambda wave: wave,
    **options: Any,
) -> None:
    """The clip encoded anew; `size` (height, width) stretches pictures and points alike."""
    pictures, wave, points = content(drawn)
    height, width = size or pictures[0].shape[:2]
    if size:
        pictures = [cv2.resize(picture, (width, height)) for picture in pictures[:frames]]
        points = points * np.float32([width / 128, height / 160])
    rate = options.setdefault("audio_rate", 16_000)
    at = np.arange(round(len(wave) * rate / 16_000)) * 16_000 / rate
    sound = scale(np.interp(at, np.arange(len(wave)), wave).astype(np.float32))
    options = {"codec": "libx264", "pix_fmt": "yuv420p", "audio_codec": "aac"} | options
    Media(to.parent).write(
        to.name,
        times=[start + Fraction(index, 25) for index in range(frames)],
        frames=[np.ascontiguousarray(change(picture)) for picture in pictures[:frames]],
        audio=sound[None],
        audio_start=options.pop("audio_start", start),
        **options,
    )
    write_csv(to.with_suffix(".csv"), points[:frames], 25)


def stored(name: str, **options: Any) -> Maker:
    """`film` in the container that `name` says, under the name it is asked for."""

    def make(drawn: Path, to: Path) -> None:
        other = to.with_name(f"{to.stem} {name}")
        film(drawn, other, **options)
        other.rename(to)
        other.with_suffix(".csv").rename(to.with_suffix(".csv"))

    return make


def clock_of_25(stream: Any) -> None:
    stream.codec_context.time_base = Fraction(1, 25)


def interlaced(stream: Any) -> None:
    stream.codec_context.options = {"crf": "0", "flags": "+ildct+ilme", "x264-params": "tff=1"}


def wide_pixels(stream: Any) -> None:
    stream.codec_context.sample_aspect_ratio = Fraction(4, 3)


def rotated(angle: int) -> Maker:
    """Stored turned, with the tag that turns it back."""
    return partial(
        film,
        change=lambda picture: np.rot90(picture, -angle // 90),
        setup=lambda stream: stream.set_display_rotation(angle),
    )


def joined(first: dict[str, Any], second: dict[str, Any], name: str = "part.mpegts") -> Maker:
    """Two recordings one after the other in one file."""

    def make(drawn: Path, to: Path) -> None:
        data = b""
        for options in (first, second):
            part = to.with_name(f"{to.stem} {name}")
            film(drawn, part, **options)
            data += part.read_bytes()
            part.unlink()
            part.with_suffix(".csv").unlink()
        to.write_bytes(data)
        with_csv(drawn, to)

    return make


def broken_after(share: float, maker: Maker) -> Maker:
    def make(drawn: Path, to: Path) -> None:
        maker(drawn, to)
        to.write_bytes(to.read_bytes()[: int(to.stat().st_size * share)])

    return make


def many_streams(drawn: Path, to: Path) -> None:
    """Two films, three sounds, subtitles and a cover picture."""
    with av.open(str(drawn)) as source, av.open(str(to), "w", format="matroska") as output:
        film_in, sound_in = source.streams.video[0], source.streams.audio[0]
        films = [output.add_stream_from_template(film_in) for _ in range(2)]
        sounds = [output.add_stream_from_template(sound_in) for _ in range(3)]
        text = output.add_mux_stream("subrip")
        packets = [(packet, films if packet.stream is film_in else sounds) for packet in source.demux() if packet.size]
        for packet, streams in packets:
            for stream in streams:
                copy = av.Packet(bytes(packet))
                copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
                copy.is_keyframe, copy.stream = packet.is_keyframe, stream
                output.mux(copy)
        line = av.Packet(b"hello")
        line.pts = line.dts = 0
        line.duration, line.time_base, line.stream = 1000, Fraction(1, 1000), text
        output.mux(line)
    with_csv(drawn, to)


def no_packets(drawn: Path, to: Path) -> None:
    """A header that announces pictures, and none."""
    with av.open(str(to), "w", format="matroska") as output:
        output.add_stream_from_template(av.open(str(drawn)).streams.video[0])
        output.start_encoding()


def sound_alone(drawn: Path, to: Path) -> None:
    Media(to.parent).write(to.name, audio=content(drawn)[1][None], audio_codec="aac")
    with_csv(drawn, to)


def image(suffix: str, drawn: Path, to: Path) -> None:
    to.write_bytes(cv2.imencode(suffix, content(drawn)[0][0])[1].tobytes())


def giant(drawn: Path, to: Path) -> None:
    """A true picture of 16 000 × 16 000 px in 32 kB: a gigabyte when it is decoded."""
    side = 16_000
    deflate = zlib.compressobj()
    data = b"".join(deflate.compress(bytes(side // 8 + 1)) for _ in range(side)) + deflate.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    png = b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    with av.open(str(to), "w", format="mov") as output:
        stream = output.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "monob"
        packet = av.Packet(b"\x89PNG\r\n\x1a\n" + png)
        packet.pts = packet.dts = 0
        packet.time_base, packet.stream = Fraction(1, 25), stream
        output.mux(packet)


def zipped(drawn: Path, to: Path) -> None:
    with zipfile.ZipFile(to, "w") as archive:
        archive.write(drawn, "clip.mp4")


def listening(drawn: Path, to: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(to.parent, os.O_RDONLY)  # the whole path may be too long for a socket's address
        try:
            server.bind(f"/proc/self/fd/{here}/{to.name}")
        finally:
            os.close(here)


def instead_of_csv(place: Callable[[Path], object]) -> Maker:
    def make(drawn: Path, to: Path) -> None:
        salted(drawn, to)
        to.with_suffix(".csv").unlink()
        place(to.with_suffix(".csv"))

    return make


def spoilt(value: float) -> Callable[[np.ndarray], np.ndarray]:
    """Sound with a tenth of a second of this value in every half."""
    return lambda wave: np.where(np.arange(len(wave)) % 8000 < 1600, np.float32(value), wave)


def text(value: str | bytes) -> Maker:
    return lambda drawn, to: to.write_bytes(value if isinstance(value, bytes) else value.encode())


PCM = {"audio_codec": "pcm_f32le"}
FRAGMENTS = {"options": {"movflags": "+frag_keyframe+empty_moov+default_base_moof"}}

BYTES: dict[str, tuple[str, Maker]] = {
    **{f"cut at {share}.mp4": ("damaged", cut(share)) for share in (0.02, 0.3, 0.5, 0.8, 0.97)},
    "cut after some bytes.mp4": ("damaged|no_video_stream", cut(0.001)),
    "cut in the last sound.mp4": ("accepted|damaged", cut(0.999)),
    "head zeroed.mp4": ("not_a_video|damaged", zeroed(0, 0.01)),
    "middle zeroed.mp4": ("damaged", zeroed(0.4, 0.6)),
    "tail zeroed.mp4": ("any", zeroed(0.95, 1)),
    "all zeroed.mp4": ("not_a_video", zeroed(0, 1)),
    "second half.mp4": ("not_a_video", partial(edited, lambda data: data[len(data) // 2 :])),
    "twice.mp4": ("any", partial(edited, lambda data: data + data)),
    **{f"flipped {seed}.mp4": ("any", flipped(seed, 1 + 3 * seed)) for seed in range(8)},
    **{f"flipped header {seed}.mp4": ("any", flipped(seed, 4, 0.08)) for seed in range(8, 20)},
    "noise.mp4": ("not_a_video|no_video_stream|damaged", text(np.random.default_rng(0).bytes(20_000))),
    "one byte.mp4": ("not_a_video", text(b"\0")),
    "duration of the film.mp4": ("accepted", patched(b"mvhd", 16, b"\x7f\xff\xff\xff")),
    "duration of the track.mp4": ("accepted", patched(b"tkhd", 20, b"\xff\xff\xff\xff")),
    "duration of the media.mp4": ("accepted", patched(b"mdhd", 16, b"\xff\xff\xff\xff")),
    "duration of the edit.mp4": ("any", patched(b"elst", 8, b"\x7f\xff\xff\xff")),
    "no duration.mp4": ("any", patched(b"stts", 12, b"\0\0\0\0")),
    "huge gaps.mp4": ("damaged|landmark_count", patched(b"stts", 12, b"\x00\xff\xff\xff")),
    "time runs back.mp4": ("any", patched(b"stts", 12, b"\xff\xff\xfe\x00")),
    "no time scale.mp4": ("any", patched(b"mdhd", 12, bytes(4))),
    "sample count.mp4": ("damaged|not_a_video", patched(b"stsz", 8, b"\xff\xff\xff\xff")),
    "box sizes.mp4": ("any", patched(b"stsz", 12, b"\x7f\xff\xff\xff" * 20)),
}

FOREIGN: dict[str, tuple[str, Maker]] = {
    "jpg.mp4": ("no_landmarks|no_audio|too_short", partial(image, ".jpg")),
    "png.mp4": ("no_landmarks|no_audio|too_short", partial(image, ".png")),
    "json.mp4": ("not_a_video", text('{"video": ["not", "here"]}')),
    "zip.mp4": ("not_a_video", zipped),
    "srt.mp4": ("no_video_stream", text("1\n00:00:00,000 --> 00:00:02,000\nHello\n\n" * 3)),
    "sdp.mp4": ("not_a_video", text("v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n")),
    "playlist.mp4": ("not_a_video", text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/x.ts\n#EXT-X-ENDLIST\n")),
    "mp4.avi": ("accepted", salted),
    "mkv.mp4": ("accepted", stored("real.mkv")),
    "sound.mp4": ("no_video_stream", sound_alone),
    "header only.mkv": ("damaged|not_a_video", no_packets),
}

PICTURES: dict[str, tuple[str, Maker]] = {
    "one frame.mp4": ("too_short", partial(film, frames=1)),
    "1x1.mkv": ("no_face|no_landmarks", partial(film, size=(1, 1), codec="ffv1", pix_fmt="gray")),
    "2x2.mp4": ("no_face|no_landmarks", partial(film, size=(2, 2))),
    "a line.mp4": ("no_face|face_leaves_picture", partial(film, size=(160, 2))),
    "8k.mov": (
        "too_short",
        partial(film, size=(4320, 7680), frames=2, codec="mjpeg", pix_fmt="yuvj420p", setup=clock_of_25),
    ),
    "giant.mov": ("damaged", giant),
    **{f"rotated {angle}.mp4": ("accepted", rotated(angle)) for angle in (90, 180, -90)},
    "odd size.mp4": ("accepted", partial(film, size=(161, 129), codec="libx264", pix_fmt="yuv444p")),
    "wide pixels.mp4": ("accepted", partial(film, setup=wide_pixels)),
    "10 bit.mp4": ("accepted", partial(film, pix_fmt="yuv420p10le")),
    "4:2:2.mp4": ("accepted", partial(film, pix_fmt="yuv422p")),
    "grey.mp4": ("accepted", partial(film, pix_fmt="gray")),
    "grey 16 bit.mkv": ("accepted", partial(film, codec="ffv1", pix_fmt="gray16le")),
    "rgb.mkv": ("accepted", partial(film, codec="libx264rgb", pix_fmt="rgb24")),
    "interlaced.mp4": ("accepted", partial(film, setup=interlaced)),
    "alpha prores.mov": ("accepted", partial(film, codec="prores_ks", pix_fmt="yuva444p10le", setup=clock_of_25)),
    "alpha qtrle.mov": ("accepted", partial(film, codec="qtrle", pix_fmt="argb", setup=clock_of_25)),
    "alpha png.mov": ("accepted", partial(film, codec="png", pix_fmt="rgba", setup=clock_of_25)),
    "alpha vp9.webm": (
        "accepted",
        partial(film, codec="libvpx-vp9", pix_fmt="yuva420p", audio_codec="libopus", audio_rate=48_000),
    ),
    "size changes.ts": ("damaged", joined({"frames": 40}, {"frames": 35, "start": 1.6, "size": (80, 64)})),
}

TIMES: dict[str, tuple[str, Maker]] = {
    "starts after a day.mkv": ("accepted", partial(film, start=86_400.0)),
    "starts after a day.ts": ("accepted", stored("real.mpegts", start=86_400.0)),
    "starts again.ts": ("damaged", joined({"frames": 40}, {"frames": 35})),
    "hole of an hour.ts": ("damaged", joined({"frames": 40}, {"frames": 35, "start": 3600.0})),
    "sound a day late.mkv": ("no_audio|audio_too_short", partial(film, audio_start=86_400.0)),
    "sound late.mkv": ("accepted", partial(film, audio_start=0.6)),
    "sound very late.mkv": ("audio_too_short", partial(film, audio_start=1.2)),
    "sound ends early.mkv": ("accepted", partial(film, scale=lambda wave: wave[:-9600])),
    "sound ends very early.mkv": ("audio_too_short", partial(film, scale=lambda wave: wave[:-19_200])),
    "pictures a day late.mkv": ("no_audio|audio_too_short", partial(film, start=86_400.0, audio_start=0.0)),
    "fragments.mp4": ("accepted", partial(film, **FRAGMENTS)),
    "fragments cut.mp4": ("damaged|landmark_count", broken_after(0.6, partial(film, **FRAGMENTS))),
    "mkv cut.mkv": ("damaged|landmark_count", broken_after(0.6, film)),
    "ts cut.ts": ("damaged|landmark_count", broken_after(0.6, stored("real.mpegts"))),
    "many streams.mkv": ("accepted", many_streams),
}

SOUNDS: dict[str, tuple[str, Maker]] = {
    "sound nan.mkv": ("accepted", partial(film, scale=spoilt(np.nan), **PCM)),
    "sound inf.mkv": ("accepted", partial(film, scale=spoilt(np.inf), **PCM)),
    "sound nan 44100.mkv": ("accepted", partial(film, scale=spoilt(np.nan), audio_rate=44_100, **PCM)),
    "sound clips.mkv": ("accepted", partial(film, scale=lambda wave: wave * 1000, **PCM)),
    "sound all nan.mkv": ("accepted", partial(film, scale=lambda wave: wave * np.float32(np.nan), **PCM)),
    "sound 192 kHz.mkv": ("accepted", partial(film, audio_rate=192_000, audio_codec="pcm_s24le")),
    "one sample.mkv": ("audio_too_short", partial(film, scale=lambda wave: wave[:1], **PCM)),
    "rate changes.ts": (
        "any",
        joined({"frames": 40, "audio_rate": 44_100}, {"frames": 35, "start": 1.6, "audio_rate": 48_000}),
    ),
}

STRANGE = ["new\nline", "'quo\"tes`", " spaces  ", "n" * 251, "说话\u202e😀", "-i %d$(x);", os.fsdecode(b"\xff\xfe")]
NAMES: dict[str, tuple[str, Maker]] = {f"{name}.mp4": ("accepted", salted) for name in STRANGE}

PLACES: dict[str, tuple[str, Maker]] = {
    "folder.mp4": ("unreadable", lambda drawn, to: to.mkdir()),
    "pipe.mp4": ("unreadable", lambda drawn, to: os.mkfifo(to)),
    "socket.mp4": ("unreadable", listening),
    "loop.mp4": ("unreadable", lambda drawn, to: to.symlink_to(to.name)),
    "csv is a pipe.mp4": ("no_landmarks", instead_of_csv(os.mkfifo)),
    "csv is a folder.mp4": ("no_landmarks", instead_of_csv(Path.mkdir)),
    "csv is endless.mp4": ("no_landmarks", instead_of_csv(lambda path: path.symlink_to("/dev/zero"))),
    "csv is a dangling link.mp4": ("no_landmarks", instead_of_csv(lambda path: path.symlink_to("nowhere"))),
    "endless.mp4": ("unreadable", lambda drawn, to: to.symlink_to("/dev/zero")),
}

CORPUS = BYTES | FOREIGN | PICTURES | TIMES | SOUNDS | NAMES | PLACES
CORPUS |= {f"csv {name}.mp4": (outcome, partial(salted, change=change)) for name, (outcome, change) in CSVS.items()}
