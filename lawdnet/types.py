"""The data types that travel between the parts, and the constants they share.

Shape letters: B batch, T video frames, N frames of one sample (1 or 5), C feature dimension, H W crop height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

FPS = 25
SAMPLE_RATE = 16_000
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
CLIP_FRAMES = 9
MIN_CLIPS = 6
MAX_CLIPS = 32
NUM_REFERENCES = 5
NUM_LANDMARKS = 68
AUDIO_CONTEXT = 2
"""Feature rows on either side of a frame that the generator hears with it: frame t sees rows t-2 … t+2."""
AUDIO_WINDOW = 2 * AUDIO_CONTEXT + 1

UInt8 = NDArray[np.uint8]
Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Bool = NDArray[np.bool_]

Beat = Callable[[], None]
"""Called after every piece of long work: a watchdog ends a process that makes no progress."""


def no_beat() -> None:
    """The default beat: nobody watches."""


class RejectReason(StrEnum):
    """Why an input gave no segments: the closed list behind the `reason` column of videos.parquet."""

    UNREADABLE = "unreadable"
    EMPTY_FILE = "empty_file"
    NOT_A_VIDEO = "not_a_video"
    NO_VIDEO_STREAM = "no_video_stream"
    DAMAGED = "damaged"
    NO_AUDIO = "no_audio"
    AUDIO_TOO_SHORT = "audio_too_short"
    NO_LANDMARKS = "no_landmarks"
    BAD_LANDMARKS = "bad_landmarks"
    LANDMARK_COUNT = "landmark_count"
    NO_FACE = "no_face"
    FACE_LEAVES_PICTURE = "face_leaves_picture"
    TOO_SHORT = "too_short"
    FEATURE_LENGTH = "feature_length"
    THRESHOLD = "threshold"
    DUPLICATE = "duplicate"
    TIMEOUT = "timeout"
    CRASH = "crash"
    INTERNAL_ERROR = "internal_error"


class Rejected(ValueError):
    """An input that cannot be used, with a reason from the closed list and a detail a person understands."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.detail)


@dataclass(frozen=True, kw_only=True)
class Video:
    """What probing a file tells, before anything is decoded."""

    path: Path
    num_frames: int
    """Frames on the 25 fps clock (not the source's frames), estimated from the container."""
    num_source_frames: int
    """Frames that the source will decode to."""
    height: int
    width: int
    """Upright size in px, after the rotation the file asks for."""
    fps: float
    """The source's average rate."""
    sample_rate: int | None
    """Of the first audio stream; None where there is no audio."""
    shown_T: Int32 = field(default_factory=lambda: np.zeros(0, np.int32), compare=False, repr=False)
    """The source frame that each frame of the 25 fps clock shows."""
    video_id: str = ""


@dataclass(frozen=True, kw_only=True)
class Landmarks:
    """68 facial points for each of T frames (iBUG order), in px of the frame, pixel centres at integers."""

    points_T68x2: Float32
    valid_T: Bool
    source: str

    def __post_init__(self) -> None:
        frames = len(self.valid_T)
        if self.points_T68x2.shape != (frames, NUM_LANDMARKS, 2):
            raise ValueError(f"points_T68x2: shape {self.points_T68x2.shape}, expected ({frames}, 68, 2)")


@dataclass(frozen=True)
class Face:
    """A face found in one picture."""

    points_68x2: Float32
    """iBUG order, in px of the picture, pixel centres at integers."""
    score: float = 1.0
    """How sure its finder is; larger is surer."""
    box_4: Float32 | None = None
    """x0 y0 x1 y1 in px, as detected; None where only the points are known."""

    @property
    def box(self) -> Float32:
        """x0 y0 x1 y1 in px: the detected box, else the one around the points."""
        if self.box_4 is not None:
            return self.box_4
        return np.concatenate([self.points_68x2.min(0), self.points_68x2.max(0)])


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The stored row: T consecutive frames of one face, T a multiple of 9 between 54 and 288.

    The length contract: pictures, landmarks, matrices and every feature have exactly T rows.
    """

    segment_id: str
    video_id: str
    index: int
    start_frame: int
    """First frame on the video's 25 fps clock."""
    track: int = 0
    """Which face of the video: segments of one track show one person without a cut between them."""
    split: str
    """`train` or `val`, the same for all segments of a video."""
    frames_jpeg: tuple[bytes, ...]
    """T RGB crops as JPEG."""
    landmarks_T68x2: Float32
    """In crop px."""
    matrix_T33: Float32
    features: dict[str, Float32]
    """Extractor name → T×C."""
    scores: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        frames = len(self.frames_jpeg)
        clips, rest = divmod(frames, CLIP_FRAMES)
        if rest or not MIN_CLIPS <= clips <= MAX_CLIPS:
            raise ValueError(f"frames_jpeg: {frames} frames, expected 9 × (6 … 32)")
        lengths = {"landmarks_T68x2": len(self.landmarks_T68x2), "matrix_T33": len(self.matrix_T33)}
        lengths |= {f"features[{name}]": len(rows) for name, rows in self.features.items()}
        for name, length in lengths.items():
            if length != frames:
                raise ValueError(f"{name}: {length} rows for {frames} frames")

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.frames_jpeg)


@dataclass(frozen=True, kw_only=True)
class TrainBatch:
    """What one training step sees; N is 1 in frame stages and 5 in the clip stage."""

    source_BN3HW: Tensor
    """In [0, 1]."""
    reference_BN15HW: Tensor
    """Five reference crops per source frame, stacked by channel, in [0, 1]."""
    audio_BNC5: Tensor
    sync_audio_BC9: Tensor | None = None
    """The nine rows of the whole clip, for the sync network."""
    other_audio_BC9: Tensor | None = None
    """For training the sync network, 2·B times nine rows: from elsewhere in the same segments, then their quietest."""
