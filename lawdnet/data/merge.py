"""Several datasets as one: every video once, on the side it was on, under a name of its own."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lawdnet.data.config import BuildConfig
from lawdnet.data.manifest import MANIFEST, SEGMENTS, Dataset, index_schema, manifest, write_index, write_videos
from lawdnet.data.schema import SCORE, rewrite_segments, with_columns
from lawdnet.data.transfer import claim, refuse_inside, source_folder
from lawdnet.storage import Location, atomic, local_copy, locate, write_json
from lawdnet.types import RejectReason

Row = dict[str, Any]

SAME = ("fps", "sample_rate", "crop_width", "crop_height")
"""Fields of dataset.json that must not differ; features, which must not either, are compared one by one."""


@dataclass
class Merged:
    """What a merge did."""

    videos: int = 0
    """Accepted, each counted once."""
    segments: int = 0
    twins: list[str] = field(default_factory=list)
    """Videos that an earlier dataset has too: `PATH of DATASET`."""
    changed_sides: list[str] = field(default_factory=list)
    """Of the twins those that were on another side: `PATH of DATASET: val there, train here`."""
    renamed: dict[str, str] = field(default_factory=dict)
    """`ID of DATASET` → the new id of a video whose id was taken by another."""


class _Part:
    """What the result takes from one dataset."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self.index = dataset, dataset.index()
        stored = set(pc.unique(self.index["video_id"]).to_pylist())
        folder = source_folder(dataset)
        self.rows: list[Row] = dataset.videos().to_pylist()
        for row in self.rows:
            row["is_stored"] = row["status"] == "accepted" or row["video_id"] in stored
            row["path"] = row["path"] if folder is None else str(folder / row["path"])
        self.new_ids: dict[str, str] = {}
        """Id there → id in the result, of the videos that are taken."""


def merge(roots: Sequence[Location], out: Path, on_file: Callable[[int, int], None] | None = None) -> Merged:
    """Makes one dataset of several.

    A video is known by the SHA-256 of its source and taken from the first dataset that accepted it; its twins become
    rows with reason `duplicate`. Videos keep their split. A score that a dataset did not measure is null; a segment
    that a rule left out stays left out. Segment files are linked, or copied where they cannot be; only those of
    renamed videos are written anew.

    Args:
        roots: at least two datasets, selections too. Never changed.
        out: folder of the result; the same merge again completes one that was stopped.
        on_file: called with the number of files done, and of all.

    Raises:
        ValueError: fewer than two datasets, formats that differ, or an `out` that is taken or lies in a source.
    """
    if len(roots) < 2:
        raise ValueError("merge: name at least two datasets")
    datasets = [Dataset(root) for root in roots]
    for other in datasets[1:]:
        check_compatible(datasets[0], other)
    refuse_inside(out, [dataset.root for dataset in datasets])
    claim(out, "merge", {"sources": [str(dataset.root) for dataset in datasets]})
    merged, parts = Merged(), [_Part(dataset) for dataset in datasets]
    rows = sorted(_choose(parts, merged), key=lambda row: row["path"])
    work = [(part, *pair) for part in parts for pair in _files(part)]
    for done, (part, path, name) in enumerate(work, 1):
        _place(path, out / SEGMENTS / f"{name}.parquet", part.new_ids)
        if on_file:
            on_file(done, len(work))
    index = _union(parts)
    merged.videos = sum(row["status"] == "accepted" for row in rows)
    merged.segments = pc.sum(pc.equal(index["dropped"], "")).as_py() or 0
    write_index(out, index)
    write_videos(out, rows)
    write_json(out / MANIFEST, _manifest(datasets, rows, index))
    named = {name for _, _, name in work}
    for file in (out / SEGMENTS).glob("*.parquet"):
        if file.stem not in named:
            file.unlink()
    return merged


def check_compatible(first: Dataset, other: Dataset) -> None:
    """Whether two datasets can stand in one.

    Raises:
        ValueError: they differ in format; one line names both and what differs.
    """
    for name in SAME:
        _check(first, other, name, first.info[name], other.info[name])
    stored, others = first.info["extractors"], other.info["extractors"]
    _check(first, other, "features", ", ".join(sorted(stored)), ", ".join(sorted(others)))
    for name in stored:
        for key in sorted({*stored[name], *others[name]}):
            _check(first, other, f"{key} of feature {name}", stored[name].get(key), others[name].get(key))


def _check(first: Dataset, other: Dataset, name: str, one: Any, two: Any) -> None:
    if one != two:
        hint = "build one of them again with the settings of the other"
        raise ValueError(f"cannot merge: {name} is {one} in {first.root} and {two} in {other.root}; {hint}")


def _choose(parts: Sequence[_Part], merged: Merged) -> list[Row]:
    """Gives every stored video one owner and one id, and returns the rows of the result."""
    owners: dict[str, Row] = {}
    for wanted in ("accepted", "rejected"):  # a twin that a rule left out gives way to one that is in
        for part in parts:
            for row in part.rows:
                if row["is_stored"] and row["status"] == wanted:
                    owners.setdefault(row["sha256"] or f"{part.dataset.root} {row['video_id']}", row)
    taken: set[str] = set()
    rows: dict[tuple[str, str, str], Row] = {}
    for part in parts:
        for row in part.rows:
            first = owners.get(row["sha256"], row)
            if row["is_stored"] and first is not row:
                twin = _twin(part, row, first, merged)
                if row["path"] == first["path"]:  # not another file, but another dataset of the same one
                    continue
                row = twin
            elif row["is_stored"]:
                row = row | {"video_id": _claim_id(part, row["video_id"], taken, merged)}
            rows.setdefault((row["path"], row["sha256"], row["status"]), row)
    return list(rows.values())


def _twin(part: _Part, row: Row, first: Row, merged: Merged) -> Row:
    place = f"{row['path']} of {part.dataset.root}"
    merged.twins.append(place)
    detail = f"the same bytes as {first['path']}"
    if row["split"] != first["split"]:
        merged.changed_sides.append(f"{place}: {row['split']} there, {first['split']} here")
        detail += f", which is in {first['split']}; it was in {row['split']} of {part.dataset.root}"
    return row | {
        "video_id": "", "status": "rejected", "reason": str(RejectReason.DUPLICATE), "detail": detail, "segments": 0,
        "frames_used": 0,
    }  # fmt: skip


def _claim_id(part: _Part, video_id: str, taken: set[str], merged: Merged) -> str:
    """The video's id, or where another video has it the first free one of ID-2, ID-3, …"""
    numbers = (f"{video_id}-{number}" for number in itertools.count(2))
    new = next(name for name in itertools.chain([video_id], numbers) if name not in taken)
    taken.add(new)
    part.new_ids[video_id] = new
    if new != video_id:
        merged.renamed[f"{video_id} of {part.dataset.root}"] = new
    return new


def _files(part: _Part) -> Iterator[tuple[str, str]]:
    """(segment file, id in the result) of every video that is taken."""
    pairs = part.index.select(["video_id", "path"]).group_by(["video_id", "path"]).aggregate([]).to_pylist()
    files: dict[str, str] = {}
    for pair in pairs:
        if pair["video_id"] in part.new_ids and files.setdefault(pair["video_id"], pair["path"]) != pair["path"]:
            raise ValueError(f"{part.dataset.root}: the segments of {pair['video_id']} lie in several files")
    for video_id, path in files.items():
        yield part.dataset.resolve(path), part.new_ids[video_id]


def _place(source: str, target: Path, new_ids: Mapping[str, str]) -> None:
    """A segment file under its id in the result: the same file where nothing in it changes."""
    with local_copy(locate(source)) as path:
        if target.exists() and target.samefile(path):
            return
        with atomic(target) as temporary:
            if any(old != new == target.stem for old, new in new_ids.items()):
                rewrite_segments(path, temporary, lambda table: _renamed(table, new_ids))
                return
            try:
                os.link(path.resolve(), temporary)
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(path, temporary)


def _renamed(table: pa.Table, new_ids: Mapping[str, str]) -> pa.Table:
    """Rows of an index or of a segment file under their ids in the result."""
    olds, segments = table["video_id"].to_pylist(), table["segment_id"].to_pylist()
    ids = [new_ids[old] for old in olds]
    names = [new + name.removeprefix(old) for old, new, name in zip(olds, ids, segments, strict=True)]
    return with_columns(table, {"video_id": pa.array(ids, pa.string()), "segment_id": pa.array(names, pa.string())})


def _union(parts: Sequence[_Part]) -> pa.Table:
    """One index, by video id and position; a score that was not measured is null."""
    tables = []
    for part in parts:
        mine = pc.is_in(part.index["video_id"], value_set=pa.array(list(part.new_ids), pa.string()))
        table = _renamed(part.index.filter(mine), part.new_ids)
        paths = pa.array([f"{SEGMENTS}/{name}.parquet" for name in table["video_id"].to_pylist()], pa.string())
        tables.append(with_columns(table, {"path": paths}))
    index = pa.concat_tables(tables, promote_options="default")
    scores = [name.removeprefix(SCORE) for name in index.column_names if name.startswith(SCORE)]
    schema = index_schema(scores)
    return index.select(schema.names).cast(schema).sort_by([("video_id", "ascending"), ("index", "ascending")])


def _manifest(datasets: Sequence[Dataset], rows: Sequence[Row], index: pa.Table) -> dict[str, Any]:
    first = datasets[0]
    content = hashlib.sha256("\n".join(["merge", *(dataset.hash for dataset in datasets)]).encode())
    rules = [rule for rule in first.info["rules"] if all(rule in other.info["rules"] for other in datasets)]
    sources = [{"path": str(d.root), **{key: d.info.get(key) for key in PART_OF}} for d in datasets]
    return manifest(
        _config(datasets),
        first.info["extractors"],
        rows,
        source="",
        funnel=_funnel(index),
        dataset_hash=content.hexdigest()[:16],
    ) | {"rules": rules, "merged": sources}


PART_OF = ("hash", "source", "rules", "funnel", "counts", "config")
"""What dataset.json keeps of each dataset that went in."""


def _config(datasets: Sequence[Dataset]) -> BuildConfig:
    """The settings that all share; where they differ there is none, so the default stands in."""
    configs = [dataset.info["config"] for dataset in datasets]
    shared = {key: value for key, value in configs[0].items() if all(other.get(key) == value for other in configs)}
    for key in ("features", "where"):
        shared[key] = tuple(shared.get(key, ()))
    return BuildConfig(**{**shared, "features": tuple(configs[0]["features"])})


def _funnel(index: pa.Table) -> list[dict[str, Any]]:
    """All that was measured, then what fell at each rule of any of the datasets."""
    fell = Counter(text for text in index["dropped"].to_pylist() if text)
    steps, left = [{"rule": "", "dropped": 0, "left": len(index)}], len(index)
    for rule, dropped in fell.items():
        left -= dropped
        steps.append({"rule": rule, "dropped": dropped, "left": left})
    return steps
