"""What decides the content of a dataset, and how much of it a change leaves standing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lawdnet.audio.base import EXTRACTORS
from lawdnet.data.rules import parse_rule
from lawdnet.face.track import face_rank
from lawdnet.landmarks.base import SOURCES
from lawdnet.landmarks.tracks import MAX_GAP, SMOOTHING
from lawdnet.types import CLIP_FRAMES, MAX_CLIPS, MIN_CLIPS

FORMAT_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Every choice that changes a dataset. Two builds with equal ones give the same rows.

    A dataset can be built again with other `features`, `where` and `val_fraction`: only what is missing is computed.
    Another value of any other field means other pictures, so it needs a folder of its own.
    """

    landmarks: str = "auto"
    """A landmark source by name, or `auto`: the CSV beside the video, else a source whose weights are there."""
    face: str = "largest"
    """Whose face: `largest`, `all` (segments of everyone), `sync` (at any time the one who speaks; needs a sync
    network), or a number: 0 is the largest."""
    features: tuple[str, ...] = ("mel",)
    """Audio extractors by name; all are stored."""
    crop_width: int = 320
    """Width of a stored crop in px; the height is 1.3 times that."""
    jpeg_quality: int = 95
    shot_threshold: float = 3.0
    """How far a cut must stand out from the motion around it; 0 takes every video as one shot."""
    smoothing: float = SMOOTHING
    """Standard deviation in frames of the smoothing that steadies the crop; 0 is none."""
    max_gap: int = MAX_GAP
    """Frames without a face that are bridged by interpolation; longer gaps end a segment."""
    landmark_tolerance: int = 1
    """Landmark rows that may be missing or too many at the end; OpenFace often loses the last frame."""
    min_clips: int = MIN_CLIPS
    max_clips: int = MAX_CLIPS
    where: tuple[str, ...] = ("scale_change<=1.5",)
    """Rules that a segment's scores must meet to be part of the dataset; all that is measured stays stored."""
    val_fraction: float = 0.05
    """Share of the *videos* kept for validation."""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Options of extractors and landmark sources: name → option → value."""

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
        for name in ("shot_threshold", "smoothing", "max_gap", "landmark_tolerance"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} is negative")
        face_rank(self.face)
        for rule in self.where:
            parse_rule(rule)

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
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values |= {name: list(values[name]) for name in ("features", "where")}
        return values | {"options": {name: dict(options) for name, options in self.options.items()}}

    def structure(self) -> dict[str, Any]:
        """What decides which pictures are stored: the fields that a dataset keeps for life."""
        values = self.to_dict()
        for name in ("features", "where", "val_fraction"):
            del values[name]
        return values | {"options": {name: found for name, found in values["options"].items() if name in SOURCES}}

    def hash(self) -> str:
        """16 hex digits that change with every field and with the format."""
        return digest({"format": FORMAT_VERSION, **self.to_dict()})


def digest(content: Any) -> str:
    """16 hex digits of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
