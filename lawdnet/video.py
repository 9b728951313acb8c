"""Pictures: probe a file, decode it to RGB on the 25 fps clock, encode and mux.

Shape letters: H W picture height and width; arrays are RGB uint8.
"""

from __future__ import annotations

import heapq
import itertools
import os
import struct
import uuid
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from lawdnet.media import demux, find_video, open_media
from lawdnet.types import FPS, SAMPLE_RATE, Float32, Rejected, RejectReason, UInt8, Video

MAX_GAP_SECONDS = 10
"""Longest hold of one picture that is believed; beyond it the time stamps are broken."""
UNTAGGED = 2
"""AVCOL_SPC_UNSPECIFIED: the file does not name its YUV matrix."""
BT709 = 1
"""The value of BT.709 in FFmpeg's enumerations of colour spaces, primaries and transfer curves."""
AAC_FRAME = 1024
"""Samples in one packet of AAC."""
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)

T = TypeVar("T")


def picture_start(path: Path) -> Fraction | None:
    """Container time in seconds of the first picture that decodes; None where there is no video stream."""
    with open_media(path) as container:
        stream = find_video(container)
        if stream is None:
            return None
        frame = next(_pictures(container, stream))[1]
        return _seconds(stream, frame.pts or 0)


def probe(path: Path) -> Video:
    """What a file holds, from its packets and first picture: the rest is not decoded.

    Args:
        path: any container and codec that FFmpeg reads; `video_id` stays empty.

    Raises:
        Rejected: EMPTY_FILE, NOT_A_VIDEO, NO_VIDEO_STREAM or DAMAGED.
    """
    with open_media(path) as container:
        stream = _require_video(container)
        first = next(_pictures(container, stream))[1]
        height, width = _upright(np.empty((first.height, first.width, 0), np.uint8), first).shape[:2]
        audio = next(iter(container.streams.audio), None)
        sample_rate = audio.codec_context.sample_rate if audio and audio.codec_context else None
    with open_media(path) as container:
        stream = _require_video(container)
        times = _packet_times(container, stream, first)
        num_frames = sum(1 for _ in on_clock((time, None) for time in times))
        rate = _rate(stream)
    fps = Fraction(len(times) - 1) / times[-1] if len(times) > 1 else rate
    return Video(
        path=path,
        num_frames=num_frames,
        num_source_frames=len(times),
        height=height,
        width=width,
        fps=float(fps),
        sample_rate=sample_rate,
    )


def decode(path: Path, *, threads: int = 2) -> Iterator[tuple[int, UInt8]]:
    """The pictures of a file on the 25 fps clock, streamed.

    Tick k shows the source frame nearest in time to k/25 s, where time 0 is the first picture; at a tie the
    earlier one. The last picture lasts one average frame, so a file of d seconds gives round(25·d) ticks.

    Pixels are those of the file: a tag that asks for stretching them (sample aspect ratio) is ignored.

    Args:
        path: any container and codec that FFmpeg reads.
        threads: decoder threads; each holds a few pictures.

    Yields:
        (source frame index, upright RGB picture H×W×3). A picture shown twice is one array: do not
            write into it.

    Raises:
        Rejected: as `probe`, and DAMAGED where pictures are missing or do not decode.
    """
    with open_media(path) as container:
        stream = _require_video(container)
        stream.thread_type, stream.codec_context.thread_count = "AUTO", threads
        to_rgb = VideoReformatter()
        shown, picture = -1, np.empty((0, 0, 3), np.uint8)
        for index, frame in on_clock(_pictures(container, stream)):
            if index != shown:
                size = picture.shape
                shown, picture = index, _rgb(frame, to_rgb)
                if index and picture.shape != size:
                    raise Rejected(RejectReason.DAMAGED, f"the picture size changes at frame {index}")
            yield index, picture


def on_clock(timed: Iterable[tuple[Fraction, T]]) -> Iterator[tuple[int, T]]:
    """Put items with rising times (s, the first at 0) on the 25 fps clock by nearest time.

    Yields:
        (position of the item in the input, item) once per tick.

    Raises:
        Rejected: DAMAGED at a gap of more than `MAX_GAP_SECONDS`.
    """
    tick, index, last = 0, -1, None
    for index, (time, item) in enumerate(timed):
        if last is not None:
            if time - last[0] > MAX_GAP_SECONDS:
                detail = f"no picture between {float(last[0]):.2f} s and {float(time):.2f} s"
                raise Rejected(RejectReason.DAMAGED, detail)
            while 2 * tick <= FPS * (last[0] + time):
                yield index - 1, last[1]
                tick += 1
        last = time, item
    if last is not None:
        average = last[0] / index if index else Fraction(1, FPS)
        for _ in range(tick, round(FPS * (last[0] + average))):
            yield index, last[1]


def _require_video(container: InputContainer) -> VideoStream:
    stream = find_video(container)
    if stream is None:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise Rejected(RejectReason.NO_VIDEO_STREAM, f"the file holds {kinds} but no moving pictures")
    if stream.codec_context is None:
        raise Rejected(RejectReason.NO_VIDEO_STREAM, "the video codec is unknown")
    return stream


def _rate(stream: VideoStream) -> Fraction:
    """Frames per second as declared; FPS where nothing is."""
    return stream.average_rate or stream.guessed_rate or Fraction(FPS)


def _seconds(stream: VideoStream, stamp: int) -> Fraction:
    return stamp * (stream.time_base or Fraction(1))


def _packet_times(container: InputContainer, stream: VideoStream, first: VideoFrame) -> list[Fraction]:
    """Seconds after the first picture of every picture in the packets, rising."""
    packets = [(packet.pts, packet.is_discard) for packet in demux(container, stream) if packet.size]
    _check_whole(stream, len(packets))
    shown = [pts for pts, is_discard in packets if not is_discard]
    stamps = sorted(pts for pts in shown if pts is not None)
    if first.pts is None or len(stamps) < len(shown):
        return [index / _rate(stream) for index in range(len(shown))]
    return [_seconds(stream, pts - first.pts) for pts in stamps if pts >= first.pts]


def _check_whole(stream: VideoStream, packets: int) -> None:
    """MP4 and AVI list every picture in an index: the file is cut where fewer arrive."""
    listed = sum(entry.size > 0 for entry in stream.index_entries)
    if packets < listed:
        detail = f"the file looks cut off: {packets} of {listed} pictures are there"
        raise Rejected(RejectReason.DAMAGED, detail)


def _pictures(container: InputContainer, stream: VideoStream) -> Iterator[tuple[Fraction, VideoFrame]]:
    """Every picture with its time in s after the first, rising.

    What does not decode before the first picture (a recording that starts between key frames) is passed over;
    after it, an error, or a picture that the packets promise and the decoder leaves out, is damage.
    """
    origin, time, count, packets = 0, -1 / _rate(stream), 0, 0
    promised: list[int] = []
    for packet in demux(container, stream):
        packets += bool(packet.size)
        if packet.size and packet.pts is not None and not packet.is_discard:
            heapq.heappush(promised, packet.pts)
        try:
            frames = packet.decode()
        except FFmpegError as error:
            if count:
                raise _stopped(stream, count, packets, str(error.strerror)) from error
            continue
        for frame in frames:
            if frame.is_corrupt and count:
                raise _stopped(stream, count, packets, "the picture is broken")
            if frame.is_corrupt:
                continue
            origin = frame.pts or 0 if count == 0 else origin
            step = 1 / _rate(stream)
            stamp = time + step if frame.pts is None else _seconds(stream, frame.pts - origin)
            if _left_out(promised, frame.pts) and count and stamp - time > 1.5 * step:
                raise _stopped(stream, count, packets, "a picture does not decode")
            time = stamp if stamp > time else time + step
            yield time, frame
            count += 1
    _check_whole(stream, packets)
    if count == 0:
        raise Rejected(RejectReason.DAMAGED, "no picture could be decoded")
    if promised and _seconds(stream, max(promised) - origin) - time > 0.75 / _rate(stream):
        raise _stopped(stream, count, packets, "the last pictures do not decode")


def _left_out(promised: list[int], pts: int | None) -> int:
    """Take the promised stamps up to pts off the heap; how many of them lie before pts."""
    count = 0
    while promised and pts is not None and promised[0] <= pts:
        count += heapq.heappop(promised) < pts
    return count


def _stopped(stream: VideoStream, count: int, packets: int, why: str) -> Rejected:
    about = stream.frames or packets
    return Rejected(RejectReason.DAMAGED, f"decoding stopped at frame {count} of about {about}: {why}")


def _rgb(frame: VideoFrame, reformatter: VideoReformatter) -> UInt8:
    """An upright H×W×3 picture, converted with the matrix and range that the frame is tagged with.

    Untagged pictures larger than standard definition are taken as BT.709, as players do.
    """
    untagged_hd = frame.colorspace == UNTAGGED and (frame.width >= 1280 or frame.height > 576)
    matrix = Colorspace.ITU709 if untagged_hd else None
    picture = reformatter.reformat(frame, format="rgb24", src_colorspace=matrix, threads=1).to_ndarray()
    return np.ascontiguousarray(_upright(picture.astype(np.uint8, copy=False), frame))


def _upright(picture: UInt8, frame: VideoFrame) -> UInt8:
    """Turn and mirror a picture as the frame's display matrix asks (to the nearest quarter turn).

    The matrix (libavutil/display.h), a b u c d v x y w, takes pixel (x, y) to (a·x + c·y, b·x + d·y).
    """
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return picture
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data))
    if abs(b) > abs(a):
        picture, a, d = picture.swapaxes(0, 1), c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


class VideoWriter:
    """Writes an MP4 (H.264 yuv420p, BT.709, AAC) as a stream of pictures; use it as a context manager.

    The file appears under its name when the block ends well, and not at all when it does not. H.264 (yuv420p)
    needs even sizes: an odd height or width grows by one repeated row or column.

    Args:
        path: any file name; missing folders are made, an existing file is replaced.
        height, width: of the pictures, px.
        audio: mono wave in [-1, 1]; what goes beyond the last picture is left out.
        sample_rate: of the wave, Hz.
        fps: pictures per second.
        crf: quality from 0 (lossless) to 51; 18 is visually lossless.
        preset: x264's trade of time for size.

    Raises:
        ValueError: a size below 2 px, a wave that is not one-dimensional or of a rate that AAC does not know, or no
            picture written.
    """

    def __init__(
        self,
        path: Path,
        *,
        height: int,
        width: int,
        audio: Float32 | None = None,
        sample_rate: int = SAMPLE_RATE,
        fps: float | Fraction = FPS,
        crf: int = 18,
        preset: str = "fast",
    ) -> None:
        if min(height, width) < 2:
            raise ValueError(f"{path}: pictures of {height}×{width} px cannot be encoded, 2×2 is the least")
        if audio is not None and audio.ndim != 1:
            raise ValueError(f"{path}: audio has shape {audio.shape}, expected one dimension (mono)")
        if audio is not None and sample_rate not in AAC_RATES:
            raise ValueError(f"{path}: sample rate {sample_rate} Hz, expected one of {AAC_RATES}")
        self.path, self.height, self.width = path, height, width
        self.num_frames = 0
        self._audio = None if audio is None else np.clip(audio, -1, 1, dtype=np.float32)
        self._sample_rate, self._fps = sample_rate, Fraction(fps).limit_denominator(1001)
        self._options = {"crf": str(crf), "preset": preset}
        self._heard = 0

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = self.path.absolute().with_name(f".{uuid.uuid4().hex}.tmp")
        # +faststart opens the file again by its name, so this is no file object; an absolute path is never
        # taken for a protocol.
        self._container = av.open(str(self._partial), "w", format="mp4", container_options={"movflags": "+faststart"})
        self._video = self._container.add_stream("libx264", rate=self._fps, options=self._options)
        self._video.width, self._video.height = self.width + self.width % 2, self.height + self.height % 2
        self._video.pix_fmt = "yuv420p"
        context = self._video.codec_context
        context.color_range, context.colorspace = ColorRange.MPEG, BT709
        context.color_primaries = context.color_trc = BT709
        self._to_yuv = VideoReformatter()
        if self._audio is not None:
            self._sound = self._container.add_stream("aac", rate=self._sample_rate, layout="mono")
        return self

    def write(self, frame_HW3: UInt8) -> None:
        """Add a picture (uint8 RGB of the writer's size); raises ValueError for any other array."""
        if frame_HW3.shape != (self.height, self.width, 3) or frame_HW3.dtype != np.uint8:
            got = f"{frame_HW3.dtype} {frame_HW3.shape}"
            raise ValueError(f"frame {self.num_frames}: {got}, expected uint8 ({self.height}, {self.width}, 3)")
        if self.height % 2 or self.width % 2:
            frame_HW3 = np.pad(frame_HW3, ((0, self.height % 2), (0, self.width % 2), (0, 0)), mode="edge")
        frame = self._to_yuv.reformat(
            VideoFrame.from_ndarray(np.ascontiguousarray(frame_HW3), format="rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.BILINEAR | Interpolation.ACCURATE_RND,
            threads=1,
        )
        frame.pts, frame.time_base = self.num_frames, 1 / self._fps
        self._container.mux(self._video.encode(frame))
        self.num_frames += 1
        self._write_audio(AAC_FRAME)

    def _write_audio(self, least: int) -> None:
        """Encode sound up to the end of the last picture, in whole AAC frames of at least `least` samples."""
        if self._audio is None:
            return
        end = min(len(self._audio), int(self.num_frames * self._sample_rate / self._fps))
        while end - self._heard >= least:
            chunk = self._audio[None, self._heard : min(self._heard + AAC_FRAME, end)]
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(chunk), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = self._sample_rate, self._heard
            frame.time_base = Fraction(1, self._sample_rate)
            self._container.mux(self._sound.encode(frame))
            self._heard += chunk.shape[1]

    def _finish(self) -> None:
        if self.num_frames == 0:
            raise ValueError(f"{self.path}: no picture was written")
        self._write_audio(1)
        self._container.mux(self._video.encode())
        if self._audio is not None:
            self._container.mux(self._sound.encode())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._container:
                if kind is None:
                    self._finish()
            if kind is None:
                os.replace(self._partial, self.path)
        finally:
            self._partial.unlink(missing_ok=True)


def write_video(path: Path, frames: Iterable[UInt8], audio: Float32 | None = None, **options: Any) -> int:
    """Write pictures (H×W×3 uint8 RGB, all of one size) and a wave as an MP4.

    Args:
        path: any file name; see `VideoWriter` for this, `audio` and the options.
        frames: at least one picture; read one at a time.

    Returns:
        The number of frames written.

    Raises:
        ValueError: as `VideoWriter`.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"{path}: no picture to write")
    with VideoWriter(path, height=first.shape[0], width=first.shape[1], audio=audio, **options) as writer:
        for frame in itertools.chain([first], frames):
            writer.write(frame)
    return writer.num_frames
