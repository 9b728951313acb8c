"""The consecutive frames of a segment that a validation generates and measures.

Shape letters: T frames of the window, A frames of the segment that is heard, K references (5), H W crop, C feature
dimension.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from lawdnet.audio.base import windows
from lawdnet.data.sampling import decode_jpeg
from lawdnet.data.schema import FEATURES, from_rows, read_segment
from lawdnet.data.segment_list import SegmentRef
from lawdnet.evaluation.landmarks import scale_points
from lawdnet.evaluation.plan import WINDOW_CLIPS, choose
from lawdnet.evaluation.speech import quiet
from lawdnet.face.geometry import stage_size
from lawdnet.storage import locate
from lawdnet.types import CLIP_FRAMES, NUM_LANDMARKS, Bool, Float32, UInt8


@dataclass(frozen=True, kw_only=True)
class WindowSpec:
    """What is read of every segment."""

    mouth_px: int
    audio: str
    """The stored feature that the generator needs."""
    sync_feature: str | None = None
    """The stored feature that the sync network needs."""
    stored_width: int
    """Width of the dataset's crops in px."""
    seed: int = 0
    clips: int = WINDOW_CLIPS
    """Most clips, each of 9 frames."""

    @property
    def measured(self) -> set[str]:
        """Features that metrics need."""
        return {"mel"} | ({self.sync_feature} if self.sync_feature else set())


@dataclass(frozen=True, kw_only=True)
class Other:
    """The audio of another person's segment."""

    audio_AC5: Float32
    features: dict[str, Float32]
    """Features that metrics need, A rows each."""

    @property
    def num_frames(self) -> int:
        """Length of the segment, A."""
        return len(self.audio_AC5)


@dataclass(frozen=True, kw_only=True)
class Window:
    """Consecutive frames of a segment, with what is needed to generate and to measure them."""

    ref: SegmentRef
    start: int
    """Frame of the segment that is heard at which the window begins."""
    mouth_px: int
    seed: int
    truth_THW3: UInt8
    reference_KHW3: list[UInt8]
    """References of each clip."""
    audio_TC5: Float32
    landmarks_T68x2: Float32
    """In stored crop px."""
    stored_width: int
    num_frames: int
    """Length of the segment that is heard, A."""
    features: dict[str, Float32]
    """Features of the segment that is heard, as metrics need them, A rows each."""
    is_judged: bool = False
    """Whether the sync network chooses between audio."""
    other: Other | None = None
    """Another person's audio; None if there is no other person."""

    @property
    def span(self) -> slice:
        """Frames of the segment that is heard."""
        return slice(self.start, self.start + len(self.truth_THW3))

    @property
    def key(self) -> Hashable:
        """Tells windows apart whose true frames or references differ."""
        return self.ref.segment_id, self.start, len(self.truth_THW3), self.mouth_px, self.seed

    @property
    def quiet_T(self) -> Bool:
        """Whether nobody speaks; False everywhere if there are no mel features to tell."""
        if "mel" not in self.features:
            return np.zeros(len(self.truth_THW3), bool)
        return quiet(self.features["mel"])[self.span]

    def points(self, width: int) -> Float32:
        """Return the stored landmarks in px of crops of another width."""
        return scale_points(self.landmarks_T68x2, self.stored_width, width)

    def driven_by_other(self) -> Window | None:
        """Return the window with another person's audio from its beginning; None if there is no other person.

        It is shorter if that audio is.
        """
        if self.other is None:
            return None
        clips = min(len(self.reference_KHW3), self.other.num_frames // CLIP_FRAMES)
        frames = clips * CLIP_FRAMES
        return replace(
            self,
            start=0,
            truth_THW3=self.truth_THW3[:frames],
            reference_KHW3=self.reference_KHW3[:clips],
            audio_TC5=self.other.audio_AC5[:frames],
            landmarks_T68x2=self.landmarks_T68x2[:frames],
            num_frames=self.other.num_frames,
            features=self.other.features,
            other=None,
        )


def open_window(ref: SegmentRef, spec: WindowSpec) -> Window:
    """Read the window of a segment; which one follows from the seed and the segment."""
    table = _read(ref, spec, ["frames_jpeg", "landmarks"])
    jpegs = table["frames_jpeg"][0].values
    height, width = stage_size(spec.mouth_px)
    start, references = choose(ref, spec.seed, spec.clips)
    span = slice(start, start + len(references) * CLIP_FRAMES)

    def images(frames: Iterable[int]) -> UInt8:
        return np.stack([decode_jpeg(jpegs[f].as_py(), height, width, stored_width=spec.stored_width) for f in frames])

    return Window(
        ref=ref,
        start=start,
        mouth_px=spec.mouth_px,
        seed=spec.seed,
        truth_THW3=images(range(span.start, span.stop)),
        reference_KHW3=[images(row) for row in references],
        audio_TC5=windows(from_rows(table[FEATURES + spec.audio]))[span].copy(),
        landmarks_T68x2=from_rows(table["landmarks"]).reshape(-1, NUM_LANDMARKS, 2)[span],
        stored_width=spec.stored_width,
        num_frames=ref.num_frames,
        features=_features(table, spec),
    )


def open_other(ref: SegmentRef | None, spec: WindowSpec) -> Other | None:
    """Read the audio of another person's segment."""
    if ref is None:
        return None
    table = _read(ref, spec, [])
    return Other(audio_AC5=windows(from_rows(table[FEATURES + spec.audio])).copy(), features=_features(table, spec))


def _read(ref: SegmentRef, spec: WindowSpec, columns: list[str]) -> pa.Table:
    features = sorted(FEATURES + name for name in spec.measured | {spec.audio})
    return read_segment(locate(ref.path), ref.row_group, [*columns, *features])


def _features(table: pa.Table, spec: WindowSpec) -> dict[str, Float32]:
    return {n: from_rows(table[FEATURES + n]).copy() for n in spec.measured if FEATURES + n in table.column_names}
