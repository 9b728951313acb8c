"""Squares of a frame, which may be turned, as the networks see them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from lawdnet.types import Float32, UInt8


@dataclass(frozen=True)
class Square:
    """A square part of an image, in px of the image, pixel centres at integers."""

    x: float
    """Centre."""
    y: float
    side: float
    angle: float = 0.0
    """By how much it is turned, in radians, clockwise as seen."""

    @cached_property
    def axes_2x2(self) -> Float32:
        """Columns are the directions of the square's rows and columns in the image."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return np.array([[cos, -sin], [sin, cos]], np.float32)

    def cut(self, image_HW3: UInt8, size: int) -> UInt8:
        """Return the square at size × size px, black outside the image.

        An image that shrinks to half or less is averaged first, so that no pixel is skipped.
        """
        shrink = int(self.side // size)
        if shrink > 1:
            image_HW3, seen = self._shrunk(image_HW3, shrink)
            return seen.cut(image_HW3, size)
        step = self.side / size
        linear = self.axes_2x2 * step
        first = np.array([self.x, self.y]) - linear @ np.full(2, (size - 1) / 2)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(image_HW3, np.column_stack([linear, first]), (size, size), flags=flags)

    def to_image(self, points_Nx2: Float32, size: int) -> Float32:
        """Return points in px of the image from px of the square at size × size px."""
        offset_Nx2 = (points_Nx2 - (size - 1) / 2) * (self.side / size)
        return (offset_Nx2 @ self.axes_2x2.T + (self.x, self.y)).astype(np.float32)

    def _shrunk(self, image_HW3: UInt8, shrink: int) -> tuple[UInt8, Square]:
        """Return the part of the image around the square, shrunk by a whole number, and the square in it."""
        height, width = image_HW3.shape[:2]
        reach = self.side / 2 * (abs(math.cos(self.angle)) + abs(math.sin(self.angle))) + shrink
        x0, x1 = _clip(self.x - reach, self.x + reach, width)
        y0, y1 = _clip(self.y - reach, self.y + reach, height)
        columns, rows = max(1, (x1 - x0) // shrink), max(1, (y1 - y0) // shrink)
        part = image_HW3[y0 : y0 + rows * shrink, x0 : x0 + columns * shrink]
        small = cv2.resize(part, (columns, rows), interpolation=cv2.INTER_AREA)
        x, y = ((self.x - x0 + 0.5) / shrink - 0.5, (self.y - y0 + 0.5) / shrink - 0.5)
        return small, Square(x, y, self.side / shrink, self.angle)


def _clip(first: float, stop: float, length: int) -> tuple[int, int]:
    """Return the pixels from `first` to `stop` that an image has, or the one that is nearest to them."""
    start = min(max(0, math.floor(first)), length - 1)
    return start, min(max(start + 1, math.floor(stop)), length)
