"""A dataset as a folder, here or in an object store: where its files are, and what describes them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lawdnet import __version__
from lawdnet.data.config import FORMAT_VERSION, BuildConfig
from lawdnet.data.schema import PLACE_COLUMNS, SCORE, VIDEO_SCHEMA
from lawdnet.face.geometry import crop_height
from lawdnet.storage import Location, atomic, locate, parquet_file
from lawdnet.types import FPS, SAMPLE_RATE

MANIFEST = "dataset.json"
VIDEOS = "videos.parquet"
INDEX = "index.parquet"
SEGMENTS = "segments"
BUILD = ".build"
"""One small JSON file per finished input: what a build that starts again skips."""


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

    def __init__(self, root: Location) -> None:
        root = locate(root)
        self.root = root = root.absolute() if isinstance(root, Path) else root  # tasks run in folders of their own
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
        """A row per input, in the columns of VIDEO_SCHEMA.

        Raises:
            ValueError: the file is missing.
        """
        return self._table(VIDEOS)

    def index(self) -> pa.Table:
        """A row per stored segment, also of those a rule left out; see `index_schema`.

        Raises:
            ValueError: the file is missing.
        """
        return self._table(INDEX)

    def _table(self, name: str) -> pa.Table:
        try:
            with parquet_file(self.root / name) as file:
                return file.read()
        except FileNotFoundError:
            raise ValueError(f"{self.root}: {name} is missing; run the same `lawdnet build` again") from None

    def segments(self, split: str | None = None) -> list[SegmentRef]:
        """References to the segments of the dataset, in the index's order (by video id, then position)."""
        index = self.index()
        mask = pc.equal(index["dropped"], "")
        if split is not None:
            mask = pc.and_(mask, pc.equal(index["split"], split))
        names = ["segment_id", "video_id", "split", "num_frames", "path", "row_group"]
        rows = index.select(names).filter(mask).to_pylist()
        return [SegmentRef(**{**row, "path": self.resolve(row["path"])}) for row in rows]

    def resolve(self, path: str) -> str:
        """A path of the index as one that opens from anywhere."""
        return path if "://" in path or Path(path).is_absolute() else str(self.root / path)


def index_schema(scores: Sequence[str]) -> pa.Schema:
    """Columns of index.parquet: what a segment is, where it lies, the rule it fell at, and its scores.

    `path` is relative to the dataset, or absolute (a path or URI) where the file belongs to another one; `dropped` is
    empty for the segments of the dataset; a score is null where it was not measured.
    """
    place = {"path": pa.string(), "row_group": pa.int32(), "dropped": pa.string()}
    return pa.schema({**PLACE_COLUMNS, **place, **{SCORE + name: pa.float32() for name in scores}})


def write_index(root: Location, table: pa.Table) -> None:
    """index.parquet, in row groups that a reader can skip."""
    with atomic(root / INDEX) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=65536)


def manifest(
    config: BuildConfig,
    extractors: Mapping[str, Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    *,
    source: str,
    funnel: Sequence[Mapping[str, Any]],
    dataset_hash: str,
) -> dict[str, Any]:
    """The content of dataset.json.

    Args:
        extractors: name → dim, model_sha256.
        rows: of videos.parquet.
        source: the folder or list the videos came from.
        funnel: rule, dropped, left; the first, with rule "", is all that was measured.
    """
    reasons = Counter(row["reason"] for row in rows if row["reason"])
    return {
        "format_version": FORMAT_VERSION,
        "code_version": __version__,
        "fps": FPS,
        "sample_rate": SAMPLE_RATE,
        "crop_width": config.crop_width,
        "crop_height": crop_height(config.crop_width),
        "source": source,
        "extractors": extractors,
        "rules": list(config.where),
        "funnel": list(funnel),
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


def write_videos(root: Location, rows: Sequence[Mapping[str, Any]]) -> None:
    """videos.parquet, one row per input."""
    with atomic(root / VIDEOS) as temporary:
        pq.write_table(pa.Table.from_pylist(list(rows), schema=VIDEO_SCHEMA), temporary, compression="zstd")
