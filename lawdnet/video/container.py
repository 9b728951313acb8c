"""Open media files safely, for the modules that read video and audio.

FFmpeg gets opened file objects and never sees names, so a name may contain anything ('%d', 'file:', a dash).
"""

from __future__ import annotations

import contextlib
import io
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from lawdnet.ranges import open_binary
from lawdnet.types import Rejected, RejectReason

MAX_PIXELS = 1 << 26
"""Largest frame that is decoded (8192 × 8192): a file of a few kB can claim any size, and 3 bytes per px for it."""

BUFFER_BYTES = 1 << 16
"""What FFmpeg asks for comes from a buffer of this size."""

StreamT = TypeVar("StreamT", bound=Stream)


class _Nameless(io.BufferedReader):
    """A file whose name FFmpeg cannot see: only the content decides which format it has."""

    name = "media"


@contextlib.contextmanager
def open_media(path: Path, **options: str) -> Iterator[InputContainer]:
    """Open any media file for demuxing.

    Args:
        path: the file, which may be remote (see `lawdnet.ranges`).
        options: FFmpeg's options for the file's format.

    Raises:
        Rejected: UNREADABLE (a folder, pipe, socket or device), EMPTY_FILE, NOT_A_VIDEO (no known format) or DAMAGED
            (an MP4 without its index).
        OSError: the file cannot be opened or read.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer, maybe forever
        raise Rejected(RejectReason.UNREADABLE, "this is a folder, pipe, socket or device, not a file")
    with _Nameless(open_binary(path), BUFFER_BYTES) as file:
        head = file.peek(16)[:16]
        if not head:
            raise Rejected(RejectReason.EMPTY_FILE, "the file is empty")
        # Without protocols, a playlist cannot open other files or URLs.
        options |= {"protocol_whitelist": "none", "max_pixels": str(MAX_PIXELS)}
        try:
            container: Any = av.open(file, options=options, metadata_errors="replace")
        except FFmpegError as error:
            if head[4:8] == b"ftyp":
                detail = "the index (moov) is missing or broken: the MP4 looks truncated, copy it again"
                raise Rejected(RejectReason.DAMAGED, detail) from error
            raise Rejected(RejectReason.NOT_A_VIDEO, "not a known video or audio format") from error
        with container:
            yield container


def demux(container: InputContainer, stream: StreamT) -> Iterator[Packet[StreamT]]:
    """Yield the packets of a stream, then the empty packet that flushes its decoder.

    Raises:
        Rejected: DAMAGED where reading fails.
    """
    packets: Iterator[Any] = container.demux(stream)
    try:
        yield from packets
    except FFmpegError as error:
        raise Rejected(RejectReason.DAMAGED, f"the file cannot be read to the end: {error.strerror}") from error


def find_video(container: InputContainer) -> VideoStream | None:
    """Return the first video stream that is not cover art, or None."""
    cover = Disposition.attached_pic
    return next((stream for stream in container.streams.video if not stream.disposition & cover), None)
