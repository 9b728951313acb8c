"""Importing the data of LawDNet 2024 or DINet as a dataset, one video after the other."""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from lawdnet.data.config import BuildConfig
from lawdnet.data.lawdnet2024 import CROPS, SOURCES, Clip, Roots, identify, read_clips, read_videos, video_segments
from lawdnet.data.levels import lacking, small_levels
from lawdnet.data.manifest import (
    MANIFEST,
    SEGMENTS,
    Counts,
    Dataset,
    index_schema,
    manifest,
    write_index,
    write_videos,
)
from lawdnet.data.records import VideoRecord, video_records
from lawdnet.data.schema import FEATURES, VideoRow, rewrite_segments, with_columns, write_segments
from lawdnet.data.segments import video_id
from lawdnet.data.split import split_draw, split_videos
from lawdnet.data.transfer import claim, index_of, refuse_inside
from lawdnet.storage import atomic, parquet_file, sha256, write_json
from lawdnet.types import CLIP_FRAMES, Rejected, RejectReason

log = logging.getLogger(__name__)

Progress = Callable[[VideoRow, int, int], None]
"""Called with a video's row, the number of videos done, and the total."""

UNKNOWN = {"landmarks": "NaN: not published", "matrices": "published JPG px → crop px: the frame was not published"}
"""What dataset.json says about the columns that an import cannot fill."""


def import_lawdnet(
    training_json: Path,
    root: Path,
    config: BuildConfig,
    *,
    roots: Roots = (),
    model: Path | None = None,
    on_row: Progress | None = None,
) -> Dataset:
    """Make a dataset of a published `training_json.json` and the files that it names.

    Consecutive clips are joined to segments; a video that lacks a file or a feature is rejected with the reason. An
    import that is started again keeps the accepted videos and tries the others again.

    Args:
        training_json: its folder contains `split_video_25fps_crop_face`, unless `roots` say where that is. Never
            changed.
        root: folder of the dataset.
        config: only these fields count: the one feature, crop_width, jpeg_quality, min_clips, max_clips and
            val_fraction.
        roots: beginnings of paths in the JSON, and what replaces them on this machine.
        model: file of the network that computed the feature. Its SHA-256 is stored; only datasets with the same one
            can be merged.
        on_row: called after every video.

    Raises:
        ValueError: `training_json` is not a training JSON, or `root` lies among its files or contains something else.
    """
    if len(config.features) != 1:
        raise ValueError(f"features: {', '.join(config.features)}; a training JSON has one feature, name that one")
    folder = training_json.absolute().parent
    total = count_videos(training_json)
    refuse_inside(root, [folder / CROPS, folder / SOURCES])
    wanted = {"json": str(training_json.resolve()), "config": config.to_dict(), "roots": [list(pair) for pair in roots]}
    model_sha256 = sha256(model) if model else None
    claim(root, "import", wanted | {"model_sha256": model_sha256})
    rows: list[VideoRow] = []
    with ThreadPoolExecutor() as pool:
        work = _Import(folder, root, config, roots, pool)
        for name, entry in read_videos(training_json):
            rows.append(work.video(name, entry))
            if on_row:
                on_row(rows[-1], len(rows), max(total, len(rows)))
    extractors = {work.feature: {"dim": work.dim, "model_sha256": model_sha256}} if work.dim else {}
    return _finish(root, config, rows, training_json, extractors)


def count_videos(training_json: Path) -> int:
    """Estimate the number of videos in a training JSON, as fast as the file can be read."""
    with training_json.open("rb") as file:
        if not training_json.stat().st_size:
            return 0
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            return sum(1 for _ in re.finditer(rb'"clip_data_list"', text))


class _Import:
    """An import at work. It remembers the accepted videos, to recognise duplicates."""

    def __init__(self, folder: Path, root: Path, config: BuildConfig, roots: Roots, pool: ThreadPoolExecutor) -> None:
        self.folder = folder
        self.root = root
        self.records = video_records(root)
        self.config = config
        self.roots = roots
        self.pool = pool
        self.feature = config.features[0]
        self.first: dict[str, str] = {}
        self.dim: int | None = None

    def video(self, name: str, entry: Any) -> VideoRow:
        """Import one video, or return what an earlier import made of it."""
        shown = _printable(name)
        inputs = [hashlib.sha256(json.dumps(entry).encode()).hexdigest()]
        key = hashlib.sha256(shown.encode()).hexdigest()[:16]
        row = self._stored(key, inputs)
        if row is None:
            began = time.perf_counter()
            try:
                row = self._build(name, entry)
            except Rejected as error:
                detail = _printable(error.detail)
                row = VideoRow(path=f"{CROPS}/{shown}", status="rejected", reason=str(error.reason), detail=detail)
            row = replace(row, landmarks="none", seconds=round(time.perf_counter() - began, 3))
            self.records.write(key, VideoRecord(inputs=inputs, **asdict(row)))
        if row.is_accepted:
            self.first.setdefault(row.sha256, shown)
            self.dim = self.dim or self._stored_dim(row.video_id)
        return row

    def _stored(self, key: str, inputs: list[str]) -> VideoRow | None:
        """Return the row of an earlier import, if the video was accepted and nothing has changed, nor the format."""
        record = self.records.read(key)
        if record is None or record.inputs != inputs or not record.is_accepted or record.sha256 in self.first:
            return None
        path = self.root / SEGMENTS / f"{record.video_id}.parquet"
        return None if lacking([path], small_levels(self.config.crop_width)) else record.row()

    def _stored_dim(self, identifier: str) -> int:
        with parquet_file(self.root / SEGMENTS / f"{identifier}.parquet") as file:
            return int(file.schema_arrow.field(FEATURES + self.feature).type.value_type.list_size)

    def _build(self, name: str, entry: Any) -> VideoRow:
        if not name or {"/", "\\", "\0"} & set(name) or name in (".", ".."):
            raise Rejected(RejectReason.DAMAGED, f"{name!r} cannot be a folder name")
        clips = read_clips(name, entry, self.folder, self.feature, self.roots)
        found = identify(name, self.folder, clips)
        if found.sha256 in self.first:
            raise Rejected(RejectReason.DUPLICATE, f"the same content as {self.first[found.sha256]}")
        self._check_dim(clips)
        split = "val" if split_draw(found.sha256) < self.config.val_fraction else "train"
        identifier = video_id(Path(f"{name}.mp4"), found.sha256)
        segments = video_segments(clips, name=identifier, split=split, config=self.config, pool=self.pool)
        path = self.root / SEGMENTS / f"{identifier}.parquet"
        with atomic(path) as temporary:
            count = write_segments(temporary, segments)
        frames = CLIP_FRAMES * len(clips)
        used = sum(index_of(path, "")["num_frames"].to_pylist())
        return VideoRow(
            **asdict(found),
            status="accepted",
            video_id=identifier,
            detail=f"{used} of {frames} frames used",
            split=split,
            segments=count,
            frames=frames,
            frames_used=used,
        )

    def _check_dim(self, clips: Sequence[Clip]) -> None:
        width = clips[0].rows_9xC.shape[1] if clips else self.dim
        if self.dim not in (None, width):
            detail = f"feature rows of {width} numbers, other videos have {self.dim}"
            raise Rejected(RejectReason.FEATURE_LENGTH, detail)


def _printable(text: str) -> str:
    """Return the text with a backslash escape for every byte that is not UTF-8."""
    return text.encode("utf8", "backslashreplace").decode()


def _finish(
    root: Path,
    config: BuildConfig,
    rows: Sequence[VideoRow],
    training_json: Path,
    extractors: Mapping[str, Mapping[str, Any]],
) -> Dataset:
    """Write the files that describe the dataset, and remove segment files that they do not name."""
    splits = split_videos({row.video_id: row.sha256 for row in rows if row.is_accepted}, config.val_fraction)
    rows = [replace(row, split=splits[row.video_id]) if row.is_accepted else row for row in rows]
    names = {f"{SEGMENTS}/{identifier}.parquet": splits[identifier] for identifier in sorted(splits)}
    tables = [_index_in_split(root, name, split) for name, split in names.items()]
    index = pa.concat_tables(tables) if tables else index_schema([]).empty_table()
    content = hashlib.sha256("\n".join([config.hash(), *sorted(r.sha256 for r in rows if r.is_accepted)]).encode())
    columns = [row.columns() for row in rows]
    info = manifest(
        config,
        extractors,
        Counts.of(columns),
        source=str(training_json.resolve().parent),
        funnel=[{"rule": "", "dropped": 0, "left": len(index)}],
        dataset_hash=content.hexdigest()[:16],
    )
    (root / SEGMENTS).mkdir(parents=True, exist_ok=True)
    write_index(root, index)
    write_videos(root, sorted(columns, key=lambda row: row["path"]))
    write_json(root / MANIFEST, info | {"imported": {"json": str(training_json.resolve()), **UNKNOWN}})
    for path in (root / SEGMENTS).glob("*.parquet"):
        if f"{SEGMENTS}/{path.name}" not in names:
            path.unlink()
    return Dataset(root)


def _index_in_split(root: Path, name: str, split: str) -> pa.Table:
    """Return the index of a segment file, which is rewritten if its segments are in another split."""
    index = index_of(root / name, name)
    if set(index["split"].to_pylist()) <= {split}:
        return index
    with atomic(root / name) as temporary:
        rewrite_segments(
            root / name, temporary, lambda table: with_columns(table, {"split": pa.array([split] * len(table))})
        )
    return index_of(root / name, name)
