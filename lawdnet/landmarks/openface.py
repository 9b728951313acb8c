"""Landmark CSV files as OpenFace writes them, beside the videos they belong to.

Columns are found by name, whatever their order: `frame` (from 1), `x_0 … x_67`, `y_0 … y_67` in px, and where
present `face_id`, `confidence` and `success`. All others (gaze, pose, 3-D `X_0 …`) are ignored.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from lawdnet.types import NUM_LANDMARKS, Float32, Landmarks, Rejected, RejectReason

POINTS = [f"{axis}_{i}" for axis in "xy" for i in range(NUM_LANDMARKS)]
REQUIRED = ["frame", *POINTS]
OPTIONAL = ["face_id", "confidence", "success"]
WORDS_FOR_NAN = [
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
FREE_FRAMES = 100_000
"""Frame numbers up to this are believed whatever the number of rows: about an hour, 54 MB of points."""
FRAMES_PER_ROW = 100
"""How sparse a longer file may be before a frame number is taken for an error."""


class OpenFace:
    """Reads the CSV beside the video: `talk.mp4` has `talk.csv`."""

    name = "openface"

    def detect(self, video_path: Path) -> Landmarks:
        """The face of each frame as `read_csv` finds it.

        Raises:
            Rejected: NO_LANDMARKS without a file, BAD_LANDMARKS if it cannot be read.
        """
        path = Path(video_path).with_suffix(".csv")
        if not path.is_file():
            raise Rejected(RejectReason.NO_LANDMARKS, f"no {path.name} beside {Path(video_path).name}")
        return read_csv(path)


def read_csv(path: Path) -> Landmarks:
    """One face for every frame from 1 to the last that the file lists.

    Frames it leaves out, with success 0, or with a missing or infinite coordinate are invalid (NaN points).
    Of several faces in a frame it takes the one with the highest total confidence over the file, so that it
    does not jump between two people; the others stand in where that one is missing.

    Raises:
        Rejected: BAD_LANDMARKS, with a detail that says what is wrong and where.
    """
    columns = _read_columns(path)
    rows = len(columns["frame"])
    ones = np.ones(rows)
    frame = _frame_numbers(path, columns["frame"])
    face = columns.get("face_id", 0 * ones)
    points = np.stack([columns[name] for name in POINTS], 1).reshape(rows, 2, NUM_LANDMARKS).swapaxes(1, 2)
    valid = np.isfinite(points).all((1, 2)) & (columns.get("success", ones) > 0)
    confidence = np.where(valid, np.nan_to_num(columns.get("confidence", ones), posinf=0, neginf=0), 0)
    _refuse_duplicates(path, frame, face)

    _, face_index = np.unique(face, return_inverse=True)
    total = np.bincount(face_index, weights=confidence)[face_index]
    best_last = np.lexsort((-face_index, total, valid))
    best_last = best_last[valid[best_last]]
    points_T68x2 = np.full((frame.max(), NUM_LANDMARKS, 2), np.nan, np.float32)
    points_T68x2[frame[best_last] - 1] = points[best_last]
    return Landmarks(points_T68x2=points_T68x2, valid_T=~np.isnan(points_T68x2[:, 0, 0]), source=OpenFace.name)


def write_csv(path: Path, points_T68x2: Float32, fps: float) -> None:
    """Writes points as OpenFace would, to 0.001 px; frames with a NaN or infinite point get success 0."""
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
    """Column names without the blanks around them.

    Raises:
        Rejected: the file is empty or no text, or a column that is needed is missing.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            line = file.readline(MAX_HEADER_CHARS)
    except UnicodeDecodeError:
        raise _bad(path, "not a text file in UTF-8") from None
    if not line.strip():
        raise _bad(path, "empty, or its first line is")
    names = [name.strip() for name in line.split(",")]
    missing = next((name for name in REQUIRED if name not in names), None)
    if missing:
        hint = "; columns must be separated by commas" if len(names) == 1 else ""
        raise _bad(path, f"no column {missing!r}{hint}")
    return names


def _read_columns(path: Path) -> dict[str, NDArray[np.float64]]:
    """The columns we use as float64, NaN for missing values."""
    names = _header(path)
    index = {name: str(names.index(name)) for name in [*REQUIRED, *OPTIONAL] if name in names}
    try:
        table = csv.read_csv(
            pa.BufferReader(path.read_bytes()),  # by name it refuses one that is no UTF-8
            # numbered names, because real headers have blanks and may repeat a name that nobody reads
            read_options=csv.ReadOptions(
                column_names=[str(i) for i in range(len(names))], skip_rows=1, use_threads=False
            ),
            convert_options=csv.ConvertOptions(
                include_columns=list(index.values()),
                column_types={number: pa.float64() for number in index.values()},
                null_values=[blank + word for blank in ("", " ") for word in WORDS_FOR_NAN],
            ),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        first_line = str(error).splitlines()[0]
        detail = re.sub(r"CSV column #(\d+)", lambda found: f"column {names[int(found[1])]}", first_line)
        raise _bad(path, detail) from None
    if not table.num_rows:
        raise _bad(path, "a header and no rows")
    return {name: table[number].to_numpy() for name, number in index.items()}


def _frame_numbers(path: Path, values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Frame numbers as integers.

    Raises:
        Rejected: one is not a whole number from 1, or far beyond what the file has rows for.
    """
    limit = FREE_FRAMES + FRAMES_PER_ROW * len(values)
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
