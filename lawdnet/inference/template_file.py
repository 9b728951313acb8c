"""A prepared template as a file: rendering with it begins at once, without looking for the face again.

It is an uncompressed `.npz` (arrays and a JSON header; reading it runs no code). It does not hold the video, but knows
its content: a video that was moved beside the template is found, and one that has changed is refused.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lawdnet.face.geometry import stage_size
from lawdnet.inference.template import Template
from lawdnet.storage import Location, atomic, fingerprint, local_copy, locate, sha256
from lawdnet.types import NUM_REFERENCES, Beat, no_beat

FORMAT = "lawdnet template"
VERSION = 1
MAX_BYTES = 1 << 30
"""Of all arrays: the matrices and jaw lines of 60 hours, and the references of any network, take less."""
ARRAYS = ("matrix_T33", "reference_5HW3", "reference_ticks", "jaw_T17x2")
REPAIR = "make it again with `lawdnet template`"


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a template was made from and for."""

    format: str = FORMAT
    version: int = VERSION
    mouth_px: int
    crop_width: int
    height: int
    width: int
    video: str
    """Path or URI."""
    video_fingerprint: str
    video_sha256: str

    def __post_init__(self) -> None:
        if self.format != FORMAT or self.version != VERSION:
            raise ValueError(f"is {self.format!r} version {self.version!r}, this is version {VERSION}")


def is_template(path: Location) -> bool:
    """Whether a file is a template and not a video: it begins as a ZIP archive does."""
    with path.open("rb") as file:
        return bool(file.read(4) == b"PK\x03\x04")


def save_template(
    path: Location, template: Template, video: Location, *, mouth_px: int, crop_width: int, beat: Beat = no_beat
) -> None:
    """Write a template file; it appears whole or not at all.

    Args:
        path: the file to write.
        template: what was prepared.
        video: where its video really is, such as an object whose download was prepared.
        mouth_px, crop_width: of the network that it was prepared for.
        beat: called while the video is hashed.
    """
    header = Header(
        mouth_px=mouth_px,
        crop_width=crop_width,
        height=template.height,
        width=template.width,
        video=str(video),
        video_fingerprint=fingerprint(video),
        video_sha256=sha256(template.path, beat=beat),
    )
    jaw_T17x2 = template.jaw_T17x2
    if jaw_T17x2 is None:
        jaw_T17x2 = np.full((len(template.matrix_T33), 17, 2), np.nan, np.float32)
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            matrix_T33=template.matrix_T33,
            reference_5HW3=template.reference_5HW3,
            reference_ticks=np.array(template.reference_ticks, np.int64),
            jaw_T17x2=jaw_T17x2,
            header=np.frombuffer(json.dumps(asdict(header)).encode(), np.uint8),
        )


@contextmanager
def opened_template(path: Location, *, mouth_px: int, crop_width: int, beat: Beat = no_beat) -> Iterator[Template]:
    """Give the template in a file, with its video on this machine as long as the block runs.

    Args:
        path: the file.
        mouth_px, crop_width: of the network that is to use it.
        beat: called while the video is fetched or hashed.

    Raises:
        ValueError: the file is damaged, of another version or for another network, or its video has changed or gone.
    """
    with local_copy(path) as file:
        header, arrays = _read(file, path)
    if (header.mouth_px, header.crop_width) != (mouth_px, crop_width):
        made = f"made for mouths of {header.mouth_px} px and crops of {header.crop_width} px"
        needs = f"this one has {mouth_px} and {crop_width}"
        raise ValueError(f"{path}: {made}, by another network; {needs}; {REPAIR}")
    video = _find_video(path, header)
    with local_copy(video, beat=beat) as local:
        # A new time stamp, as a copy has, does not make it another video.
        if fingerprint(video) != header.video_fingerprint and sha256(local, beat=beat) != header.video_sha256:
            raise ValueError(f"{path}: its video {video} has changed since; {REPAIR}")
        yield Template(
            path=local,
            height=header.height,
            width=header.width,
            matrix_T33=arrays["matrix_T33"],
            reference_5HW3=arrays["reference_5HW3"],
            reference_ticks=tuple(arrays["reference_ticks"].tolist()),
            jaw_T17x2=arrays["jaw_T17x2"],
        )


def _find_video(path: Location, header: Header) -> Location:
    """Return the video where it was, or beside the template under the same name."""
    stored = locate(header.video)
    for video in (stored, path.parent / stored.name):
        if fingerprint(video):
            return video
    raise ValueError(f"{path}: its video {header.video} is gone; put it back, or beside the template")


def _read(file: Path, path: Location) -> tuple[Header, dict[str, Any]]:
    try:
        with zipfile.ZipFile(file) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
                raise ValueError(f"holds more than {MAX_BYTES >> 20} MiB")
        with np.load(file, allow_pickle=False) as stored:
            header = json.loads(stored["header"].tobytes())
            if not isinstance(header, dict):
                raise ValueError("has no header")
            known = Header(**header)
            arrays = {name: stored[name] for name in ARRAYS}
        _check(known, arrays)
    except Exception as error:  # zipfile, numpy and json raise many kinds for a damaged file
        detail = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: not a template that can be used ({detail}); {REPAIR}") from None
    return known, arrays


def _check(header: Header, arrays: dict[str, Any]) -> None:
    ticks = len(arrays["matrix_T33"]) if arrays["matrix_T33"].ndim else 0
    expected = {
        "matrix_T33": ("float32", (ticks, 3, 3)),
        "reference_5HW3": ("uint8", (NUM_REFERENCES, *stage_size(header.mouth_px), 3)),
        "reference_ticks": ("int64", (NUM_REFERENCES,)),
        "jaw_T17x2": ("float32", (ticks, 17, 2)),
    }
    for name, (dtype, shape) in expected.items():
        if arrays[name].dtype != dtype or arrays[name].shape != shape or not ticks:
            raise ValueError(f"{name}: {arrays[name].dtype} {arrays[name].shape}, expected {dtype} {shape}")
