"""Merging datasets: every video once, in the split that it or its group was in, under an id of its own."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lawdnet.data.config import VOICING, BuildConfig
from lawdnet.data.disjoint import DisjointSets
from lawdnet.data.manifest import MANIFEST, SEGMENTS, Counts, Dataset, index_schema, manifest, write_index, write_videos
from lawdnet.data.schema import SCORE, VideoRow, rewrite_segments, with_columns
from lawdnet.data.transfer import claim, refuse_inside, source_folder
from lawdnet.storage import Location, atomic, local_copy, locate, write_json
from lawdnet.types import RejectReason

SAME = ("fps", "sample_rate", "crop_width", "crop_height")
"""Fields of dataset.json that must be equal. So must the features, which are compared one by one."""
KEPT = ("hash", "source", "rules", "funnel", "counts", "config")
"""Fields of dataset.json that are kept of each dataset that was merged."""


@dataclass
class Merged:
    """What a merge did."""

    videos: int = 0
    """Number of accepted videos, each counted once."""
    segments: int = 0
    twins: list[str] = field(default_factory=list)
    """Videos that an earlier dataset has as well: `PATH of DATASET`."""
    changed_sides: list[str] = field(default_factory=list)
    """Those of `twins`, and of groups that several datasets have, that were in another split: `PATH of DATASET: val
    there, train here`."""
    renamed: dict[str, str] = field(default_factory=dict)
    """`ID of DATASET` → the new id of a video whose id was taken by another video."""


@dataclass(frozen=True)
class _Video:
    """A video of one of the datasets."""

    row: VideoRow
    """Its `path` is absolute if the source folder is known."""
    is_stored: bool
    """Whether the dataset has segments of it, if only dropped ones."""


class _Part:
    """What the result takes from one dataset."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.index = dataset.index()
        stored = set(pc.unique(self.index["video_id"]).to_pylist())
        folder = source_folder(dataset)
        self.videos: list[_Video] = []
        for row in dataset.video_rows():
            path = row.path if folder is None else str(folder / row.path)
            self.videos.append(_Video(replace(row, path=path), row.is_accepted or row.video_id in stored))
        self.new_ids: dict[str, str] = {}
        """Id in the dataset → id in the result, of the videos that are taken."""
        self.new_splits: dict[str, str] = {}
        """Id in the result → split, of the videos that change sides with their group."""
        self.names: dict[str, str] = {}
        """Segment file, as in the index → its name in the result without suffix, if a video in it is taken."""


def merge(roots: Sequence[Location], out: Path, on_file: Callable[[int, int], None] | None = None) -> Merged:
    """Merge several datasets into one.

    A video is identified by the SHA-256 of its source and taken from the first dataset that accepted it; duplicates
    become rows with reason `duplicate`. Videos keep their split, but a group that several datasets have, or whose
    videos they have, is one group and on the side that it has in the first of them. A score that a dataset did not
    measure is null, and a dropped segment stays dropped. Segment files are hard-linked, or copied if that is
    impossible; only those of videos that are renamed or change sides are rewritten.

    Args:
        roots: at least two datasets; selections are allowed. Never changed.
        out: folder of the result. Merging the same datasets again completes a merge that was stopped.
        on_file: called with the number of files done and the total.

    Raises:
        ValueError: there are fewer than two datasets, their formats differ, or `out` is in use or lies in a dataset.
    """
    if len(roots) < 2:
        raise ValueError("merge: name at least two datasets")
    datasets = [Dataset(root) for root in roots]
    for other in datasets[1:]:
        check_compatible(datasets[0], other)
    refuse_inside(out, [dataset.root for dataset in datasets])
    claim(out, "merge", {"sources": [str(dataset.root) for dataset in datasets]})
    merged, parts = Merged(), [_Part(dataset) for dataset in datasets]
    rows = sorted(_choose(parts, merged), key=lambda row: row.path)
    work = _files(parts)
    for done, (part, path, is_changed) in enumerate(work, 1):
        _link(part, path, out / SEGMENTS / f"{part.names[path]}.parquet", is_changed)
        if on_file:
            on_file(done, len(work))
    index = _union(parts)
    merged.videos = sum(row.is_accepted for row in rows)
    merged.segments = pc.sum(pc.equal(index["dropped"], "")).as_py() or 0
    write_index(out, index)
    columns = [row.columns() for row in rows]
    write_videos(out, columns)
    write_json(out / MANIFEST, _manifest(datasets, columns, index))
    named = {name for part in parts for name in part.names.values()}
    for file in (out / SEGMENTS).glob("*.parquet"):
        if file.stem not in named:
            file.unlink()
    return merged


def check_compatible(first: Dataset, other: Dataset) -> None:
    """Check that two datasets can be merged.

    Raises:
        ValueError: they differ in format; the message names both and what differs.
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


def _choose(parts: Sequence[_Part], merged: Merged) -> list[VideoRow]:
    """Assign every stored video one dataset and one id, and return the rows of the result."""
    owners = _owners(parts)
    groups = _groups(parts, owners)
    taken: set[str] = set()
    rows: dict[tuple[str, str, str], VideoRow] = {}
    for part in parts:
        for video in part.videos:
            row = video.row
            owner = owners.get(row.sha256, video)
            if video.is_stored and owner is not video:
                duplicate = _duplicate(part, row, replace(owner.row, split=groups[id(owner)][1]), merged)
                if row.path == owner.row.path:  # the same file, which another dataset has as well
                    continue
                row = duplicate
            elif video.is_stored:
                row = replace(row, video_id=_claim_id(part, row.video_id, taken, merged))
                row = _with_group(part, row, groups[id(video)], merged)
            rows.setdefault((row.path, row.sha256, row.status), row)
    return list(rows.values())


def _owners(parts: Sequence[_Part]) -> dict[str, _Video]:
    """Return the video to take for every SHA-256; a video that was rejected by a rule gives way to an accepted one."""
    owners: dict[str, _Video] = {}
    for status in ("accepted", "rejected"):
        for part in parts:
            for video in part.videos:
                if video.is_stored and video.row.status == status:
                    owners.setdefault(video.row.sha256 or f"{part.dataset.root} {video.row.video_id}", video)
    return owners


def _groups(parts: Sequence[_Part], owners: Mapping[str, _Video]) -> dict[int, tuple[str, str]]:
    """Return the (name, split) of the group of every stored video, by its `id`.

    Videos are in one group if they have its name, or if they are the same video.
    """
    stored = [video for part in parts for video in part.videos if video.is_stored]
    sets = DisjointSets(len(stored))
    first_of: dict[str, int] = {}
    for number, video in enumerate(stored):
        for name in filter(None, (video.row.group, video.row.sha256)):
            sets.join(number, first_of.setdefault(name, number))
    found: dict[int, tuple[str, str]] = {}
    for numbers in sets.sets():
        videos = [stored[number] for number in numbers]
        taken = [video for video in videos if owners.get(video.row.sha256, video) is video]
        name = next((video.row.group for video in videos if video.row.group), "")
        found |= {id(video): (name, taken[0].row.split) for video in videos}
    return found


def _with_group(part: _Part, row: VideoRow, group: tuple[str, str], merged: Merged) -> VideoRow:
    """Return the row of a video that is taken, with the name and on the side of its group."""
    name, split = group
    if row.split != split:
        part.new_splits[row.video_id] = split
        merged.changed_sides.append(f"{row.path} of {part.dataset.root}: {row.split} there, {split} here")
    return replace(row, group=name, split=split)


def _duplicate(part: _Part, row: VideoRow, owner: VideoRow, merged: Merged) -> VideoRow:
    """Note a duplicate, and return its row in the result."""
    name = f"{row.path} of {part.dataset.root}"
    merged.twins.append(name)
    detail = f"the same bytes as {owner.path}"
    if row.split != owner.split:
        merged.changed_sides.append(f"{name}: {row.split} there, {owner.split} here")
        detail += f", which is in {owner.split}; it was in {row.split} of {part.dataset.root}"
    return replace(
        row,
        video_id="",
        status="rejected",
        reason=str(RejectReason.DUPLICATE),
        detail=detail,
        segments=0,
        frames_used=0,
    )


def _claim_id(part: _Part, video_id: str, taken: set[str], merged: Merged) -> str:
    """Return the video's id, or, if another video has it, the first free one of ID-2, ID-3, …"""
    new = _first_free(video_id, taken)
    taken.add(new)
    part.new_ids[video_id] = new
    if new != video_id:
        merged.renamed[f"{video_id} of {part.dataset.root}"] = new
    return new


def _files(parts: Sequence[_Part]) -> list[tuple[_Part, str, bool]]:
    """Name every segment file with a video that is taken; return it, and whether ids or splits in it change."""
    work: list[tuple[_Part, str, bool]] = []
    taken: set[str] = set()
    for part in parts:
        pairs = part.index.select(["video_id", "path"]).group_by(["video_id", "path"]).aggregate([]).to_pylist()
        changed: dict[str, bool] = {}
        for pair in pairs:
            path, old = pair["path"], pair["video_id"]
            if (new := part.new_ids.get(old)) is None:
                continue
            changed[path] = changed.get(path, False) or old != new or new in part.new_splits
            if path not in part.names:
                part.names[path] = _free_name(path, old, new, taken)
                taken.add(part.names[path])
        work += [(part, path, is_changed) for path, is_changed in changed.items()]
    return work


def _free_name(path: str, old: str, new: str, taken: Collection[str]) -> str:
    """Return the name in the result, without suffix, of a segment file.

    Of a video's own file it is the video's id, and for a span its number; a shard keeps its name, if it is free.
    """
    stem = PurePosixPath(path).stem
    rest = stem.removeprefix(old)
    name = new + rest if stem.startswith(old) and rest[:1] in ("", ".") else stem
    return _first_free(name, taken)


def _first_free(name: str, taken: Collection[str]) -> str:
    """Return the first of NAME, NAME-2, NAME-3, … that is free."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(one for one in names if one not in taken)


def _link(part: _Part, path: str, target: Path, is_changed: bool) -> None:
    """Put a segment file under its name in the result: a link or copy, unless ids or splits in it change."""
    with local_copy(locate(part.dataset.resolve(path))) as source:
        if target.exists() and target.samefile(source):
            return
        with atomic(target) as temporary:
            if is_changed:
                rewrite_segments(source, temporary, lambda table: _changed(table, part))
                return
            try:
                os.link(source.resolve(), temporary)
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(source, temporary)


def _changed(table: pa.Table, part: _Part) -> pa.Table:
    """Return rows of an index or of a segment file with their ids and splits in the result."""
    olds = table["video_id"].to_pylist()
    segments = table["segment_id"].to_pylist()
    ids = [part.new_ids.get(old, old) for old in olds]  # a shard may hold videos that are not taken
    splits = [part.new_splits.get(new, old) for new, old in zip(ids, table["split"].to_pylist(), strict=True)]
    names = [new + name.removeprefix(old) for old, new, name in zip(olds, ids, segments, strict=True)]
    changed = {"video_id": ids, "segment_id": names, "split": splits}
    return with_columns(table, {name: pa.array(values, pa.string()) for name, values in changed.items()})


def _union(parts: Sequence[_Part]) -> pa.Table:
    """Return the index of the result, by video id and position; a score that was not measured is null."""
    tables = []
    for part in parts:
        mine = pc.is_in(part.index["video_id"], value_set=pa.array(list(part.new_ids), pa.string()))
        rows = part.index.filter(mine)
        names = [part.names[path] for path in rows["path"].to_pylist()]
        paths_of = pa.array([f"{SEGMENTS}/{name}.parquet" for name in names], pa.string())
        tables.append(with_columns(_changed(rows, part), {"path": paths_of}))
    index = pa.concat_tables(tables, promote_options="default")
    scores = [name.removeprefix(SCORE) for name in index.column_names if name.startswith(SCORE)]
    schema = index_schema(scores)
    return index.select(schema.names).cast(schema).sort_by([("video_id", "ascending"), ("index", "ascending")])


def _manifest(datasets: Sequence[Dataset], rows: Sequence[Mapping[str, Any]], index: pa.Table) -> Mapping[str, Any]:
    first = datasets[0]
    content = hashlib.sha256("\n".join(["merge", *(dataset.hash for dataset in datasets)]).encode())
    rules = [rule for rule in first.info["rules"] if all(rule in other.info["rules"] for other in datasets)]
    measures = dict.fromkeys(dataset.info.get("speech_measure", VOICING) for dataset in datasets)
    sources = [{"path": str(d.root), **{key: d.info.get(key) for key in KEPT}} for d in datasets]
    # files without small levels may be among those of the oldest format
    changes = {"format_version": min(dataset.format_version for dataset in datasets), "rules": rules}
    return manifest(
        _config(datasets),
        first.info["extractors"],
        Counts.of(rows),
        source="",
        funnel=_funnel(index),
        dataset_hash=content.hexdigest()[:16],
    ) | {**changes, "speech_measure": " and ".join(measures), "merged": sources}


def _config(datasets: Sequence[Dataset]) -> BuildConfig:
    """Return the settings that all datasets share; those that differ get their defaults."""
    configs = [dataset.info["config"] for dataset in datasets]
    shared = {key: value for key, value in configs[0].items() if all(other.get(key) == value for other in configs)}
    for key in ("features", "where"):
        shared[key] = tuple(shared.get(key, ()))
    return BuildConfig(**{**shared, "features": tuple(configs[0]["features"])})


def _funnel(index: pa.Table) -> list[Mapping[str, Any]]:
    """Return a step for everything that was measured, then one for each rule of any of the datasets."""
    dropped = Counter(text for text in index["dropped"].to_pylist() if text)
    left = len(index)
    steps: list[Mapping[str, Any]] = [{"rule": "", "dropped": 0, "left": left}]
    for rule, count in dropped.items():
        left -= count
        steps.append({"rule": rule, "dropped": count, "left": left})
    return steps
