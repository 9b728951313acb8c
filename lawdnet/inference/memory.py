"""Memory of frames goes back to the system."""

from __future__ import annotations

import ctypes
import sys

M_MMAP_THRESHOLD = -3
"""The number of this setting in glibc's malloc.h."""
FRAME_BYTES = 4 << 20
"""Blocks of this size and above; a frame of 1080p has 6 MiB."""


def give_back_frames() -> None:
    """Let glibc map every block as large as a frame on its own, so that it goes back to the system when it is freed.

    By itself glibc moves the threshold up to the largest block that was ever freed, and keeps such blocks in the heap
    of each thread that made them: with the threads of a render, 200 MiB of 1080p frames that nobody uses. The C
    libraries of other systems are left as they are.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, FRAME_BYTES)
