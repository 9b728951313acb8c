"""Where one shot ends and the next begins."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from scenedetect import AdaptiveDetector, FrameTimecode

from lawdnet.types import FPS, UInt8

LOOK_PX = 160
"""Pictures are thinned out to about this many px a side: a cut changes all of them."""
SHORTEST_TICKS = 3
SEEN_AFTER = 2
"""Ticks that a detector must have seen from a cut on before it notes it."""


class ShotDetector:
    """Watches a video go by, one picture per tick, and notes its cuts.

    A cut is a change of colour and brightness that stands out among those of the ticks around it (PySceneDetect's
    adaptive detector), so that a moving camera is none. One in the last two ticks cannot stand out, and is not seen.
    """

    def __init__(self, threshold: float = 3.0) -> None:
        """`threshold`: how many times larger than around it a change must be; 0 finds no cuts at all."""
        self.shots = [0]
        """First tick of every shot so far."""
        self._detector = AdaptiveDetector(threshold, min_scene_len=SHORTEST_TICKS) if threshold else None
        self._tick = 0

    def see(self, picture_HW3: UInt8) -> None:
        """Takes the next tick's RGB picture; the same size every time."""
        if self._detector:
            step = max(1, min(picture_HW3.shape[:2]) // LOOK_PX)
            small_HW3 = picture_HW3[::step, ::step, ::-1].copy()
            cuts = self._detector.process_frame(FrameTimecode(self._tick, float(FPS)), small_HW3)
            self.shots += [cut.frame_num for cut in cuts]
        self._tick += 1


def with_cuts(pictures: Iterable[UInt8], threshold: float, ahead: int) -> Iterator[tuple[int, UInt8, list[int]]]:
    """The pictures of all ticks some way behind their decoder, so that a cut is known before it comes.

    Args:
        pictures: RGB, one per tick.
        threshold: see `ShotDetector`.
        ahead: ticks before a cut from which on it is known, at least; so many pictures wait in memory.

    Yields:
        (tick, picture, first ticks of shots that were found since the last).
    """
    detector, waiting = ShotDetector(threshold), deque[tuple[int, UInt8]]()
    known = 1
    for tick, picture_HW3 in enumerate(pictures):
        detector.see(picture_HW3)
        waiting.append((tick, picture_HW3))
        if len(waiting) > (ahead + SEEN_AFTER if threshold else 0):
            yield *waiting.popleft(), detector.shots[known:]
            known = len(detector.shots)
    while waiting:
        yield *waiting.popleft(), detector.shots[known:]
        known = len(detector.shots)
