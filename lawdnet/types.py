"""The data types that the packages exchange, and the constants that they share.

Shape letters: B batch, T video frames, N frames of one sample (1 or 5), C feature dimension, H W crop height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
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
"""Feature rows before and after a frame that the generator also gets: frame t sees rows t-2 … t+2."""
AUDIO_WINDOW = 2 * AUDIO_CONTEXT + 1

UInt8 = NDArray[np.uint8]
Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

Beat = Callable[[], None]
"""Called after every piece of long work: a watchdog ends a process that makes no progress."""


def no_beat() -> None:
    """The default beat: nobody watches."""


class RejectReason(StrEnum):
    """Why an input gave no segments: all values of the `reason` column in videos.parquet."""

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
    """An input cannot be used: a reason from the closed list, and a sentence that explains it to the user."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.detail)


@dataclass(frozen=True, kw_only=True)
class Video:
    """What probing a file tells before the file is decoded."""

    path: Path
    num_frames: int
    """Number of frames on the 25 fps clock (not of the source), estimated from the container."""
    num_source_frames: int
    """Number of frames that the source will decode to."""
    height: int
    width: int
    """Upright size in px, after the rotation that the file asks for."""
    fps: float
    """Average frame rate of the source."""
    sample_rate: int | None
    """Hz, of the first audio stream; None if the file has no audio."""
    shown_T: Int32 = field(default_factory=lambda: np.zeros(0, np.int32), compare=False, repr=False)
    """Source frame shown by each frame of the 25 fps clock."""
    stamps_F: Int64 = field(default_factory=lambda: np.zeros(0, np.int64), compare=False, repr=False)
    """Time stamp of each source frame, increasing, in the stream's time base; empty if the file does not have them."""
    video_id: str = ""


@dataclass(frozen=True, kw_only=True)
class Landmarks:
    """68 facial points (iBUG order) for each of T frames, in px of the frame, pixel centres at integers."""

    points_T68x2: Float32
    valid_T: Bool
    source: str

    def __post_init__(self) -> None:
        frames = len(self.valid_T)
        if self.points_T68x2.shape != (frames, NUM_LANDMARKS, 2):
            raise ValueError(f"points_T68x2: shape {self.points_T68x2.shape}, expected ({frames}, 68, 2)")


@dataclass(frozen=True)
class Face:
    """A face found in one image."""

    points_68x2: Float32
    """iBUG order, in px of the image, pixel centres at integers."""
    score: float = 1.0
    """Confidence of the detector; higher is more confident."""
    box_4: Float32 | None = None
    """x0 y0 x1 y1 in px, as detected; None if only the points are known."""

    @property
    def box(self) -> Float32:
        """x0 y0 x1 y1 in px: the detected box, or the one around the points if there is none."""
        if self.box_4 is not None:
            return self.box_4
        return np.concatenate([self.points_68x2.min(0), self.points_68x2.max(0)])


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stored row: T consecutive frames of one face, where T is a multiple of 9 from 54 to 288.

    The length contract: frames, landmarks, matrices and every feature have exactly T rows.
    """

    segment_id: str
    video_id: str
    index: int
    start_frame: int
    """Number of the first frame on the video's 25 fps clock."""
    track: int = 0
    """Which face track of the video: segments of one track show the same person, with no cut in between."""
    split: str
    """`train` or `val`, the same for all segments of a video."""
    frames_jpeg: tuple[bytes, ...]
    """T RGB crops as JPEG."""
    landmarks_T68x2: Float32
    """In crop px."""
    matrix_T33: Float32
    features: dict[str, Float32]
    """Rows T×C by extractor name."""
    scores: dict[str, float] = field(default_factory=dict)
    small_jpeg: dict[int, tuple[bytes, ...]] = field(default_factory=dict)
    """Level → T smaller crops as JPEG; see `lawdnet.data.levels`."""

    def __post_init__(self) -> None:
        frames = len(self.frames_jpeg)
        clips, rest = divmod(frames, CLIP_FRAMES)
        if rest or not MIN_CLIPS <= clips <= MAX_CLIPS:
            raise ValueError(f"frames_jpeg: {frames} frames, expected a multiple of {CLIP_FRAMES} from 54 to 288")
        lengths = {"landmarks_T68x2": len(self.landmarks_T68x2), "matrix_T33": len(self.matrix_T33)}
        lengths |= {f"features[{name}]": len(rows) for name, rows in self.features.items()}
        lengths |= {f"small_jpeg[{level}]": len(jpegs) for level, jpegs in self.small_jpeg.items()}
        for name, length in lengths.items():
            if length != frames:
                raise ValueError(f"{name}: {length} rows for {frames} frames")

    @property
    def num_frames(self) -> int:
        """Number of frames, T."""
        return len(self.frames_jpeg)


@dataclass(frozen=True, kw_only=True)
class TrainBatch:
    """One micro-batch; N is 1 in frame stages and 5 in the clip stage."""

    source_BN3HW: Tensor
    """RGB in [0, 1]."""
    reference_BN15HW: Tensor
    """Five reference crops per source frame, stacked by channel, in [0, 1]."""
    audio_BNC5: Tensor
    sync_audio_BC9: Tensor | None = None
    """The nine rows of the whole clip, for the sync network."""
    other_audio_BC9: Tensor | None = None
    """Negatives for the sync network, 2·B times nine rows: B from elsewhere in the same segments, then B where those
    segments are quietest."""
    audio_origin_A2: Tensor | None = None
    """For the sync network, a number of the segment and the first row of all A = 3·B audio windows: B right ones, then
    the negatives."""

    lip_audio_RC5: Tensor | None = None
    """Audio of R = 16·B frames of the samples' segments, as `audio_BNC5` …"""
    lips_R40: Tensor | None = None
    """… and the shape of the lips that belongs to it; see `lawdnet.data.lips`."""
    lip_points_BN40: Tensor | None = None
    """Where the lips are in the source."""

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.source_BN3HW)

    def to(self, device: torch.device, /) -> TrainBatch:
        """The same batch on a device."""
        moved: dict[str, Any] = {column.name: getattr(self, column.name) for column in fields(self)}
        moved |= {name: value.to(device) for name, value in moved.items() if value is not None}
        return TrainBatch(**moved)
