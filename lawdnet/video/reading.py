"""Probe a video file, and decode its frames to RGB on the 25 fps clock.

Shape letters: H W frame height and width; arrays are RGB uint8.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, VideoReformatter
from av.video.stream import VideoStream

from lawdnet.types import FPS, Rejected, RejectReason, UInt8, Video
from lawdnet.video.clock import on_clock
from lawdnet.video.container import MAX_PIXELS, demux, find_video, open_media

SEEK_MARGIN_SECONDS = 1
"""Seek this far before the wanted frame: containers seek by decoding time, and frames just after a key frame may depend
on frames before it."""
MAX_CUT_SECONDS = 1
"""Longest frame that an edit list can plausibly cut into."""
MAX_STEP_BACK = Fraction(1, FPS)
"""Seconds by which a frame's time stamp may precede that of the last frame; it is then shown at the same time."""
UNTAGGED = 2
"""AVCOL_SPC_UNSPECIFIED: the file does not name its YUV matrix."""


def first_frame_time(path: Path) -> Fraction | None:
    """Return the container time in seconds of the first frame that decodes; None if there is no video stream."""
    with open_media(path) as container:
        stream = find_video(container)
        if stream is None:
            return None
        frame = next(_frames(container, stream))[1]
        is_cut = container.format.name.startswith("mov") and frame.pts == 0
        start = _seconds(stream, frame.pts or 0)
    return _start_after_cut(path) if is_cut else start


def _start_after_cut(path: Path) -> Fraction:
    """Return the time at which an MP4 really shows the first frame, to which FFmpeg gives time zero.

    Where an edit list cuts into a frame, FFmpeg drops that frame and moves the others, but not the audio, to the cut:
    by up to one frame. With `advanced_editlist=0` it moves nothing.
    """
    with open_media(path) as container:
        packets = demux(container, _require_video(container))
        hidden = False
        first = None
        for packet in packets:
            hidden |= packet.is_discard
            if packet.pts == 0 and not packet.is_discard:
                first = packet.pos
                break
    if not hidden or first is None:
        return Fraction(0)
    with open_media(path, advanced_editlist="0") as container:
        stream = _require_video(container)
        stamp = next((packet.pts for packet in demux(container, stream) if packet.pos == first), None)
        start = _seconds(stream, stamp or 0)
    return start if 0 < start < MAX_CUT_SECONDS else Fraction(0)


def probe(path: Path) -> Video:
    """Read the properties of a video from its packets and its first frame, without decoding the rest.

    Args:
        path: any container and codec that FFmpeg reads.

    Returns:
        A description whose `video_id` is empty.

    Raises:
        Rejected: EMPTY_FILE, NOT_A_VIDEO, NO_VIDEO_STREAM or DAMAGED.
    """
    with open_media(path) as container:
        stream = _require_video(container)
        first = next(_frames(container, stream))[1]
        height, width = _upright(np.empty((first.height, first.width, 0), np.uint8), _turn(first)).shape[:2]
        audio = next(iter(container.streams.audio), None)
        sample_rate = audio.codec_context.sample_rate if audio and audio.codec_context else None
    with open_media(path) as container:
        stream = _require_video(container)
        times = _packet_times(container, stream, first)
        shown_T = np.fromiter((index for index, _ in on_clock((time, None) for time in times)), np.int32)
        rate = _rate(stream)
    fps = Fraction(len(times) - 1) / times[-1] if any(times) else rate
    return Video(
        path=path,
        num_frames=len(shown_T),
        num_source_frames=len(times),
        height=height,
        width=width,
        fps=float(fps),
        sample_rate=sample_rate,
        shown_T=shown_T,
    )


def decode(path: Path, *, start: int = 0, stop: int | None = None, threads: int = 2) -> Iterator[tuple[int, UInt8]]:
    """Decode a file on the 25 fps clock, one frame at a time.

    Tick k shows the source frame nearest in time to k/25 s, where time 0 is the first frame; of two equally near ones
    it shows the earlier. The last frame lasts one average frame, so a file of d seconds gives round(25·d) ticks.

    Pixels are not resampled: a sample aspect ratio in the file is ignored.

    Args:
        path: any container and codec that FFmpeg reads.
        start, stop: first tick, and the tick after the last; earlier frames are skipped by seeking, if the file allows
            it.
        threads: decoder threads; each holds a few frames.

    Yields:
        (source frame index, upright RGB frame H×W×3), one per tick. A frame shown twice is the same array: do not
            write into it.

    Raises:
        Rejected: as `probe`, and DAMAGED where frames are missing or do not decode.
    """
    if start:
        found = _decode_range(path, start, stop, threads)
        yield from islice(_decode_all(path, threads), start, stop) if found is None else found
    else:
        yield from islice(_decode_all(path, threads), stop)


def _decode_all(path: Path, threads: int) -> Iterator[tuple[int, UInt8]]:
    with open_media(path) as container:
        stream = _require_video(container)
        stream.thread_type, stream.codec_context.thread_count = "AUTO", threads
        to_rgb = _ToRgb()
        shown = -1
        rgb_HW3: UInt8 = np.empty((0, 0, 3), np.uint8)
        for index, frame in on_clock(_frames(container, stream)):
            if index != shown:
                size = rgb_HW3.shape
                shown = index
                rgb_HW3 = to_rgb(frame)
                if index and rgb_HW3.shape != size:
                    raise Rejected(RejectReason.DAMAGED, f"the frame size changes at frame {index}")
            yield index, rgb_HW3


def _decode_range(path: Path, start: int, stop: int | None, threads: int) -> list[tuple[int, UInt8]] | None:
    """Decode ticks start … stop after a seek; None if the file's time stamps or key frames do not allow it."""
    status = path.stat()
    index = _index(path, status.st_mtime_ns, status.st_size)
    if index is None:
        return None
    stamps, source_of_tick = index
    wanted = source_of_tick[start:stop]
    decoded: dict[int, UInt8] = {}
    with open_media(path) as container:
        stream = _require_video(container)
        stream.thread_type, stream.codec_context.thread_count = "AUTO", threads
        margin = int(SEEK_MARGIN_SECONDS / (stream.time_base or 1))
        container.seek(max(stamps[0], stamps[wanted[0]] - margin) if wanted else stamps[0], stream=stream)
        index_of = {stamp: number for number, stamp in enumerate(stamps)}
        to_rgb = _ToRgb()
        needed = set(wanted)
        is_first = True
        try:
            for frame in container.decode(stream):
                number = index_of.get(frame.pts if frame.pts is not None else -1)
                if number is None or frame.is_corrupt or (is_first and wanted and number > wanted[0]):
                    return None
                is_first = False
                if number in needed:
                    decoded[number] = to_rgb(frame)
                if not wanted or number >= wanted[-1]:
                    break
        except FFmpegError:
            return None
    return [(number, decoded[number]) for number in wanted] if needed <= decoded.keys() else None


@lru_cache(maxsize=16)
def _index(path: Path, _mtime_ns: int, _size: int) -> tuple[list[int], list[int]] | None:
    """Return the increasing time stamps of all frames and the frame that each tick shows; None if stamps are missing.

    Modification time and size are keys of the cache, so that a new file of the same name is indexed again.
    """
    with open_media(path) as container:
        first = next(_frames(container, _require_video(container)))[1]
    with open_media(path) as container:
        stream = _require_video(container)
        times = _packet_times(container, stream, first)
        if first.pts is None or stream.time_base is None:
            return None
        stamps = [first.pts + round(time / stream.time_base) for time in times]
    if len(set(stamps)) < len(stamps):
        return None
    return stamps, [number for number, _ in on_clock((time, None) for time in times)]


def _require_video(container: InputContainer) -> VideoStream:
    stream = find_video(container)
    if stream is None:
        kinds = ", ".join(sorted({stream.type for stream in container.streams}))
        holds = f"{kinds} but no video" if kinds else "nothing"
        raise Rejected(RejectReason.NO_VIDEO_STREAM, f"the file holds {holds}")
    if stream.codec_context is None:
        raise Rejected(RejectReason.NO_VIDEO_STREAM, "the video codec is unknown")
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return stream


def _rate(stream: VideoStream) -> Fraction:
    """Return the frames per second that the file declares; FPS if it declares none."""
    return stream.average_rate or stream.guessed_rate or Fraction(FPS)


def _seconds(stream: VideoStream, stamp: int) -> Fraction:
    return stamp * (stream.time_base or Fraction(1))


def _packet_times(container: InputContainer, stream: VideoStream, first: VideoFrame) -> list[Fraction]:
    """Return the time in s after the first frame of every frame in the packets, increasing."""
    packets = [(packet.pts, packet.is_discard) for packet in demux(container, stream) if packet.size]
    _check_whole(stream, len(packets))
    shown = [pts for pts, is_discard in packets if not is_discard]
    stamps = sorted(pts for pts in shown if pts is not None)
    if first.pts is None or len(stamps) < len(shown):
        return [index / _rate(stream) for index in range(len(shown))]
    return [_seconds(stream, pts - first.pts) for pts in stamps if pts >= first.pts]


def _check_whole(stream: VideoStream, packets: int) -> None:
    """Check that all frames listed in the index of an MP4 or AVI arrived; a truncated file has fewer."""
    listed = sum(entry.size > 0 for entry in stream.index_entries)
    if packets < listed:
        detail = f"the file looks truncated: it has {packets} of {listed} frames"
        raise Rejected(RejectReason.DAMAGED, detail)


def _frames(container: InputContainer, stream: VideoStream) -> Iterator[tuple[Fraction, VideoFrame]]:
    """Yield every frame with its time in s after the first one; times never decrease.

    Frames that do not decode before the first good one (a recording that starts between key frames) are skipped. After
    it, an error, or a frame that the packets promise and the decoder leaves out, means that the file is damaged.
    """
    origin = count = packets = 0
    time = -1 / _rate(stream)
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
                raise _stopped(stream, count, packets, "the frame is broken")
            if frame.is_corrupt:
                continue
            origin = frame.pts or 0 if count == 0 else origin
            step = 1 / _rate(stream)
            stamp = time + step if frame.pts is None else _seconds(stream, frame.pts - origin)
            if _left_out(promised, frame.pts) and count and stamp - time > 1.5 * step:
                raise _stopped(stream, count, packets, "a frame does not decode")
            if time - stamp > MAX_STEP_BACK:
                raise _stopped(stream, count, packets, "the time stamps go back")
            time = max(time, stamp)
            yield time, frame
            count += 1
    _check_whole(stream, packets)
    if count == 0:
        detail = f"no frame could be decoded: they are broken, or larger than {MAX_PIXELS} px"
        raise Rejected(RejectReason.DAMAGED, detail)
    if promised and _seconds(stream, max(promised) - origin) - time > 0.75 / _rate(stream):
        raise _stopped(stream, count, packets, "the last frames do not decode")


def _left_out(promised: list[int], pts: int | None) -> int:
    """Take the promised time stamps up to pts off the heap; returns how many of them come before pts."""
    count = 0
    while promised and pts is not None and promised[0] <= pts:
        count += heapq.heappop(promised) < pts
    return count


def _stopped(stream: VideoStream, count: int, packets: int, why: str) -> Rejected:
    about = stream.frames or packets
    return Rejected(RejectReason.DAMAGED, f"decoding stopped at frame {count} of about {about}: {why}")


class _ToRgb:
    """Converts the frames of one stream to upright H×W×3 arrays, all rotated as the first frame asks.

    Only the first frame is asked for its side data: in PyAV the two reference each other, so every frame that was asked
    would stay in memory until Python collects reference cycles, half a gigabyte of them at 1080p.
    """

    def __init__(self) -> None:
        self.reformatter = VideoReformatter()
        self.turn: Turn | None = None
        self.is_first = True

    def __call__(self, frame: VideoFrame) -> UInt8:
        """Convert with the colour matrix and range that the frame is tagged with.

        Untagged frames larger than standard definition are taken as BT.709, as players do.
        """
        if self.is_first:
            self.turn = _turn(frame)
            self.is_first = False
        untagged_hd = frame.colorspace == UNTAGGED and (frame.width >= 1280 or frame.height > 576)
        matrix = Colorspace.ITU709 if untagged_hd else None
        rgb = self.reformatter.reformat(frame, format="rgb24", src_colorspace=matrix, threads=1).to_ndarray()
        return np.ascontiguousarray(_upright(rgb.astype(np.uint8, copy=False), self.turn))


Turn = tuple[int, int, int, int]


def _turn(frame: VideoFrame) -> Turn | None:
    """Return a b c d of the display matrix (libavutil/display.h), which maps (x, y) to (a·x + c·y, b·x + d·y)."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data))
    return a, b, c, d


def _upright(image: UInt8, turn: Turn | None) -> UInt8:
    """Rotate and mirror an image as a display matrix asks, to the nearest quarter turn."""
    if turn is None:
        return image
    a, b, c, d = turn
    if abs(b) > abs(a):
        image = image.swapaxes(0, 1)
        a, d = c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
