"""Small images for reports, as `data:` URIs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import pyarrow as pa

from lawdnet.data.levels import encode_jpeg
from lawdnet.data.sampling import decode_jpeg
from lawdnet.face.geometry import crop_height
from lawdnet.report.page import data_uri
from lawdnet.storage import locate, parquet_file
from lawdnet.types import Rejected
from lawdnet.video import decode

CROP_WIDTH = 96
FRAME_WIDTH = 160
JPEG_QUALITY = 80


def crops(path: str, row_group: int, frames: Sequence[int], stored_width: int) -> list[str]:
    """Return these frames of one segment.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        with parquet_file(locate(path)) as file:
            jpegs = file.read_row_group(row_group, columns=["frames_jpeg"])["frames_jpeg"][0].values
    except FileNotFoundError:
        raise ValueError(f"{path}: missing; the dataset, or the one that it points to, has lost a file") from None
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: damaged ({error}); make the dataset again") from None
    size = (crop_height(CROP_WIDTH), CROP_WIDTH)
    small = (decode_jpeg(jpegs[frame].as_py(), *size, stored_width=stored_width) for frame in frames)
    return [data_uri(encode_jpeg(crop, JPEG_QUALITY), "jpeg") for crop in small]


def first_frame(path: Path) -> str | None:
    """Return the first frame of a video; None if it cannot be read."""
    try:
        if not path.is_file():
            return None
        _, frame_HW3 = next(decode(path, stop=1, threads=1))
    except (Rejected, OSError, StopIteration):
        return None
    height = max(1, round(frame_HW3.shape[0] * FRAME_WIDTH / frame_HW3.shape[1]))
    small = cv2.resize(frame_HW3, (FRAME_WIDTH, height), interpolation=cv2.INTER_AREA)
    return data_uri(encode_jpeg(small, JPEG_QUALITY), "jpeg")
