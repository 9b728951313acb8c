"""Probe a video file, and decode its frames to RGB on the 25 fps clock.

Shape letters: H W frame height and width; arrays are RGB uint8.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from lawdnet.types import FPS, Beat, Int32, Rejected, RejectReason, UInt8, Video, no_beat
from lawdnet.video.clock import on_clock
from lawdnet.video.container import MAX_PIXELS, demux, find_video, open_media
from lawdnet.video.rgb import ToRgb, turn_of, upright

SEEK_MARGIN_SECONDS = 1
"""Seek this far before the wanted frame: containers seek by decoding time, and frames just after a key frame may depend
on frames before it."""
MAX_CUT_SECONDS = 1
"""Longest frame that an edit list can plausibly cut into."""
MAX_STEP_BACK = Fraction(1, FPS)
"""Seconds by which a frame's time stamp may precede that of the last frame; it is then shown at the same time."""


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
        height, width = upright(np.empty((first.height, first.width, 0), np.uint8), turn_of(first)).shape[:2]
        audio = next(iter(container.streams.audio), None)
        sample_rate = audio.codec_context.sample_rate if audio and audio.codec_context else None
    with open_media(path) as container:
        stream = _require_video(container)
        stamps, are_stored = _packet_stamps(container, stream, first)
        rate = _rate(stream)
        unit = stream.time_base or Fraction(1) if are_stored else 1 / rate
    origin = first.pts or 0 if are_stored else 0
    timed = (((stamp - origin) * unit, None) for stamp in stamps)
    shown_T = np.fromiter((index for index, _ in on_clock(timed)), np.int32)
    stamps_F = np.array(stamps if are_stored else [], np.int64)
    seconds = (stamps[-1] - origin) * unit if stamps else Fraction(0)
    return Video(
        path=path,
        num_frames=len(shown_T),
        num_source_frames=len(stamps),
        height=height,
        width=width,
        fps=float((len(stamps) - 1) / seconds if seconds else rate),
        sample_rate=sample_rate,
        shown_T=shown_T,
        stamps_F=stamps_F if (np.diff(stamps_F) > 0).all() else stamps_F[:0],
    )


def decode(
    path: Path,
    *,
    start: int = 0,
    stop: int | None = None,
    threads: int = 2,
    probed: Video | None = None,
    beat: Beat = no_beat,
) -> Iterator[tuple[int, UInt8]]:
    """Decode a file on the 25 fps clock, one frame at a time.

    Tick k shows the source frame nearest in time to k/25 s, where time 0 is the first frame; of two equally near ones
    it shows the earlier. The last frame lasts one average frame, so a file of d seconds gives round(25·d) ticks.

    Pixels are not resampled: a sample aspect ratio in the file is ignored.

    Args:
        path: any container and codec that FFmpeg reads.
        start, stop: first tick, and the tick after the last; earlier frames are skipped by seeking, if the file allows
            it.
        threads: decoder threads; each holds a few frames.
        probed: what `probe` told of the file, so that a range does not have to read all packets again.
        beat: called for every earlier frame that could not be skipped.

    Yields:
        (source frame index, upright RGB frame H×W×3), one per tick. A frame shown twice is the same array: do not
            write into it.

    Raises:
        Rejected: as `probe`, and DAMAGED where frames are missing or do not decode.
    """
    done = 0
    if start:
        status = path.stat()
        video = probed or _probed(path, status.st_mtime_ns, status.st_size)
        try:
            for shown in _after_seek(path, video, video.shown_T[start:stop], threads):
                yield shown
                done += 1
            return
        except (_Lost, FFmpegError):  # where the way from the start is the only one, or says what is wrong
            pass
    for tick, shown in enumerate(islice(_decode_all(path, threads), stop)):
        if tick >= start + done:
            yield shown
        else:
            beat()


def decode_ticks(video: Video, ticks: range, beat: Beat = no_beat) -> Iterator[tuple[int, UInt8]]:
    """Decode some ticks of a video, or all it has, which may be one more than its packets promise; see `decode`."""
    if len(ticks) == video.num_frames:
        return decode(video.path)
    return decode(video.path, start=ticks.start, stop=ticks.stop, probed=video, beat=beat)


def _decode_all(path: Path, threads: int) -> Iterator[tuple[int, UInt8]]:
    with open_media(path) as container:
        stream = _require_video(container)
        stream.thread_type, stream.codec_context.thread_count = "AUTO", threads
        to_rgb = ToRgb()
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


class _Lost(Exception):
    """After a seek, the frames are not those that the packets promise."""


def _after_seek(path: Path, video: Video, wanted_N: Int32, threads: int) -> Iterator[tuple[int, UInt8]]:
    """Decode the source frames of N consecutive ticks after a seek.

    Raises:
        _Lost, FFmpegError: the file's time stamps or key frames do not allow it, or it is damaged there.
    """
    stamps_F, wanted = video.stamps_F, deque(wanted_N.tolist())
    if not wanted:
        return
    if not len(stamps_F):
        raise _Lost
    with open_media(path) as container:
        stream = _require_video(container)
        stream.thread_type, stream.codec_context.thread_count = "AUTO", threads
        margin = int(SEEK_MARGIN_SECONDS / (stream.time_base or 1))
        container.seek(max(int(stamps_F[0]), int(stamps_F[wanted[0]]) - margin), stream=stream)
        to_rgb = ToRgb()
        size: tuple[int, ...] = ()
        for frame in container.decode(stream):
            number = int(np.searchsorted(stamps_F, frame.pts)) if frame.pts is not None else len(stamps_F)
            if number == len(stamps_F) or stamps_F[number] != frame.pts or number > wanted[0]:
                raise _Lost
            if number < wanted[0]:
                continue
            rgb_HW3 = to_rgb(frame)
            size = size or rgb_HW3.shape
            if frame.is_corrupt or rgb_HW3.shape != size:
                raise _Lost
            while wanted and wanted[0] == number:
                yield wanted.popleft(), rgb_HW3
            if not wanted:
                return
    raise _Lost


@lru_cache(maxsize=16)
def _probed(path: Path, _mtime_ns: int, _size: int) -> Video:
    """Modification time and size are keys of the cache, so that a new file of the same name is probed again."""
    return probe(path)


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


def _packet_stamps(container: InputContainer, stream: VideoStream, first: VideoFrame) -> tuple[list[int], bool]:
    """Return the time stamps of the frames in the packets, increasing from the first one that decodes.

    Returns:
        The stamps, and whether they are those of the file; where it lacks some, they count frames.
    """
    packets = [(packet.pts, packet.is_discard) for packet in demux(container, stream) if packet.size]
    _check_whole(stream, len(packets))
    shown = [pts for pts, is_discard in packets if not is_discard]
    stamps = sorted(pts for pts in shown if pts is not None)
    if first.pts is None or len(stamps) < len(shown):
        return list(range(len(shown))), False
    return [pts for pts in stamps if pts >= first.pts], True


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
