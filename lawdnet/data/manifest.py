"""A dataset as a folder: where its files are, what describes them, and how they come to be whole or not at all."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from lawdnet import __version__
from lawdnet.data.config import FORMAT_VERSION, BuildConfig
from lawdnet.data.schema import VIDEO_SCHEMA
from lawdnet.types import FPS, SAMPLE_RATE

MANIFEST = "dataset.json"
VIDEOS = "videos.parquet"
SEGMENTS = "segments"
BUILD = ".build"
"""One small JSON file per finished input: what a build that starts again skips."""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` when the block ends well, and is gone when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        if temporary.exists():
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Atomic, readable, UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf8")


@dataclass(frozen=True)
class SegmentRef:
    """Where a segment lies, without its bytes."""

    segment_id: str
    video_id: str
    split: str
    num_frames: int
    path: str
    row_group: int


class Dataset:
    """A built dataset, opened for reading.

    Raises:
        ValueError: the folder holds no dataset, or one of another format.
    """

    def __init__(self, root: Path) -> None:
        self.root = root = root.absolute()  # tasks run in folders of their own
        try:
            self.info: dict[str, Any] = json.loads((root / MANIFEST).read_text(encoding="utf8"))
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(
                f"{root}: no dataset here ({MANIFEST} is missing); make one with `lawdnet build`"
            ) from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{root / MANIFEST}: damaged ({error}); run the same `lawdnet build` again") from None
        if not isinstance(self.info, dict) or self.info.get("format_version") != FORMAT_VERSION:
            found = self.info.get("format_version") if isinstance(self.info, dict) else "unknown"
            raise ValueError(f"{root}: dataset format {found}, this version reads {FORMAT_VERSION}; build it again")

    @property
    def hash(self) -> str:
        """Of the build configuration and the accepted sources."""
        return str(self.info["hash"])

    @property
    def crop_width(self) -> int:
        """Width of the stored crops in px."""
        return int(self.info["crop_width"])

    def feature_dim(self, name: str) -> int:
        """C of a stored feature.

        Raises:
            ValueError: it is not stored; the message lists what is.
        """
        stored = self.info["extractors"]
        if name not in stored:
            raise ValueError(f"{self.root}: no feature {name!r}; it holds {', '.join(stored)}")
        return int(stored[name]["dim"])

    def videos(self) -> pa.Table:
        """A row per input, in the columns of VIDEO_SCHEMA."""
        return pq.read_table(self.root / VIDEOS)

    def segment_files(self) -> list[Path]:
        """Segment files of the accepted videos, in the order of their ids.

        Raises:
            ValueError: one is missing.
        """
        videos = pq.read_table(self.root / VIDEOS, columns=["video_id", "status"]).to_pylist()
        names = sorted(row["video_id"] for row in videos if row["status"] == "accepted")
        paths = [self.root / SEGMENTS / f"{name}.parquet" for name in names]
        missing = [path for path in paths if not path.exists()]
        if missing:
            text = f"{len(missing)} of {len(paths)} segment files are missing, {missing[0].name} the first"
            raise ValueError(f"{self.root}: {text}; run the same `lawdnet build` again")
        return paths

    def segments(self, split: str | None = None) -> list[SegmentRef]:
        """References to all segments in a fixed order (by video id, then position)."""
        references = []
        for path in self.segment_files():
            table = pq.read_table(path, columns=["segment_id", "video_id", "split", "num_frames"])
            references += [
                SegmentRef(path=str(path), row_group=group, **row) for group, row in enumerate(table.to_pylist())
            ]
        return [ref for ref in references if split in (None, ref.split)]


def manifest(
    config: BuildConfig,
    extractors: dict[str, dict[str, Any]],
    rows: Sequence[dict[str, Any]],
    dataset_hash: str,
) -> dict[str, Any]:
    """The content of dataset.json."""
    reasons = Counter(row["reason"] for row in rows if row["reason"])
    return {
        "format_version": FORMAT_VERSION,
        "code_version": __version__,
        "fps": FPS,
        "sample_rate": SAMPLE_RATE,
        "crop_width": config.crop_width,
        "crop_height": round(1.3 * config.crop_width),
        "extractors": extractors,
        "counts": {
            "videos": len(rows),
            **{status: sum(row["status"] == status for row in rows) for status in ("accepted", "rejected", "failed")},
            "segments": sum(row["segments"] for row in rows),
            "frames": sum(row["frames_used"] for row in rows),
            "reasons": dict(sorted(reasons.items())),
        },
        "config": config.to_dict(),
        "config_hash": config.hash(),
        "hash": dataset_hash,
    }


def write_videos(root: Path, rows: Sequence[dict[str, Any]]) -> None:
    """videos.parquet, one row per input."""
    with atomic(root / VIDEOS) as temporary:
        pq.write_table(pa.Table.from_pylist(list(rows), schema=VIDEO_SCHEMA), temporary, compression="zstd")
