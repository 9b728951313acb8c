"""Small pictures for reports, as data addresses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import pyarrow as pa

from lawdnet.data.sampling import decode_jpeg
from lawdnet.data.segments import encode_jpeg
from lawdnet.face.geometry import crop_height
from lawdnet.report.page import data_uri
from lawdnet.storage import locate, parquet_file
from lawdnet.types import Rejected
from lawdnet.video import decode

CROP_WIDTH = 96
PICTURE_WIDTH = 160
JPEG_QUALITY = 80


def crops(path: str, row_group: int, frames: Sequence[int], stored_width: int) -> list[str]:
    """These frames of one segment.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        with parquet_file(locate(path)) as file:
            jpegs = file.read_row_group(row_group, columns=["frames_jpeg"])["frames_jpeg"][0].values
    except FileNotFoundError:
        raise ValueError(f"{path}: missing; the dataset has lost a file, or the one that it points to") from None
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: damaged ({error}); make the dataset again") from None
    size = (crop_height(CROP_WIDTH), CROP_WIDTH)
    small = (decode_jpeg(jpegs[frame].as_py(), *size, stored_width=stored_width) for frame in frames)
    return [data_uri(encode_jpeg(crop, JPEG_QUALITY), "jpeg") for crop in small]


def first_picture(path: Path) -> str | None:
    """The first picture of a video; None where there is none that can be read."""
    try:
        if not path.is_file():
            return None
        _, picture = next(decode(path, stop=1, threads=1))
    except (Rejected, OSError, StopIteration):
        return None
    height = max(1, round(picture.shape[0] * PICTURE_WIDTH / picture.shape[1]))
    small = cv2.resize(picture, (PICTURE_WIDTH, height), interpolation=cv2.INTER_AREA)
    return data_uri(encode_jpeg(small, JPEG_QUALITY), "jpeg")
