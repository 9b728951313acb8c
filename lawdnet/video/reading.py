"""Probe a file, and decode its pictures to RGB on the 25 fps clock.

Shape letters: H W picture height and width; arrays are RGB uint8.
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
"""Sought before the wanted picture: containers seek by decoding time, and pictures just after a key frame may lean on
those before it."""
MAX_CUT_SECONDS = 1
"""Longest picture that an edit list is believed to cut into."""
MAX_STEP_BACK = Fraction(1, FPS)
"""Seconds by which a picture may be stamped before the last one; it is then shown with it, and later ones on time."""
UNTAGGED = 2
"""AVCOL_SPC_UNSPECIFIED: the file does not name its YUV matrix."""


def picture_start(path: Path) -> Fraction | None:
    """Container time in seconds of the first picture that decodes; None where there is no video stream."""
    with open_media(path) as container:
        stream = find_video(container)
        if stream is None:
            return None
        frame = next(_pictures(container, stream))[1]
        is_cut = container.format.name.startswith("mov") and frame.pts == 0
        start = _seconds(stream, frame.pts or 0)
    return _start_after_cut(path) if is_cut else start


def _start_after_cut(path: Path) -> Fraction:
    """Time at which the first picture of an MP4 is shown that FFmpeg gives time zero.

    Where an edit list cuts into a picture, FFmpeg leaves that picture out and moves the others, but not the sound, to
    the cut: by up to a picture's length. Its plain reading of edit lists moves nothing.
    """
    with open_media(path) as container:
        packets = demux(container, _require_video(container))
        hidden, first = False, None
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
    """What a file holds, from its packets and first picture: the rest is not decoded.

    Args:
        path: any container and codec that FFmpeg reads; `video_id` stays empty.

    Raises:
        Rejected: EMPTY_FILE, NOT_A_VIDEO, NO_VIDEO_STREAM or DAMAGED.
    """
    with open_media(path) as container:
        stream = _require_video(container)
        first = next(_pictures(container, stream))[1]
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
    """The pictures of a file on the 25 fps clock, streamed.

    Tick k shows the source frame nearest in time to k/25 s, where time 0 is the first picture; at a tie the
    earlier one. The last picture lasts one average frame, so a file of d seconds gives round(25·d) ticks.

    Pixels are those of the file: a tag that asks for stretching them (sample aspect ratio) is ignored.

    Args:
        path: any container and codec that FFmpeg reads.
        start, stop: first tick, and the one after the last; what lies before is sought past where the file allows.
        threads: decoder threads; each holds a few pictures.

    Yields:
        (source frame index, upright RGB picture H×W×3). A picture shown twice is one array: do not
            write into it.

    Raises:
        Rejected: as `probe`, and DAMAGED where pictures are missing or do not decode.
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
        shown, picture = -1, np.empty((0, 0, 3), np.uint8)
        for index, frame in on_clock(_pictures(container, stream)):
            if index != shown:
                size = picture.shape
                shown, picture = index, to_rgb(frame)
                if index and picture.shape != size:
                    raise Rejected(RejectReason.DAMAGED, f"the picture size changes at frame {index}")
            yield index, picture


def _decode_range(path: Path, start: int, stop: int | None, threads: int) -> list[tuple[int, UInt8]] | None:
    """Ticks start … stop after a seek; None where the file's stamps or key frames do not lead there."""
    status = path.stat()
    index = _index(path, status.st_mtime_ns, status.st_size)
    if index is None:
        return None
    stamps, source_of_tick = index
    wanted = source_of_tick[start:stop]
    pictures: dict[int, UInt8] = {}
    with open_media(path) as container:
        stream = _require_video(container)
        stream.thread_type, stream.codec_context.thread_count = "AUTO", threads
        margin = int(SEEK_MARGIN_SECONDS / (stream.time_base or 1))
        container.seek(max(stamps[0], stamps[wanted[0]] - margin) if wanted else stamps[0], stream=stream)
        place_of = {stamp: place for place, stamp in enumerate(stamps)}
        to_rgb, needed, first = _ToRgb(), set(wanted), True
        try:
            for frame in container.decode(stream):
                place = place_of.get(frame.pts if frame.pts is not None else -1)
                if place is None or frame.is_corrupt or (first and wanted and place > wanted[0]):
                    return None
                first = False
                if place in needed:
                    pictures[place] = to_rgb(frame)
                if not wanted or place >= wanted[-1]:
                    break
        except FFmpegError:
            return None
    return [(place, pictures[place]) for place in wanted] if needed <= pictures.keys() else None


@lru_cache(maxsize=16)
def _index(path: Path, mtime_ns: int, size: int) -> tuple[list[int], list[int]] | None:
    """Time stamps of all pictures, rising, and the picture that each tick shows; None where some have no stamp.

    The time of change and the size are in the key so that another file of the same name is indexed anew.
    """
    with open_media(path) as container:
        first = next(_pictures(container, _require_video(container)))[1]
    with open_media(path) as container:
        stream = _require_video(container)
        times = _packet_times(container, stream, first)
        if first.pts is None or stream.time_base is None:
            return None
        stamps = [first.pts + round(time / stream.time_base) for time in times]
    if len(set(stamps)) < len(stamps):
        return None
    return stamps, [place for place, _ in on_clock((time, None) for time in times)]


def _require_video(container: InputContainer) -> VideoStream:
    stream = find_video(container)
    if stream is None:
        kinds = ", ".join(sorted({stream.type for stream in container.streams}))
        holds = f"{kinds} but no moving pictures" if kinds else "nothing"
        raise Rejected(RejectReason.NO_VIDEO_STREAM, f"the file holds {holds}")
    if stream.codec_context is None:
        raise Rejected(RejectReason.NO_VIDEO_STREAM, "the video codec is unknown")
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
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
    """Every picture with its time in s after the first, never falling.

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
            if time - stamp > MAX_STEP_BACK:
                raise _stopped(stream, count, packets, "the time stamps go back")
            time = max(time, stamp)
            yield time, frame
            count += 1
    _check_whole(stream, packets)
    if count == 0:
        detail = f"no picture could be decoded: broken, or of more than {MAX_PIXELS} px"
        raise Rejected(RejectReason.DAMAGED, detail)
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


class _ToRgb:
    """Converts the frames of one stream to upright H×W×3 pictures, all turned as the first one asks to be.

    Frames are asked for their side data once: it and its frame hold each other (PyAV), so that every frame that was
    asked would stay in memory until Python looks for such pairs, half a gigabyte of them at 1080p.
    """

    def __init__(self) -> None:
        self.reformatter = VideoReformatter()
        self.turn: Turn | None = None
        self.is_first = True

    def __call__(self, frame: VideoFrame) -> UInt8:
        """With the matrix and range that the frame is tagged with.

        Untagged pictures larger than standard definition are taken as BT.709, as players do.
        """
        if self.is_first:
            self.turn, self.is_first = _turn(frame), False
        untagged_hd = frame.colorspace == UNTAGGED and (frame.width >= 1280 or frame.height > 576)
        matrix = Colorspace.ITU709 if untagged_hd else None
        picture = self.reformatter.reformat(frame, format="rgb24", src_colorspace=matrix, threads=1).to_ndarray()
        return np.ascontiguousarray(_upright(picture.astype(np.uint8, copy=False), self.turn))


Turn = tuple[int, int, int, int]


def _turn(frame: VideoFrame) -> Turn | None:
    """a b c d of the frame's display matrix (libavutil/display.h): pixel (x, y) goes to (a·x + c·y, b·x + d·y)."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data))
    return a, b, c, d


def _upright(picture: UInt8, turn: Turn | None) -> UInt8:
    """Turns and mirrors a picture as a display matrix asks, to the nearest quarter turn."""
    if turn is None:
        return picture
    a, b, c, d = turn
    if abs(b) > abs(a):
        picture, a, d = picture.swapaxes(0, 1), c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
