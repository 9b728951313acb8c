"""What became of a video's frames, and why there may be no segments."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from lawdnet.types import Beat, Rejected, RejectReason, no_beat

COUNTED = ("frames", "used", "segments", "no_audio", "no_face", "outside", "longest")


@dataclass
class Tally:
    """What became of a video's frames, and the time spent; filled while its segments are made."""

    beat: Beat = no_beat
    """Called whenever the work makes progress, for a watchdog."""
    frames: int = 0
    used: int = 0
    segments: int = 0
    no_audio: int = 0
    """Frames without audio, whether or not they have a face; the next two count frames with audio."""
    no_face: int = 0
    outside: int = 0
    longest: int = 0
    """Length of the longest run of usable frames."""
    perceptual_hash: str = ""
    """See `lawdnet.data.near_duplicates.encode`."""
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds by build step."""

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a build step."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - began

    @property
    def counts(self) -> dict[str, int]:
        """What was counted, as plain values."""
        return {name: getattr(self, name) for name in COUNTED}

    def add(self, counts: Mapping[str, int]) -> None:
        """Add the counts of a part of the video."""
        longest = max(self.longest, counts["longest"])
        for name in COUNTED:
            setattr(self, name, getattr(self, name) + counts[name])
        self.longest = longest

    def describe(self) -> str:
        """Return one line for the `detail` column."""
        parts = [f"{self.used} of {self.frames} frames used"]
        causes = {
            "without audio": self.no_audio,
            "without a face": self.no_face,
            "with the face partly outside": self.outside,
        }
        parts += [f"{count} {cause}" for cause, count in causes.items() if count]
        return "; ".join(parts)

    def check(self, min_frames: int) -> None:
        """Raise Rejected if the video gave no segment."""
        if not self.segments:
            need = f"at most {self.longest} consecutive usable frames, {min_frames} are needed"
            raise Rejected(self.short_reason(min_frames), f"{need}; {self.describe()}")

    def short_reason(self, min_frames: int) -> RejectReason:
        """Return the reason to give if there are too few usable frames in a run."""
        causes = {
            RejectReason.NO_FACE: self.no_face,
            RejectReason.FACE_LEAVES_PICTURE: self.outside,
            RejectReason.AUDIO_TOO_SHORT: self.no_audio,
        }
        commonest = max(causes, key=lambda reason: causes[reason])
        return commonest if self.frames >= min_frames and causes[commonest] else RejectReason.TOO_SHORT
