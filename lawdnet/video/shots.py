"""Find the cuts between the shots of a video."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from scenedetect import AdaptiveDetector, FrameTimecode

from lawdnet.types import FPS, UInt8

DETECT_PX = 160
"""Frames are subsampled to about this many px per side: a cut changes all px."""
MIN_SHOT_TICKS = 3
DELAY_TICKS = 2
"""Ticks that a detector must see after a cut before it reports the cut."""


class ShotDetector:
    """Collects the cuts of a video from its frames, one per tick.

    A cut is a change of colour and brightness that stands out from the changes at the ticks around it (PySceneDetect's
    adaptive detector), so a moving camera is not a cut. A cut at the last two ticks cannot stand out and is missed.
    """

    def __init__(self, threshold: float = 3.0, first: int = 0) -> None:
        """Args:
        threshold: how many times larger than the changes around it a cut must be; 0 finds no cuts at all.
        first: the first tick.
        """
        self.shots = [first]
        """First tick of every shot found so far."""
        self._detector = AdaptiveDetector(threshold, min_scene_len=MIN_SHOT_TICKS) if threshold else None
        self._tick = first

    def add(self, frame_HW3: UInt8) -> None:
        """Take the RGB frame of the next tick; all frames have the same size."""
        if self._detector:
            step = max(1, min(frame_HW3.shape[:2]) // DETECT_PX)
            small_HW3 = frame_HW3[::step, ::step, ::-1].copy()
            cuts = self._detector.process_frame(FrameTimecode(self._tick, float(FPS)), small_HW3)
            self.shots += [cut.frame_num for cut in cuts]
        self._tick += 1


def with_cuts(
    frames: Iterable[UInt8], threshold: float, ahead: int, first: int = 0
) -> Iterator[tuple[int, UInt8, list[int]]]:
    """Yield all frames some ticks after they are decoded, so that every cut is known in advance.

    Args:
        frames: RGB, one per tick.
        threshold: see `ShotDetector`.
        ahead: how many ticks in advance a cut is known, at least; as many frames wait in memory.
        first: the tick of the first frame.

    Yields:
        (tick, frame, first ticks of the shots found since the last frame).
    """
    detector = ShotDetector(threshold, first)
    waiting = deque[tuple[int, UInt8]]()
    known = 1
    for tick, frame_HW3 in enumerate(frames, first):
        detector.add(frame_HW3)
        waiting.append((tick, frame_HW3))
        if len(waiting) > (ahead + DELAY_TICKS if threshold else 0):
            yield *waiting.popleft(), detector.shots[known:]
            known = len(detector.shots)
    while waiting:
        yield *waiting.popleft(), detector.shots[known:]
        known = len(detector.shots)
