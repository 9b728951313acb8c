"""A dataset as a folder, local or in an object store: its files, and what describes them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lawdnet import __version__
from lawdnet.data.config import FORMAT_VERSION, READABLE_VERSIONS, SILERO, VOICING, BuildConfig
from lawdnet.data.schema import IDENTITY_COLUMNS, SCORE, VIDEO_SCHEMA, VideoRow
from lawdnet.data.segment_list import SCHEMA, SegmentList, resolve
from lawdnet.face.geometry import crop_height
from lawdnet.storage import Location, atomic, locate, parquet_file
from lawdnet.types import FPS, SAMPLE_RATE

MANIFEST = "dataset.json"
VIDEOS = "videos.parquet"
INDEX = "index.parquet"
SEGMENTS = "segments"
BUILD = ".build"
"""Folder with the records of finished inputs, which a build that is started again skips."""
ROW_GROUP = 65536
"""Rows of index.parquet and videos.parquet that are read at a time."""


class Dataset:
    """A built dataset, open for reading.

    Raises:
        ValueError: the folder contains no dataset, or one of another format version.
    """

    def __init__(self, root: Location) -> None:
        root = locate(root)
        self.root = root = root.absolute() if isinstance(root, Path) else root  # Ray tasks have other working folders
        try:
            self.info: dict[str, Any] = json.loads((root / MANIFEST).read_text(encoding="utf8"))
        except (FileNotFoundError, NotADirectoryError):
            hint = f"({MANIFEST} is missing); create one with `lawdnet build`"
            raise ValueError(f"{root}: no dataset here {hint}") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{root / MANIFEST}: damaged ({error}); run the same `lawdnet build` again") from None
        found = self.info.get("format_version") if isinstance(self.info, dict) else "unknown"
        if found not in READABLE_VERSIONS:
            versions = " and ".join(map(str, READABLE_VERSIONS))
            hint = "install a newer one" if isinstance(found, int) and found > FORMAT_VERSION else "build it again"
            raise ValueError(f"{root}: dataset format {found}, this version of lawdnet reads {versions}; {hint}")

    @property
    def hash(self) -> str:
        """Hash of the build configuration and the accepted sources."""
        return str(self.info["hash"])

    @property
    def format_version(self) -> int:
        """Version of the format, one of `READABLE_VERSIONS`."""
        return int(self.info["format_version"])

    @property
    def crop_width(self) -> int:
        """Width of the stored crops in px."""
        return int(self.info["crop_width"])

    def feature_dim(self, name: str) -> int:
        """Number of values per row of a stored feature.

        Raises:
            ValueError: the feature is not stored; the message lists those that are.
        """
        stored = self.info["extractors"]
        if name not in stored:
            raise ValueError(f"{self.root}: no feature {name!r}; the dataset has {', '.join(stored)}")
        return int(stored[name]["dim"])

    def check_feature(self, name: str) -> None:
        """Check that all segments have a feature.

        Raises:
            ValueError: it is not stored, or could not be added to some of the videos; the message says what to do.
        """
        self.feature_dim(name)
        if lacking := [path for path, lacks in self._lacking() if name in lacks.split(",")]:
            raise ValueError(
                f"{self.root}: {len(lacking)} videos, {lacking[0]} the first, lack the feature {name} (`lawdnet "
                "inspect` says why); run the same `lawdnet build` again to add it, or leave them out: "
                f"lawdnet select {self.root} --has {name} --out DATASET2"
            )

    def _lacking(self) -> Iterator[tuple[str, str]]:
        """Path of each video that lacks features, and their names."""
        with self._parquet(VIDEOS) as file:
            if "lacks" not in file.schema_arrow.names:  # of an earlier version
                return
            videos = file.read(columns=["path", "status", "lacks"])
        is_short = pc.and_(pc.equal(videos["status"], "accepted"), pc.not_equal(videos["lacks"], ""))
        for row in videos.filter(is_short).to_pylist():
            yield row["path"], row["lacks"]

    def videos(self) -> pa.Table:
        """Return a row per input, in the columns of VIDEO_SCHEMA.

        Raises:
            ValueError: the file is missing.
        """
        return self._table(VIDEOS)

    def video_rows(self) -> list[VideoRow]:
        """Return a row per input.

        Raises:
            ValueError: the file is missing.
        """
        return [VideoRow.from_columns(row) for row in self.videos().to_pylist()]

    def index(self) -> pa.Table:
        """Return a row per stored segment, including those that a rule dropped; see `index_schema`.

        Raises:
            ValueError: the file is missing.
        """
        return self._table(INDEX)

    def _table(self, name: str) -> pa.Table:
        with self._parquet(name) as file:
            return file.read()

    def _parquet(self, name: str) -> pq.ParquetFile:
        try:
            return parquet_file(self.root / name)
        except FileNotFoundError:
            raise ValueError(f"{self.root}: {name} is missing; run the same `lawdnet build` again") from None

    def segments(self, split: str | None = None) -> SegmentList:
        """Return the segments of the dataset, or of one split of it, sorted by video id and position.

        The index is read in pieces, and only what locates a segment is kept.

        Raises:
            ValueError: index.parquet is missing.
        """
        return SegmentList(self._located(split), str(self.root))

    def _located(self, split: str | None) -> Iterator[pa.Table]:
        with self._parquet(INDEX) as file:
            for batch in file.iter_batches(columns=[*SCHEMA.names, "dropped"]):
                piece = pa.Table.from_batches([batch])
                mask = pc.equal(piece["dropped"], "")
                if split is not None:
                    mask = pc.and_(mask, pc.equal(piece["split"], split))
                yield piece.filter(mask)

    def resolve(self, path: str) -> str:
        """Return a path of the index as one that can be opened from any working folder."""
        return resolve(str(self.root), path)


def open_unchanged(root: Location, wanted: str) -> Dataset:
    """Open a dataset that is trained on, if it is still the same: all workers need the same list of segments.

    Args:
        wanted: its hash when training began.

    Raises:
        ValueError: it is another one by now.
    """
    dataset = Dataset(root)
    if dataset.hash != wanted:
        raise ValueError(f"{dataset.root}: was changed while it is trained on; start a new run on it")
    return dataset


def index_schema(scores: Sequence[str]) -> pa.Schema:
    """Return the columns of index.parquet: what a segment is, its location, the rule that dropped it, and its scores.

    `path` is relative to the dataset, or an absolute path or URI if the file belongs to another dataset; `dropped` is
    empty for the segments of the dataset; a score that was not measured is null.
    """
    location = {"path": pa.string(), "row_group": pa.int32(), "dropped": pa.string()}
    return pa.schema({**IDENTITY_COLUMNS, **location, **{SCORE + name: pa.float32() for name in scores}})


def write_index(root: Location, table: pa.Table) -> None:
    """Write index.parquet, in row groups that a reader can skip."""
    write_pieces(root / INDEX, [table])


def write_pieces(path: Location, tables: Iterable[pa.Table]) -> None:
    """Write a table that comes in pieces, at least one, in row groups of the same size whatever the pieces are."""
    with atomic(path) as temporary, ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        waiting: list[pa.Table] = []
        for table in tables:
            writer = writer or stack.enter_context(pq.ParquetWriter(temporary, table.schema, compression="zstd"))
            waiting.append(table)
            while sum(map(len, waiting)) >= ROW_GROUP:
                whole = pa.concat_tables(waiting)
                writer.write_table(whole.slice(0, ROW_GROUP))
                waiting = [whole.slice(ROW_GROUP)]
        assert writer
        writer.write_table(pa.concat_tables(waiting))


def manifest(
    config: BuildConfig,
    extractors: Mapping[str, Mapping[str, Any]],
    counts: Counts,
    *,
    source: str,
    funnel: Sequence[Mapping[str, Any]],
    dataset_hash: str,
) -> dict[str, Any]:
    """Return the content of dataset.json.

    Args:
        extractors: name → `dim`, `model_sha256`.
        counts: of the rows of videos.parquet.
        source: the folder or list that the videos came from.
        funnel: the funnel steps as plain values; the first, with an empty rule, counts everything that was measured.
    """
    return {
        "format_version": FORMAT_VERSION,
        "code_version": __version__,
        "fps": FPS,
        "sample_rate": SAMPLE_RATE,
        "crop_width": config.crop_width,
        "crop_height": crop_height(config.crop_width),
        "source": source,
        "extractors": extractors,
        "speech_measure": SILERO if config.speech == SILERO else VOICING,
        "rules": list(config.where),
        "funnel": list(funnel),
        "counts": asdict(counts),
        "config": config.to_dict(),
        "config_hash": config.hash(),
        "hash": dataset_hash,
    }


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The `counts` of dataset.json."""

    videos: int
    accepted: int
    rejected: int
    failed: int
    segments: int
    frames: int
    """Number of frames in the segments of the dataset."""
    reasons: Mapping[str, int]
    """Reason → number of videos."""

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Counts:
        """Count the rows of videos.parquet."""
        statuses = Counter(row["status"] for row in rows)
        reasons = Counter(row["reason"] for row in rows if row["reason"])
        return cls(
            videos=len(rows),
            accepted=statuses["accepted"],
            rejected=statuses["rejected"],
            failed=statuses["failed"],
            segments=sum(row["segments"] for row in rows),
            frames=sum(row["frames_used"] for row in rows),
            reasons=dict(sorted(reasons.items())),
        )

    def __add__(self, other: Counts) -> Counts:
        numbers = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name != "reasons"}
        reasons = Counter(self.reasons) + Counter(other.reasons)
        return Counts(**numbers, reasons=dict(sorted(reasons.items())))


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Numbers of groups of accepted videos. A video that is in no group is one by itself."""

    train: int
    val: int
    named: int
    """Number of groups that have a name, and may hold several videos."""
    alone: int
    """Number of videos that are in no group."""

    @property
    def total(self) -> int:
        """Number of groups in both splits."""
        return self.train + self.val

    @classmethod
    def of(cls, rows: Iterable[VideoRow]) -> Groups:
        """Count the groups of videos.parquet."""
        accepted = [row for row in rows if row.is_accepted]
        names = {(row.split, row.group) for row in accepted if row.group}
        alone = Counter(row.split for row in accepted if not row.group)
        sides = Counter(split for split, _ in names) + alone
        return cls(train=sides["train"], val=sides["val"], named=len(names), alone=alone.total())


def write_videos(root: Location, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write videos.parquet, one row per input."""
    write_pieces(root / VIDEOS, [pa.Table.from_pylist(list(rows), schema=VIDEO_SCHEMA)])
