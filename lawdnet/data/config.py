"""The settings that determine the content of a dataset, and how much of it survives a change."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lawdnet.audio.base import EXTRACTORS
from lawdnet.data.group_by import check_group_by
from lawdnet.data.rules import parse_rule
from lawdnet.face.track import face_rank
from lawdnet.landmarks.base import SOURCES
from lawdnet.landmarks.tracks import MAX_GAP, SMOOTHING
from lawdnet.types import CLIP_FRAMES, FPS, MAX_CLIPS, MIN_CLIPS

FORMAT_VERSION = 3
READABLE_VERSIONS = (2, 3)
"""Format 2 has no small versions of the frames (`lawdnet.data.levels`); all else is the same."""
HASHED_VERSION = 2
"""In the hash of the settings: the whole crops are those of format 2, and hashes of its datasets hold."""
NEAR_DUPLICATES = ("group", "reject", "keep")
VOICING, SILERO = "voicing", "silero"
"""What measures the score speech_ratio."""
ADDED_LATER = ("group_by", "near_duplicates", "span_seconds")
"""Settings that the first datasets of this format version did not have."""


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Every setting that changes a dataset. Two builds with equal settings give the same rows.

    A dataset can be built again with other `features`, `where`, `val_fraction`, `group_by` and `near_duplicates`: only
    what is missing is computed. Any other field changes the stored images, so another value needs another folder.
    """

    landmarks: str = "auto"
    """A landmark source by name, or `auto`: the CSV beside the video, else MediaPipe's networks."""
    face: str = "largest"
    """Which face: `largest`; `all` (segments of every face); `sync` (at any time the face that speaks; needs a sync
    network); or a number, 0 being the largest."""
    features: tuple[str, ...] = ("mel",)
    """Audio extractors by name; the rows of each are stored."""
    crop_width: int = 320
    """Width of a stored crop in px, a multiple of 20; the height is 1.3 times that."""
    jpeg_quality: int = 95
    shot_threshold: float = 3.0
    """How much stronger than the motion around it a cut must be; 0 treats every video as one shot."""
    smoothing: float = SMOOTHING
    """Standard deviation, in frames, of the Gaussian that smooths the crop's position; 0 turns it off."""
    max_gap: int = MAX_GAP
    """Longest gap without a face, in frames, that is interpolated; a longer gap ends a segment."""
    landmark_tolerance: int = 1
    """Number of landmark rows that may be missing or extra at the end; OpenFace often drops the last frame."""
    span_seconds: int = 600
    """Length in seconds beyond which a video is divided into spans, which are built on their own; none is longer, by
    more than a border moves to a cut. Tracks and segments end at a border. 0 divides no video."""
    min_clips: int = MIN_CLIPS
    max_clips: int = MAX_CLIPS
    where: tuple[str, ...] = ("scale_change<=1.5",)
    """Rules that a segment must meet to be in the dataset; segments that do not are still stored."""
    val_fraction: float = 0.05
    """Share of the *videos*, not segments, that are held out for validation, in [0, 1)."""
    group_by: str = ""
    """Which videos must be on one side of the split: `folder`, `regex:PATTERN`, `column:NAME`, `face` or
    `face<=DISTANCE`, see `lawdnet.data.group_by`. Empty: each video stands alone."""
    near_duplicates: str = "group"
    """What to do with re-encodings of a video: `group` (same side of the split), `reject` (only the first stays), or
    `keep` (do not look for them)."""
    speech: str = "auto"
    """What measures the score speech_ratio: `silero` (a network), `voicing` (loud and periodic audio), or `auto`:
    silero where its weights are on the machine that starts the build. A dataset keeps what its first build chose."""
    pack_files: int = 1000
    """Number of small segment files beyond which a build packs them into shards of many videos; 0 packs none. In no
    hash: what is stored where does not change what is stored."""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Options of extractors and landmark sources: name → option → value."""

    def __post_init__(self) -> None:
        if self.crop_width % 20:
            raise ValueError(f"crop_width: {self.crop_width} must be a multiple of 20, so that the height is even")
        if self.landmarks not in ("auto", *SOURCES):
            raise ValueError(f"landmarks: unknown {self.landmarks!r}; choose from auto, {', '.join(SOURCES)}")
        if not self.features:
            raise ValueError(f"features: name at least one of {', '.join(EXTRACTORS)}")
        for name in self.features:
            if name not in EXTRACTORS:
                raise ValueError(f"features: unknown {name!r}; choose from {', '.join(EXTRACTORS)}")
        if len(set(self.features)) < len(self.features):
            raise ValueError(f"features: {', '.join(self.features)} contains a name twice")
        if not MIN_CLIPS <= self.min_clips <= self.max_clips <= MAX_CLIPS:
            limits = f"{MIN_CLIPS} ≤ min_clips ≤ max_clips ≤ {MAX_CLIPS}"
            raise ValueError(f"min_clips, max_clips: {self.min_clips}, {self.max_clips}; must satisfy {limits}")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction: {self.val_fraction} must be in [0, 1)")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality: {self.jpeg_quality} must be in 1 … 100")
        for name in ("shot_threshold", "smoothing", "max_gap", "landmark_tolerance", "span_seconds", "pack_files"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} must not be negative")
        if self.span_seconds and self.span_seconds * FPS < 2 * self.min_frames:
            least = math.ceil(2 * self.min_frames / FPS)
            raise ValueError(f"span_seconds: {self.span_seconds} must be 0 or at least {least}, two shortest segments")
        if self.near_duplicates not in NEAR_DUPLICATES:
            choices = ", ".join(NEAR_DUPLICATES)
            raise ValueError(f"near_duplicates: unknown {self.near_duplicates!r}; choose from {choices}")
        if self.speech not in ("auto", VOICING, SILERO):
            raise ValueError(f"speech: unknown {self.speech!r}; choose from auto, {VOICING}, {SILERO}")
        check_group_by(self.group_by)
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

    @property
    def span_ticks(self) -> int:
        """Longest span in frames of the 25 fps clock; 0 divides no video."""
        return self.span_seconds * FPS

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values for JSON.

        Left out are `pack_files`, which changes no row, a setting of `ADDED_LATER` where it has its default, and
        `speech` where it is what all had, so that the hashes of older datasets hold.
        """
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "pack_files"}
        for name in ADDED_LATER:
            if values[name] == getattr(type(self), name):
                del values[name]
        if self.speech != SILERO:
            del values["speech"]
        values |= {name: list(values[name]) for name in ("features", "where")}
        return values | {"options": {name: dict(options) for name, options in self.options.items()}}

    def structure(self) -> dict[str, Any]:
        """Return the settings that a dataset keeps for life: those that change the stored images."""
        values = self.to_dict()
        for name in ("features", "where", "val_fraction", "group_by", "near_duplicates"):
            values.pop(name, None)
        return values | {"options": {name: found for name, found in values["options"].items() if name in SOURCES}}

    def hash(self) -> str:
        """Hash of all settings, 16 hex digits."""
        return digest({"format": HASHED_VERSION, **self.to_dict()})


def digest(content: Any) -> str:
    """Hash of plain values, 16 hex digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
