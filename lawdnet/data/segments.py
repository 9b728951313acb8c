"""One video to segments: decode once, crop, encode; memory does not grow with the length of the video."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from lawdnet.audio.base import AudioExtractor, fit_to_video
from lawdnet.audio.io import load_audio
from lawdnet.data.config import BuildConfig
from lawdnet.data.quality import Usable, face_scale, scale_change, usable_frames
from lawdnet.face.align import crop_face, fit_similarity, transform_points
from lawdnet.face.track import fill_gaps
from lawdnet.landmarks.base import LandmarkSource, landmarks_of
from lawdnet.types import CLIP_FRAMES, Float32, Landmarks, Rejected, RejectReason, Segment, UInt8, Video
from lawdnet.video import decode, probe


def video_id(path: Path, sha256: str) -> str:
    """A name that a person recognises and that two different videos never share."""
    stem = re.sub(r"[^\w-]+", "_", path.stem).strip("_-")[:48] or "video"
    return f"{stem}-{sha256[:10]}"


def file_sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def encode_jpeg(image_HW3: UInt8, quality: int) -> bytes:
    """RGB picture as JPEG without chroma subsampling (lips are small and red)."""
    flags = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image_HW3, cv2.COLOR_RGB2BGR), flags)
    assert done
    return data.tobytes()


def cut(length: int, min_frames: int, max_frames: int) -> list[int]:
    """Lengths of the segments that a run of `length` usable frames is cut into.

    Each is a multiple of 9 within the limits, and they differ by at most 9. With limits at least a factor of two apart
    fewer than 9 frames are lost at the end; a run shorter than `min_frames` gives nothing.
    """
    clips, least, most = (frames // CLIP_FRAMES for frames in (length, min_frames, max_frames))
    parts = min(-(-clips // most), clips // least)
    if not parts:
        return []
    small, larger = divmod(min(clips, parts * most), parts)
    return [(small + (part < larger)) * CLIP_FRAMES for part in range(parts)]


@dataclass
class _Run:
    """Consecutive usable frames that wait to become segments."""

    start: int
    frames_jpeg: list[bytes] = field(default_factory=list)
    landmarks: list[Float32] = field(default_factory=list)
    matrices: list[Float32] = field(default_factory=list)

    def take(self, frames: int) -> _Run:
        """Splits the first `frames` off, and returns them."""
        head = _Run(self.start, self.frames_jpeg[:frames], self.landmarks[:frames], self.matrices[:frames])
        self.start += frames
        del self.frames_jpeg[:frames], self.landmarks[:frames], self.matrices[:frames]
        return head


@dataclass
class Tally:
    """What became of a video's frames; filled while its segments are drawn."""

    frames: int = 0
    used: int = 0
    segments: int = 0
    no_face: int = 0
    outside: int = 0
    size_changes: int = 0
    longest: int = 0
    """Usable frames in the longest row."""

    def describe(self) -> str:
        """One line for the `detail` column."""
        parts = [f"{self.used} of {self.frames} frames used"]
        causes = {
            "without a face": self.no_face,
            "with the face partly outside": self.outside,
            "in segments where the face size changes too much": self.size_changes,
        }
        parts += [f"{count} {cause}" for cause, count in causes.items() if count]
        return "; ".join(parts)


def read_features(path: Path, video: Video, extractors: Mapping[str, AudioExtractor]) -> dict[str, Float32]:
    """Every feature of a video's sound, each with exactly `video.num_frames` rows (the length contract).

    Raises:
        Rejected: no sound, too little of it, or an extractor that gives the wrong number of rows.
    """
    wave = load_audio(path, num_frames=video.num_frames)
    return {
        name: fit_to_video(extractor.extract(wave), extractor.frame_shift, video.num_frames)
        for name, extractor in extractors.items()
    }


def video_segments(
    path: Path,
    *,
    name: str,
    split: str,
    source: LandmarkSource,
    extractors: Mapping[str, AudioExtractor],
    config: BuildConfig,
    tally: Tally,
) -> Iterator[Segment]:
    """Draws the segments of one video, in order; at most `max_frames + min_frames` crops wait in memory.

    Args:
        name: the video id.
        tally: counts frames as they go by.

    Raises:
        Rejected: at any point; segments drawn before it belong to a video that must not be kept.
    """
    video = probe(path)
    landmarks = fill_gaps(landmarks_of(video, source, config.landmark_tolerance), config.max_gap)
    features = read_features(path, video, extractors)
    usable = usable_frames(landmarks, video.height, video.width)

    for index, run in enumerate(_runs(path, video, landmarks, usable, config, tally)):
        stop = run.start + len(run.frames_jpeg)
        matrix_T33 = np.stack(run.matrices)
        yield Segment(
            segment_id=f"{name}-{index:04d}",
            video_id=name,
            index=index,
            start_frame=run.start,
            split=split,
            frames_jpeg=tuple(run.frames_jpeg),
            landmarks_T68x2=np.stack(run.landmarks),
            matrix_T33=matrix_T33,
            features={extractor: rows_TC[run.start : stop] for extractor, rows_TC in features.items()},
            scores={
                "face_px": float(config.crop_width / face_scale(matrix_T33).mean()),
                "scale_change": scale_change(matrix_T33),
            },
        )
    if abs(tally.frames - video.num_frames) > 1:
        promise = f"the file promises {video.num_frames} frames and decodes to {tally.frames}"
        raise Rejected(RejectReason.DAMAGED, promise)
    if not tally.segments:
        reason = RejectReason.FACE_SIZE_CHANGES if tally.size_changes else _short_reason(tally, usable, config)
        need = f"at most {tally.longest} usable frames in a row, {config.min_frames} are needed"
        raise Rejected(reason, f"{need}; {tally.describe()}")


def _short_reason(tally: Tally, usable: Usable, config: BuildConfig) -> RejectReason:
    short = tally.frames < config.min_frames
    return RejectReason.TOO_SHORT if short else usable.main_reason()


def _runs(
    path: Path, video: Video, landmarks: Landmarks, usable: Usable, config: BuildConfig, tally: Tally
) -> Iterator[_Run]:
    """Decodes and crops; yields the frames of every segment whose face keeps its size."""
    for run, is_end in _grow(path, video, landmarks, usable, config, tally):
        tally.longest = max(tally.longest, len(run.frames_jpeg))
        room = config.max_frames + config.min_frames
        lengths = cut(len(run.frames_jpeg), config.min_frames, config.max_frames) if is_end else [config.max_frames]
        assert is_end or len(run.frames_jpeg) >= room
        for length in lengths:
            head = run.take(length)
            if scale_change(np.stack(head.matrices)) > config.max_scale_change:
                tally.size_changes += length
                continue
            tally.segments += 1
            tally.used += length
            yield head


def _grow(
    path: Path, video: Video, landmarks: Landmarks, usable: Usable, config: BuildConfig, tally: Tally
) -> Iterator[tuple[_Run, bool]]:
    """Yields a run each time it is long enough to cut a full segment off, and again when it ends."""
    run = _Run(0)
    for tick, (source_index, frame_HW3) in enumerate(decode(path)):
        tally.frames += 1
        known = tick < video.num_frames  # a tick that was not promised has no features
        if not (known and usable.usable_T[source_index]):
            outside = known and bool(landmarks.valid_T[source_index])
            tally.outside += outside
            tally.no_face += not outside
            yield run, True
            run = _Run(tick + 1)
            continue
        points_68x2 = landmarks.points_T68x2[source_index]
        matrix_33 = fit_similarity(points_68x2, config.crop_width).astype(np.float32)
        crop_HW3 = crop_face(frame_HW3, matrix_33, config.crop_width)
        run.frames_jpeg.append(encode_jpeg(crop_HW3, config.jpeg_quality))
        run.landmarks.append(transform_points(points_68x2, matrix_33).astype(np.float32))
        run.matrices.append(matrix_33)
        if len(run.frames_jpeg) >= config.max_frames + config.min_frames:
            yield run, False
    yield run, True
