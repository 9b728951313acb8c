"""What decides the content of a dataset; its hash decides whether two builds are the same."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from lawdnet.audio.base import EXTRACTORS
from lawdnet.landmarks.base import SOURCES
from lawdnet.types import CLIP_FRAMES, MAX_CLIPS, MIN_CLIPS

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Every choice that changes a segment's bytes. Two builds with the same hash give the same rows."""

    landmarks: str = "auto"
    """A landmark source by name, or `auto`: the CSV beside the video where there is one."""
    features: tuple[str, ...] = ("mel",)
    """Audio extractors by name; all are stored."""
    crop_width: int = 320
    """Width of a stored crop in px; the height is 1.3 times that."""
    jpeg_quality: int = 95
    max_gap: int = 5
    """Frames without a face that are bridged by interpolation; longer gaps end a segment."""
    max_scale_change: float = 1.5
    """Largest over smallest face size within a segment."""
    landmark_tolerance: int = 1
    """Landmark rows that may be missing or too many at the end; OpenFace often loses the last frame."""
    min_clips: int = MIN_CLIPS
    max_clips: int = MAX_CLIPS
    val_fraction: float = 0.05
    """Share of the *videos* kept for validation."""

    def __post_init__(self) -> None:
        if self.crop_width % 20:
            raise ValueError(f"crop_width: {self.crop_width} is no multiple of 20, so 1.3 × it is no even number")
        if self.landmarks not in ("auto", *SOURCES):
            raise ValueError(f"landmarks: unknown {self.landmarks!r}; there are auto, {', '.join(SOURCES)}")
        if not self.features:
            raise ValueError(f"features: name at least one of {', '.join(EXTRACTORS)}")
        for name in self.features:
            if name not in EXTRACTORS:
                raise ValueError(f"features: unknown {name!r}; there are {', '.join(EXTRACTORS)}")
        if len(set(self.features)) < len(self.features):
            raise ValueError(f"features: {', '.join(self.features)} names one twice")
        if not MIN_CLIPS <= self.min_clips <= self.max_clips <= MAX_CLIPS:
            raise ValueError(f"min_clips, max_clips: need {MIN_CLIPS} ≤ min ≤ max ≤ {MAX_CLIPS}")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction: {self.val_fraction} is not in [0, 1)")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality: {self.jpeg_quality} is not in 1 … 100")

    @property
    def min_frames(self) -> int:
        """Shortest segment in frames."""
        return self.min_clips * CLIP_FRAMES

    @property
    def max_frames(self) -> int:
        """Longest segment in frames."""
        return self.max_clips * CLIP_FRAMES

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self) | {"features": list(self.features)}

    def hash(self) -> str:
        """16 hex digits that change with every field and with the format."""
        text = json.dumps({"format": FORMAT_VERSION, **self.to_dict()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
