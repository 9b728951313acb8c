"""Reading the data of LawDNet 2024 and DINet: `training_json.json`, JPG crops and DeepSpeech rows.

The published layout (`generate_training_json` of iPaw-AI-LAB/LawDNet_2024 and MRzzm/DINet):

    training_json.json                    {VIDEO: {"video_clip_num": n, "clip_data_list": [clip, …]}}, a clip being
                                          {"frame_name_list", "frame_path_list": 9 names, "deep_speech_list": 9 × C}
    split_video_25fps_crop_face/VIDEO/CLIP/FRAME.jpg     crops; FRAME is the number on the 25 fps clock
    split_video_25fps_deepspeech/VIDEO_deepspeech.txt    `numpy.savetxt` of one row per frame
    split_video_25fps/VIDEO.mp4                          the source, which may be missing

What was not published is stored as unknown: landmarks are NaN, and a matrix leads from the published JPG to the crop.

Shape letters: T frames, C feature dimension, H W image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np

from lawdnet.data.config import BuildConfig
from lawdnet.data.levels import by_level, encode_jpeg, encode_small
from lawdnet.data.segments import cut
from lawdnet.face.geometry import crop_height
from lawdnet.storage import sha256 as file_sha256
from lawdnet.types import CLIP_FRAMES, NUM_LANDMARKS, Float32, Rejected, RejectReason, Segment

CROPS = "split_video_25fps_crop_face"
SOURCES = "split_video_25fps"
FEATURE_FILES = {
    "deepspeech": ("split_video_25fps_deepspeech", "_deepspeech.txt"),
    "deepspeech2": ("split_video_25fps_deepspeech", "_deepspeech_dp2.txt"),
}
"""Feature → folder beside the JSON, and end of the name of a video's text file."""
ASPECT_TOLERANCE = 0.03
"""Relative deviation of height / width from 1.3 that is accepted; rounding to whole px makes DINet's deviate by 1 %."""
MAX_FRAME = 2**31
READ_CHARS = 1 << 20

Roots = Sequence[tuple[str, str]]
"""Beginnings of paths in the JSON, and what replaces them on this machine."""


def read_videos(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (name, entry) of every video in a training JSON, one in memory at a time: these files reach many gigabytes.

    Raises:
        ValueError: the file is not a JSON object.
    """
    with path.open(encoding="utf8", errors="surrogateescape") as file:
        stream = _JsonStream(file)
        try:
            stream.expect("{")
            sign = stream.peek()
            while sign != "}":
                name = stream.value()
                stream.expect(":")
                yield str(name), stream.value()
                sign = stream.expect(",}")
        except (ValueError, RecursionError) as error:
            why = "nested too deeply" if isinstance(error, RecursionError) else error
            raise ValueError(f"{path}: not a training JSON of LawDNet 2024 or DINet ({why})") from None


class _JsonStream:
    """A JSON text that is read piece by piece, and gives whole values.

    ijson cannot take its place: NaN, which Python writes for a damaged feature, and text that is not UTF-8 would end
    the import instead of rejecting one video, and deep nesting takes memory quadratically (1 GB for 20 kB).
    """

    def __init__(self, file: IO[str]) -> None:
        self.file = file
        self.text = ""
        self.decoder = json.JSONDecoder()

    def _more(self) -> bool:
        piece = self.file.read(max(READ_CHARS, len(self.text)))  # doubling: a value is tried a few times at most
        self.text += piece
        return bool(piece)

    def peek(self) -> str:
        """Return the next character that is not a space; empty at the end."""
        self.text = self.text.lstrip()
        while not self.text and self._more():
            self.text = self.text.lstrip()
        return self.text[:1]

    def expect(self, signs: str) -> str:
        """Take one of these characters, and return it."""
        sign = self.peek()
        if not sign or sign not in signs:
            raise ValueError(f"found {sign or 'the end of the file'} instead of {' or '.join(signs)}")
        self.text = self.text[1:]
        return sign

    def value(self) -> Any:
        """Take one value, and return it."""
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text)
            except ValueError:
                if not self._more():
                    raise
                continue
            self.text = self.text[end:]
            return value


@dataclass(frozen=True)
class Clip:
    """Nine consecutive frames of a published dataset."""

    start: int
    """Number of the first frame."""
    paths: tuple[Path, ...]
    rows_9xC: Float32


def read_clips(name: str, entry: Any, folder: Path, feature: str, roots: Roots = ()) -> list[Clip]:
    """Return the clips of a video, sorted by their first frame.

    Args:
        name: the name of the video.
        entry: the value of the video in the JSON.
        folder: the folder of the JSON.
        feature: the feature in the rows; rows that the JSON lacks come from the video's text file.
        roots: replaced beginnings of paths; if none fits, the crops are looked for beside the JSON, then where the
            JSON says.

    Raises:
        Rejected: DAMAGED or FEATURE_LENGTH if the entry does not have the published form.
    """
    try:
        clips = entry["clip_data_list"]
        parts = [(clip["frame_path_list"], clip.get("frame_name_list"), clip.get("deep_speech_list")) for clip in clips]
    except (KeyError, TypeError, AttributeError) as error:
        raise Rejected(
            RejectReason.DAMAGED, f"its entry in the JSON does not have the published form ({error!r})"
        ) from error
    texts = _load_text(name, folder, feature) if any(not _is_whole(rows) for _, _, rows in parts) else None
    found = []
    for number, (paths, names, rows) in enumerate(parts):
        start = _first_frame(number, paths)
        if not _is_whole(rows) and texts is not None:
            rows = texts[start : start + CLIP_FRAMES]
        found.append(Clip(start, _located(paths, names, folder, roots), _rows(number, rows, start)))
    found.sort(key=lambda clip: clip.start)
    if any(a.start + CLIP_FRAMES > b.start for a, b in pairwise(found)):
        raise Rejected(RejectReason.DAMAGED, "two clips contain the same frame")
    if len({clip.rows_9xC.shape for clip in found}) > 1:
        raise Rejected(RejectReason.FEATURE_LENGTH, "the feature rows differ in length")
    return found


def _first_frame(number: int, paths: Any) -> int:
    """Return the first of nine consecutive frame numbers, from the names of a clip's files."""
    try:
        frames = [int(str(path).replace("\\", "/").rsplit("/", 1)[-1].partition(".")[0]) for path in paths]
    except (TypeError, ValueError):
        frames = []
    if len(frames) != CLIP_FRAMES or frames != list(range(frames[0], frames[0] + CLIP_FRAMES)) or frames[0] < 0:
        raise Rejected(RejectReason.DAMAGED, f"clip {number}: not nine consecutive frame numbers")
    if frames[0] > MAX_FRAME:
        raise Rejected(RejectReason.DAMAGED, f"clip {number}: the frame number {frames[0]} is too large")
    return frames[0]


def _is_whole(rows: Any) -> bool:
    return isinstance(rows, list) and len(rows) == CLIP_FRAMES


def _rows(number: int, rows: Any, start: int) -> Float32:
    """Return nine feature rows, all finite."""
    try:
        rows_9xC = np.array(rows, np.float32)
    except (TypeError, ValueError):
        rows_9xC = np.empty(0, np.float32)
    if rows_9xC.ndim != 2 or len(rows_9xC) != CLIP_FRAMES or not rows_9xC.shape[1]:
        detail = f"clip {number} (frame {start}): not {CLIP_FRAMES} feature rows of equal length"
        raise Rejected(RejectReason.FEATURE_LENGTH, detail)
    if not np.isfinite(rows_9xC).all():
        raise Rejected(RejectReason.DAMAGED, f"clip {number} (frame {start}): a feature is not finite")
    return rows_9xC


def _load_text(name: str, folder: Path, feature: str) -> Float32 | None:
    """Return a row per frame from the video's text file; None if there is none."""
    if feature not in FEATURE_FILES:
        return None
    inside, suffix = FEATURE_FILES[feature]
    path = folder / inside / f"{name}{suffix}"
    try:
        return np.loadtxt(path, dtype=np.float32, ndmin=2)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Rejected(RejectReason.FEATURE_LENGTH, f"{path.name}: not rows of numbers") from error


def _located(paths: Sequence[Any], names: Any, folder: Path, roots: Roots) -> tuple[Path, ...]:
    """Return the paths of a clip's files on this machine."""
    written = [str(path).replace("\\", "/") for path in paths]  # some were made on Windows
    for old, new in roots:
        if written[0].startswith(old.rstrip("/\\").replace("\\", "/") + "/"):
            return tuple(Path(new, path[len(old.rstrip("/\\")) + 1 :]) for path in written)
    tails = names if isinstance(names, list) and len(names) == len(paths) else written
    beside = tuple(folder.joinpath(CROPS, *str(tail).replace("\\", "/").split("/")[-3:]) for tail in tails)
    as_written = tuple(Path(path) for path in written)
    return as_written if not beside[0].parent.is_dir() and as_written[0].parent.is_dir() else beside


@dataclass(frozen=True)
class Identity:
    """What a video is known by."""

    path: str
    """Relative to the folder of the JSON."""
    bytes: int
    sha256: str


def identify(name: str, folder: Path, clips: Sequence[Clip]) -> Identity:
    """Return the identity of a video: that of its source if available, else that of its rows and crops.

    Raises:
        Rejected: UNREADABLE if a crop is missing.
    """
    source = folder / SOURCES / f"{name}.mp4"
    if source.is_file():
        return Identity(f"{SOURCES}/{name}.mp4", source.stat().st_size, file_sha256(source))
    sizes = [_size(path) for clip in clips for path in clip.paths]
    digest = hashlib.sha256(np.array(sizes, "<i8").tobytes())
    for clip in clips:
        digest.update(clip.rows_9xC.astype("<f4").tobytes())
    return Identity(f"{CROPS}/{name}", sum(sizes), digest.hexdigest())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError) as error:  # a name may hold what no file can
        raise _missing(path, error) from error


def _missing(path: Path, error: OSError | ValueError) -> Rejected:
    why = error.strerror if isinstance(error, OSError) else error
    text = f"{path}: {why}; if the crops were moved, give both folders with --root OLD=NEW"
    return Rejected(RejectReason.UNREADABLE, text)


def runs(clips: Sequence[Clip], config: BuildConfig) -> Iterator[list[Clip]]:
    """Yield the clips of each segment: 6 to 32 that follow one another without a gap."""
    row: list[Clip] = []
    for clip in [*clips, None]:
        if clip and row and clip.start == row[-1].start + CLIP_FRAMES:
            row.append(clip)
            continue
        for length in cut(len(row) * CLIP_FRAMES, config.min_frames, config.max_frames):
            yield row[: length // CLIP_FRAMES]
            del row[: length // CLIP_FRAMES]
        row = [clip] if clip else []


def video_segments(
    clips: Sequence[Clip], *, name: str, split: str, config: BuildConfig, pool: ThreadPoolExecutor
) -> Iterator[Segment]:
    """Make the segments of one video, in order.

    Args:
        clips: sorted by their first frame.
        name: the video id.
        config: gives the feature, the crop's width and the limits of a segment.
        pool: decodes and resizes the crops.

    Raises:
        Rejected: UNREADABLE or DAMAGED for a crop that cannot be used, TOO_SHORT if fewer than six clips follow one
            another.
    """
    index = -1
    for index, row in enumerate(runs(clips, config)):
        crops = list(pool.map(lambda path: read_crop(path, config), [p for clip in row for p in clip.paths]))
        yield Segment(
            segment_id=f"{name}-{index:04d}",
            video_id=name,
            index=index,
            start_frame=row[0].start,
            split=split,
            frames_jpeg=tuple(crop.jpeg for crop in crops),
            landmarks_T68x2=np.full((len(crops), NUM_LANDMARKS, 2), np.nan, np.float32),
            matrix_T33=np.stack([crop.matrix_33 for crop in crops]),
            features={config.features[0]: np.concatenate([clip.rows_9xC for clip in row])},
            small_jpeg=by_level([crop.small for crop in crops]),
        )
    if index < 0:
        need = f"{config.min_frames // CLIP_FRAMES} that follow one another are needed"
        raise Rejected(RejectReason.TOO_SHORT, f"{len(clips)} clips of nine frames; {need}")


@dataclass(frozen=True)
class Crop:
    """A published crop as it is stored."""

    jpeg: bytes
    small: dict[int, bytes]
    """See `encode_small`."""
    matrix_33: Float32
    """From px of the published crop to px of the stored one."""


def read_crop(path: Path, config: BuildConfig) -> Crop:
    """Return a published crop as a stored one.

    A JPG that has the stored size already is kept, byte for byte.

    Raises:
        Rejected: UNREADABLE (missing), DAMAGED (truncated, not an image, or not 1.3 times as high as wide).
    """
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # a name may hold what no file can
        raise _missing(path, error) from error
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise Rejected(RejectReason.DAMAGED, f"{path}: not a complete JPG")
    (height, width), (to_height, to_width) = image.shape[:2], (crop_height(config.crop_width), config.crop_width)
    if abs(height / width / 1.3 - 1) > ASPECT_TOLERANCE:
        raise Rejected(RejectReason.DAMAGED, f"{path}: {height}×{width} px, a crop must be 1.3 times as high as wide")
    if (height, width) != (to_height, to_width):
        method = cv2.INTER_AREA if width > to_width else cv2.INTER_LINEAR
        image = cv2.resize(image, (to_width, to_height), interpolation=method)
        data = encode_jpeg(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), config.jpeg_quality)
    small = encode_small(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), config.jpeg_quality)
    return Crop(data, small, _scale_matrix(to_width / width, to_height / height))


def _scale_matrix(x: float, y: float) -> Float32:
    """Return the matrix of a resize. Pixel centres are integers, so the corner at -0.5 stays where it is."""
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]], np.float32)
