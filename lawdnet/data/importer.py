"""Writes a dataset out of the data of LawDNet 2024 or DINet, one video after the other."""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from lawdnet.data.config import BuildConfig
from lawdnet.data.lawdnet2024 import CROPS, SOURCES, Clip, Roots, identity, read_clips, read_videos, video_segments
from lawdnet.data.manifest import (
    BUILD,
    MANIFEST,
    SEGMENTS,
    Dataset,
    index_schema,
    manifest,
    write_index,
    write_videos,
)
from lawdnet.data.schema import FEATURES, VIDEO_SCHEMA, rewrite_segments, with_columns, write_segments
from lawdnet.data.segments import split_draw, video_id
from lawdnet.data.transfer import claim, index_of, refuse_inside
from lawdnet.storage import atomic, parquet_file, sha256, write_json
from lawdnet.types import CLIP_FRAMES, Rejected, RejectReason

log = logging.getLogger(__name__)

Row = dict[str, Any]
Progress = Callable[[Row, int, int], None]
"""Called with a video's row, the number of videos done, and of all."""

UNKNOWN = {"landmarks": "NaN: not published", "matrices": "published JPG px → crop px: the frame was not published"}
"""What dataset.json says of the columns that an import cannot fill."""


def import_lawdnet(
    training_json: Path,
    root: Path,
    config: BuildConfig,
    *,
    roots: Roots = (),
    model: Path | None = None,
    on_row: Progress | None = None,
) -> Dataset:
    """Makes a dataset of a published `training_json.json` and the files it names.

    Clips that follow one another are joined to segments; a video that lacks a file or a feature is rejected with the
    reason. Started again, it takes over what is accepted and tries the rest anew.

    Args:
        training_json: its folder holds `split_video_25fps_crop_face`, or `roots` say where that is. Never changed.
        root: folder of the dataset.
        config: of its fields one feature, crop_width, jpeg_quality, min_clips, max_clips and val_fraction count.
        roots: beginnings of paths in the JSON → what stands there here.
        model: file of the network that made the feature; its SHA-256 is stored, and only datasets that agree in it
            can be merged.

    Raises:
        ValueError: no training JSON, or `root` lies among its files or holds something else.
    """
    if len(config.features) != 1:
        raise ValueError(f"features: {', '.join(config.features)}; a training JSON holds one feature, name that one")
    folder = training_json.absolute().parent
    total = count_videos(training_json)
    refuse_inside(root, [folder / CROPS, folder / SOURCES])
    wanted = {"json": str(training_json.resolve()), "config": config.to_dict(), "roots": _lists(roots)}
    model_sha256 = sha256(model) if model else None
    claim(root, "import", wanted | {"model_sha256": model_sha256})
    rows: list[Row] = []
    with ThreadPoolExecutor() as pool:
        work = _Import(folder, root, config, roots, pool)
        for name, entry in read_videos(training_json):
            rows.append(work.video(name, entry))
            if on_row:
                on_row(rows[-1], len(rows), max(total, len(rows)))
    extractors = {work.feature: {"dim": work.dim, "model_sha256": model_sha256}} if work.dim else {}
    return _finish(root, config, rows, training_json, extractors)


def count_videos(training_json: Path) -> int:
    """About how many videos a training JSON holds, at the speed of reading it."""
    with training_json.open("rb") as file:
        if not training_json.stat().st_size:
            return 0
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            return sum(1 for _ in re.finditer(rb'"clip_data_list"', text))


def _lists(roots: Roots) -> list[list[str]]:
    return [list(pair) for pair in roots]


class _Import:
    """The state that goes from video to video."""

    def __init__(self, folder: Path, root: Path, config: BuildConfig, roots: Roots, pool: ThreadPoolExecutor) -> None:
        self.folder, self.root, self.config, self.roots, self.pool = folder, root, config, roots, pool
        self.feature = config.features[0]
        self.first: dict[str, str] = {}
        self.dim: int | None = None

    def video(self, name: str, entry: Any) -> Row:
        """Imports one video, or takes over what an earlier import made of it."""
        shown = name.encode("utf8", "backslashreplace").decode()
        state = {"entry": hashlib.sha256(json.dumps(entry).encode()).hexdigest()}
        outcome = self.root / BUILD / f"{hashlib.sha256(shown.encode()).hexdigest()[:16]}.json"
        row = self._stored(outcome, state)
        if row is None:
            began = time.perf_counter()
            row = {**EMPTY_ROW, "path": f"{CROPS}/{shown}"}
            try:
                row |= self._build(name, entry)
            except Rejected as error:
                row |= {"status": "rejected", "reason": str(error.reason), "detail": error.detail}
            row["detail"] = row["detail"].encode("utf8", "backslashreplace").decode()
            row["seconds"] = round(time.perf_counter() - began, 3)
            write_json(outcome, {"inputs": state, "row": row})
        if row["status"] == "accepted":
            self.first.setdefault(row["sha256"], shown)
            self.dim = self.dim or self._stored_dim(row["video_id"])
        return row

    def _stored(self, outcome: Path, state: Mapping[str, str]) -> Row | None:
        try:
            stored = json.loads(outcome.read_text(encoding="utf8"))
            row: Row = stored["row"]
        except (FileNotFoundError, json.JSONDecodeError, KeyError):
            return None
        is_there = row["status"] == "accepted" and (self.root / SEGMENTS / f"{row['video_id']}.parquet").exists()
        return row if is_there and stored["inputs"] == state and row["sha256"] not in self.first else None

    def _stored_dim(self, identifier: str) -> int:
        with parquet_file(self.root / SEGMENTS / f"{identifier}.parquet") as file:
            return int(file.schema_arrow.field(FEATURES + self.feature).type.value_type.list_size)

    def _build(self, name: str, entry: Any) -> Row:
        if not name or {"/", "\\", "\0"} & set(name) or name in (".", ".."):
            raise Rejected(RejectReason.DAMAGED, f"{name!r} is no name of a folder")
        clips = read_clips(name, entry, self.folder, self.feature, self.roots)
        found = identity(name, self.folder, clips)
        if found["sha256"] in self.first:
            raise Rejected(RejectReason.DUPLICATE, f"the same content as {self.first[found['sha256']]}")
        self._check_dim(clips)
        split = "val" if split_draw(found["sha256"]) < self.config.val_fraction else "train"
        identifier = video_id(Path(f"{name}.mp4"), found["sha256"])
        segments = video_segments(clips, name=identifier, split=split, config=self.config, pool=self.pool)
        path = self.root / SEGMENTS / f"{identifier}.parquet"
        with atomic(path) as temporary:
            count = write_segments(temporary, segments)
        frames, used = CLIP_FRAMES * len(clips), sum(index_of(path, "")["num_frames"].to_pylist())
        detail = f"{used} of {frames} frames used"
        return found | {
            "video_id": identifier, "status": "accepted", "split": split, "segments": count, "frames": frames,
            "frames_used": used, "detail": detail,
        }  # fmt: skip

    def _check_dim(self, clips: Sequence[Clip]) -> None:
        width = clips[0].rows_9xC.shape[1] if clips else self.dim
        if self.dim not in (None, width):
            detail = f"feature rows of {width} numbers, other videos have {self.dim}"
            raise Rejected(RejectReason.FEATURE_LENGTH, detail)


EMPTY_ROW: Row = {
    **{field.name: 0.0 if pa.types.is_floating(field.type) else 0 if pa.types.is_integer(field.type) else ""
       for field in VIDEO_SCHEMA},
    "landmarks": "none",
}  # fmt: skip


def _finish(root: Path, config: BuildConfig, rows: list[Row], training_json: Path, extractors: Row) -> Dataset:
    """Writes what describes the dataset, and removes segment files that nothing names."""
    accepted = sorted((row for row in rows if row["status"] == "accepted"), key=lambda row: row["video_id"])
    if config.val_fraction:
        _hold_one_out(accepted)
    names = [f"{SEGMENTS}/{row['video_id']}.parquet" for row in accepted]
    tables = [_settled(root, name, row["split"]) for name, row in zip(names, accepted, strict=True)]
    index = pa.concat_tables(tables) if tables else index_schema([]).empty_table()
    content = hashlib.sha256("\n".join([config.hash(), *sorted(row["sha256"] for row in accepted)]).encode())
    info = manifest(
        config,
        extractors,
        rows,
        source=str(training_json.resolve().parent),
        funnel=[{"rule": "", "dropped": 0, "left": len(index)}],
        dataset_hash=content.hexdigest()[:16],
    )
    (root / SEGMENTS).mkdir(parents=True, exist_ok=True)
    write_index(root, index)
    write_videos(root, sorted(rows, key=lambda row: row["path"]))
    write_json(root / MANIFEST, info | {"imported": {"json": str(training_json.resolve()), **UNKNOWN}})
    for path in (root / SEGMENTS).glob("*.parquet"):
        if f"{SEGMENTS}/{path.name}" not in names:
            path.unlink()
    return Dataset(root)


def _hold_one_out(accepted: Sequence[Row]) -> None:
    """Of a handful of videos chance may hold out none, or all: then the one with the smallest draw changes sides."""
    if len(accepted) > 1 and len({row["split"] for row in accepted}) == 1:
        row = min(accepted, key=lambda row: split_draw(row["sha256"]))
        row["split"] = "train" if row["split"] == "val" else "val"


def _settled(root: Path, name: str, split: str) -> pa.Table:
    """The index of a segment file, which is written anew where its segments are on the other side."""
    index = index_of(root / name, name)
    if set(index["split"].to_pylist()) <= {split}:
        return index
    with atomic(root / name) as temporary:
        rewrite_segments(
            root / name, temporary, lambda table: with_columns(table, {"split": pa.array([split] * len(table))})
        )
    return index_of(root / name, name)
