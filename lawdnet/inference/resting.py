"""The mouth at rest, kept for each tick of a template once it was drawn."""

from __future__ import annotations

import numpy as np

from lawdnet.types import UInt8

MAX_BYTES = 256 << 20


class Resting:
    """Keeps the rectangle in which a drawn image differs from its template's frame, for as many ticks as fit.

    Args:
        max_bytes: memory for the rectangles; later ones are not kept.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._patches: dict[int, tuple[slice, slice, UInt8]] = {}
        self._left = max_bytes

    def keep(self, tick: int, frame_HW3: UInt8, drawn_HW3: UInt8) -> None:
        """Remember what was drawn at a tick."""
        changed_HW = (frame_HW3 != drawn_HW3).any(-1)
        rows, columns = (_span(changed_HW.any(axis)) for axis in (1, 0))
        patch = drawn_HW3[rows, columns].copy()
        if patch.nbytes <= self._left:
            self._left -= patch.nbytes
            self._patches[tick] = rows, columns, patch

    def recall(self, tick: int, frame_HW3: UInt8) -> UInt8 | None:
        """Return the image of a tick, or None if it was not kept."""
        if tick not in self._patches:
            return None
        rows, columns, patch = self._patches[tick]
        image_HW3 = frame_HW3.copy()
        image_HW3[rows, columns] = patch
        return image_HW3


def _span(marked: np.ndarray) -> slice:
    """Return the range from the first to the last mark."""
    found = np.flatnonzero(marked)
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)
