"""Landmark CSV files as OpenFace writes them, next to their videos.

Columns are found by name, in any order: `frame` (from 1), `x_0 … x_67`, `y_0 … y_67` in px, and if present `face_id`,
`confidence` and `success`. All others (gaze, pose, 3-D `X_0 …`) are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from lawdnet.landmarks.base import MIN_FACE_PX, ROWS_TOLERANCE, Frames, csv_of, has_csv
from lawdnet.types import NUM_LANDMARKS, Bool, Face, Float32, Landmarks, Rejected, RejectReason, Video

POINTS = [f"{axis}_{i}" for axis in "xy" for i in range(NUM_LANDMARKS)]
REQUIRED = ["frame", *POINTS]
OPTIONAL = ["face_id", "confidence", "success"]
NAN_WORDS = [
    "",
    "nan",
    "NaN",
    "NAN",
    "-nan",
    "nan(ind)",
    "-nan(ind)",
    "1.#IND",
    "-1.#IND",
    "1.#QNAN",
    "-1.#QNAN",
]
MAX_HEADER_CHARS = 1 << 20
MAX_SPARSE_FRAME = 100_000
"""Frame numbers up to this are accepted whatever the number of rows: about an hour, 54 MB of points."""
ARRAYS = ("frame_R", "face_R", "confidence_R", "points_R68x2", "valid_R")
BLOCK_BYTES = 8 << 20
"""Bytes of a file that are read at a time."""
FRAMES_PER_ROW = 100
"""How sparse a longer file may be before a frame number counts as an error."""


class OpenFace:
    """Reads the CSV next to the video: `talk.csv` for `talk.mp4`.

    Args:
        tolerance: how many rows may be missing or surplus at the end.
    """

    name = "openface"
    reads_frames = False
    model_sha256: str | None = None

    def __init__(self, *, tolerance: int = ROWS_TOLERANCE) -> None:
        self.tolerance = tolerance

    def faces(self, video: Video, frames: Frames) -> Iterator[list[Face]]:
        """Return the faces of every tick, the most confident first; see `LandmarkSource.faces`.

        Rows belong to the source's frames; another number of rows means that the CSV belongs to another file.

        Raises:
            Rejected: NO_LANDMARKS without a file, BAD_LANDMARKS if it cannot be read, LANDMARK_COUNT if it belongs to
                another video; all before a frame is pulled.
        """
        shown = video.shown_T
        rows = _read_rows(_found_csv(video.path), range(int(shown[0]) + 1, int(shown[-1]) + 2) if len(shown) else None)
        count = rows.last
        if abs(count - video.num_source_frames) > self.tolerance:
            raise _wrong_count(count, video)
        by_frame = _faces_by_frame(rows)
        return (list(by_frame.get(index + 1, ())) for index, _ in frames)

    def detect(self, video_path: Path) -> Landmarks:
        """Return the face of each frame, as from `read_csv`.

        Raises:
            Rejected: NO_LANDMARKS without a file, BAD_LANDMARKS if it cannot be read.
        """
        return read_csv(_found_csv(Path(video_path)))


def _found_csv(video_path: Path) -> Path:
    if not has_csv(video_path):
        raise Rejected(RejectReason.NO_LANDMARKS, f"no {csv_of(video_path).name} next to {video_path.name}")
    return csv_of(video_path)


def _wrong_count(rows: int, video: Video) -> Rejected:
    hint = " (the rows match a 25 fps copy: put that copy next to the CSV)" if rows == video.num_frames else ""
    return Rejected(RejectReason.LANDMARK_COUNT, f"{rows} landmark rows for {video.num_source_frames} frames{hint}")


@dataclass(frozen=True)
class _Rows:
    """The R rows of a file that are wanted, in its order."""

    frame_R: NDArray[np.int64]
    """Counted from 1."""
    face_R: NDArray[np.float64]
    confidence_R: NDArray[np.float64]
    """0 if unknown or if the row is not valid."""
    points_R68x2: Float32
    valid_R: Bool
    """Tracked successfully, with all coordinates finite."""
    last: int
    """Last frame of the file, wanted or not."""


def _read_rows(path: Path, wanted: range | None = None) -> _Rows:
    """Read and check a file, and keep the rows of the wanted frames, or all: a long file may be larger than memory."""
    frames, faces, kept = [], [], []
    for columns in _blocks(path):
        frame_R = columns["frame"]
        face_R = columns.get("face_id", np.zeros(len(frame_R)))
        is_kept_R = np.ones(len(frame_R), bool) if wanted is None else _within(frame_R, wanted)
        frames.append(frame_R)
        faces.append(face_R)
        kept.append(_block_rows({name: values[is_kept_R] for name, values in columns.items()}, face_R[is_kept_R]))
    if not frames:
        raise _bad(path, "the file has a header but no rows")
    frame_F = _frame_numbers(path, np.concatenate(frames))
    _refuse_duplicates(path, frame_F, np.concatenate(faces))
    joined = {name: np.concatenate([getattr(rows, name) for rows in kept]) for name in ARRAYS}
    return _Rows(**joined, last=int(frame_F.max()))


def _within(frame_R: NDArray[np.float64], wanted: range) -> Bool:
    return np.asarray((frame_R >= wanted.start) & (frame_R < wanted.stop))


def _block_rows(columns: dict[str, NDArray[np.float64]], face_R: NDArray[np.float64]) -> _Rows:
    """Return some rows; their frames are checked when all are known."""
    rows = len(face_R)
    ones = np.ones(rows)
    with np.errstate(over="ignore", invalid="ignore"):
        flat = np.stack([columns[name].astype(np.float32) for name in POINTS], 1)
        frame_R = columns["frame"].astype(np.int64)
    points = flat.reshape(rows, 2, NUM_LANDMARKS).swapaxes(1, 2)
    valid = np.isfinite(points).all((1, 2)) & (columns.get("success", ones) > 0)
    confidence = np.where(valid, np.nan_to_num(columns.get("confidence", ones), posinf=0, neginf=0), 0)
    return _Rows(frame_R, face_R, confidence, points, valid, last=0)


def _faces_by_frame(rows: _Rows) -> dict[int, list[Face]]:
    """Return the faces of each frame that has any, the most confident first."""
    with np.errstate(invalid="ignore"):
        spread_R = np.ptp(rows.points_R68x2, axis=1).max(1)
    # trackers write zeros where they found nothing, and call it a success
    good_R = rows.valid_R & (spread_R >= MIN_FACE_PX)
    by_frame: dict[int, list[Face]] = {}
    for row in np.lexsort((rows.face_R, -rows.confidence_R)):
        if good_R[row]:
            face = Face(rows.points_R68x2[row], float(rows.confidence_R[row]))
            by_frame.setdefault(int(rows.frame_R[row]), []).append(face)
    return by_frame


def read_csv(path: Path) -> Landmarks:
    """Read one face for every frame from 1 to the last frame in the file.

    Frames that are missing, have success 0, or have a missing or infinite coordinate are invalid (NaN points). Of
    several faces in a frame, the one with the highest total confidence over the file is taken, so that the result does
    not jump between two people; where it is missing, another is taken.

    Raises:
        Rejected: BAD_LANDMARKS, with a detail that says what is wrong and where.
    """
    rows = _read_rows(path)
    _, face_index = np.unique(rows.face_R, return_inverse=True)
    total = np.bincount(face_index, weights=rows.confidence_R)[face_index]
    best_last = np.lexsort((-face_index, total, rows.valid_R))
    best_last = best_last[rows.valid_R[best_last]]
    points_T68x2 = np.full((rows.frame_R.max(), NUM_LANDMARKS, 2), np.nan, np.float32)
    points_T68x2[rows.frame_R[best_last] - 1] = rows.points_R68x2[best_last]
    return Landmarks(points_T68x2=points_T68x2, valid_T=~np.isnan(points_T68x2[:, 0, 0]), source=OpenFace.name)


def write_csv(path: Path, points_T68x2: Float32, fps: float) -> None:
    """Write points as OpenFace does, to 0.001 px; frames with a NaN or infinite point get success 0."""
    header = ", ".join(["frame", "face_id", "timestamp", "confidence", "success", *POINTS])
    lines = [header]
    for index, points in enumerate(np.asarray(points_T68x2, np.float64)):
        success = int(np.isfinite(points).all())
        values = points.T.ravel() if success else np.zeros(len(POINTS))
        cells = ", ".join(f"{value:.3f}" for value in values)
        lines.append(f"{index + 1}, 0, {index / fps:.3f}, {success:.3f}, {success}, {cells}")
    Path(path).write_text("\n".join([*lines, ""]), encoding="utf-8")


def _bad(path: Path, detail: str) -> Rejected:
    return Rejected(RejectReason.BAD_LANDMARKS, f"{path.name}: {detail}")


def _header(path: Path) -> list[str]:
    """Read the column names, without the spaces around them.

    Raises:
        Rejected: the file is empty or not text, or a required column is missing.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            line = file.readline(MAX_HEADER_CHARS)
    except UnicodeDecodeError:
        raise _bad(path, "not a text file in UTF-8") from None
    if not line.strip():
        raise _bad(path, "the file or its first line is empty")
    names = [name.strip() for name in line.split(",")]
    missing = next((name for name in REQUIRED if name not in names), None)
    if missing:
        hint = "; columns must be separated by commas" if len(names) == 1 else ""
        raise _bad(path, f"no column {missing!r}{hint}")
    return names


def _blocks(path: Path) -> Iterator[dict[str, NDArray[np.float64]]]:
    """Read the columns that are used, some rows at a time, as float64 with NaN for missing values."""
    names = _header(path)
    index = {name: str(names.index(name)) for name in [*REQUIRED, *OPTIONAL] if name in names}
    try:
        with path.open("rb") as file:  # not by name: a name must be valid UTF-8
            reader = csv.open_csv(
                file,
                # numbered names, because real headers have spaces and may repeat the name of an unused column
                read_options=csv.ReadOptions(
                    column_names=[str(i) for i in range(len(names))],
                    skip_rows=1,
                    use_threads=False,
                    block_size=BLOCK_BYTES,
                ),
                convert_options=csv.ConvertOptions(
                    include_columns=list(index.values()),
                    column_types={number: pa.float64() for number in index.values()},
                    null_values=[blank + word for blank in ("", " ") for word in NAN_WORDS],
                ),
            )
            for batch in reader:
                if batch.num_rows:
                    yield {name: batch[number].to_numpy(zero_copy_only=False) for name, number in index.items()}
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        first_line = str(error).splitlines()[0]
        detail = re.sub(r"CSV column #(\d+)", lambda found: f"column {names[int(found[1])]}", first_line)
        raise _bad(path, detail) from None


def _frame_numbers(path: Path, values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the frame numbers as integers.

    Raises:
        Rejected: a number is not a whole number from 1, or is far larger than the number of rows.
    """
    limit = MAX_SPARSE_FRAME + FRAMES_PER_ROW * len(values)
    wrong = ~((values >= 1) & (values <= limit) & (values == np.floor(values)))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise _bad(path, f"Row #{row + 2}: frame {values[row]:g}, expected a whole number from 1 to {limit}")
    return values.astype(np.int64)


def _refuse_duplicates(path: Path, frame: NDArray[np.int64], face: NDArray[np.float64]) -> None:
    pairs, counts = np.unique(np.stack([frame, face], 1), axis=0, return_counts=True)
    if (counts > 1).any():
        number, face_id = pairs[np.argmax(counts > 1)]
        raise _bad(path, f"frame {number:g} is listed {counts.max()} times for face {face_id:g}")
