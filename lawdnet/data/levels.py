"""The sizes that a frame is stored in: a stage with a small crop reads few bytes and decodes few pixels.

A level is what the width of the whole crop is divided by: 1, 2 or 4. Shape letters: H W crop.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from lawdnet.face.geometry import crop_height
from lawdnet.storage import REQUESTS, Location, parquet_file
from lawdnet.types import UInt8

FRAMES = "frames_jpeg"
SMALL_LEVELS = (2, 4)
MIN_WIDTH = 40
"""A small level is stored if it is at least this wide, in px: the crop of the smallest stage, mouth 32."""


def small_levels(crop_width: int) -> tuple[int, ...]:
    """Return the levels that are stored beside whole crops of this width."""
    return tuple(level for level in SMALL_LEVELS if crop_width // level >= MIN_WIDTH)


def frames_column(level: int) -> str:
    """Return the column of a level: `frames_jpeg`, `frames_jpeg_2`, `frames_jpeg_4`."""
    return FRAMES if level == 1 else f"{FRAMES}_{level}"


def stored_levels(columns: Collection[str]) -> tuple[int, ...]:
    """Return the small levels among the columns of a segment file."""
    return tuple(level for level in SMALL_LEVELS if frames_column(level) in columns)


def level_for(width: int, stored_width: int, columns: Collection[str]) -> int:
    """Return the smallest level among the columns of a segment file that is at least `width` px wide, or 1.

    Args:
        width: of the crop that is needed.
        stored_width: of the whole crops.
        columns: names of the columns.
    """
    return max((level for level in stored_levels(columns) if stored_width // level >= width), default=1)


def encode_jpeg(image_HW3: UInt8, quality: int) -> bytes:
    """Encode an RGB image as JPEG without chroma subsampling (lips are small and red)."""
    flags = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image_HW3, cv2.COLOR_RGB2BGR), flags)
    assert done
    return data.tobytes()


def encode_small(crop_HW3: UInt8, quality: int) -> dict[int, bytes]:
    """Encode the small levels of a whole RGB crop; each is made of the crop itself, by area."""
    width = crop_HW3.shape[1]
    sizes = {level: (width // level, crop_height(width // level)) for level in small_levels(width)}
    return {
        level: encode_jpeg(cv2.resize(crop_HW3, size, interpolation=cv2.INTER_AREA), quality)
        for level, size in sizes.items()
    }


def small_of_jpeg(data: bytes, quality: int) -> dict[int, bytes]:
    """Encode the small levels of a stored whole crop: they have lost what its JPEG has lost.

    Raises:
        ValueError: the data is not an image.
    """
    image_HW3 = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image_HW3 is None:
        raise ValueError("a frame is not a JPEG")
    return encode_small(cv2.cvtColor(image_HW3, cv2.COLOR_BGR2RGB), quality)


def by_level(frames: Collection[Mapping[int, bytes]]) -> dict[int, tuple[bytes, ...]]:
    """Turn the small levels of T frames into T JPEGs of each level."""
    levels = next(iter(frames), {})
    return {level: tuple(small[level] for small in frames) for level in levels}


def lacking(paths: Iterable[Location], levels: Sequence[int]) -> list[Location]:
    """Return the segment files that lack a level, or do not exist; only the ends of files are read.

    Raises:
        ValueError: a file is damaged.
    """

    def is_whole(path: Location) -> bool:
        if not path.exists():
            return False
        with parquet_file(path) as file:
            return set(levels) <= set(stored_levels(file.schema_arrow.names))

    paths = list(paths)
    with ThreadPoolExecutor(REQUESTS) as pool:
        return [path for path, whole in zip(paths, pool.map(is_whole, paths), strict=True) if not whole]
