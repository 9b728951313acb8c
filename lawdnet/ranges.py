"""Remote files that are read in parts: a span of a long video needs a tenth of its file, and no disk holds ten hours.

A part stays on this disk as long as there is room for it, because building a video reads it several times.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from upath import UPath

BLOCK_BYTES = 8 << 20
"""Fetched at once: a request costs some 50 ms before its first byte."""
BLOCKS = 64
"""Most blocks of a file that are kept: 512 MiB, ten minutes of 1080p."""


class RemoteBlocks:
    """The blocks of a remote file, the last ones used in a local file."""

    def __init__(self, remote: UPath, size: int, kept: BinaryIO) -> None:
        self.remote, self.size, self.kept = remote, size, kept
        self.slots: OrderedDict[int, int] = OrderedDict()
        """Number of a block → its place in the local file; the one that was used last is last."""

    def read(self, start: int, buffer: memoryview) -> int:
        """Read from one block into a buffer, and return how many bytes: fewer than asked for at the block's end."""
        number, offset = divmod(start, BLOCK_BYTES)
        count = max(0, min(len(buffer), BLOCK_BYTES - offset, self.size - start))
        if not count:
            return 0
        self.kept.seek(self._slot(number) * BLOCK_BYTES + offset)
        return self.kept.readinto(buffer[:count])  # type: ignore[attr-defined]

    def _slot(self, number: int) -> int:
        if number not in self.slots:
            begin = number * BLOCK_BYTES
            end = min(self.size, begin + BLOCK_BYTES)
            content = self.remote.fs.cat_file(self.remote.path, start=begin, end=end)
            slot = len(self.slots) if len(self.slots) < BLOCKS else self.slots.popitem(last=False)[1]
            self.kept.seek(slot * BLOCK_BYTES)
            self.kept.write(content)
            self.slots[number] = slot  # only now, as a fetch may fail
        self.slots.move_to_end(number)
        return self.slots[number]


class _Reader(io.RawIOBase):
    """A position in a remote file."""

    def __init__(self, blocks: RemoteBlocks) -> None:
        self.blocks, self.position = blocks, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.blocks.size}[whence]
        self.position = max(0, start + offset)
        return self.position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = self.blocks.read(self.position, memoryview(buffer).cast("B"))
        self.position += count
        return count


_known: dict[Path, RemoteBlocks] = {}


@contextmanager
def in_parts(remote: UPath, path: Path) -> Iterator[None]:
    """Let `open_binary` read a remote file under a local name while the block lasts.

    A file without content lies there, so that name, size and neighbours are as those of a copy.

    Args:
        remote: the file.
        path: its local name, in a folder of its own.

    Raises:
        OSError: it does not exist, or cannot be read.
    """
    size = remote.fs.info(remote.path)["size"]
    with path.open("wb") as empty, tempfile.TemporaryFile(dir=path.parent) as kept:
        empty.truncate(size)
        _known[path] = RemoteBlocks(remote, size, kept)
        try:
            yield
        finally:
            del _known[path]


def open_binary(path: Path) -> io.RawIOBase:
    """Open a local file, or a remote one that is `in_parts` under this name, for reading.

    Raises:
        OSError: it cannot be opened; or later, read.
    """
    return _Reader(_known[path]) if path in _known else io.FileIO(path)
