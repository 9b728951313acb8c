"""Decoded frames as upright RGB arrays.

Shape letters: H W frame height and width.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, VideoReformatter

from lawdnet.types import UInt8

UNTAGGED = 2
"""AVCOL_SPC_UNSPECIFIED: the file does not name its YUV matrix."""
Turn = tuple[int, int, int, int]


class ToRgb:
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
            self.turn = turn_of(frame)
            self.is_first = False
        untagged_hd = frame.colorspace == UNTAGGED and (frame.width >= 1280 or frame.height > 576)
        matrix = Colorspace.ITU709 if untagged_hd else None
        rgb = self.reformatter.reformat(frame, format="rgb24", src_colorspace=matrix, threads=1).to_ndarray()
        return np.ascontiguousarray(upright(rgb.astype(np.uint8, copy=False), self.turn))


def turn_of(frame: VideoFrame) -> Turn | None:
    """Return a b c d of the display matrix (libavutil/display.h), which maps (x, y) to (a·x + c·y, b·x + d·y)."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data))
    return a, b, c, d


def upright(image: UInt8, turn: Turn | None) -> UInt8:
    """Rotate and mirror an image as a display matrix asks, to the nearest quarter turn."""
    if turn is None:
        return image
    a, b, c, d = turn
    if abs(b) > abs(a):
        image = image.swapaxes(0, 1)
        a, d = c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
