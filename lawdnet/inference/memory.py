"""Memory of frames that nobody uses any more goes back to the system."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Let glibc return what is free in its heaps to the system; other C libraries are left as they are.

    By itself it keeps the freed frames of each thread that made some: 130 MiB more at the peak of a render of 1080p.
    To map frames one by one instead (`M_MMAP_THRESHOLD`) costs a tenth of the speed, as every page is cleared again.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
