"""Selections: a dataset made of the segments of another that meet some rules, as a view of its files or as a copy.

Shape letter: R rows of an index.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lawdnet import __version__
from lawdnet.conditions import Condition
from lawdnet.data.manifest import MANIFEST, SEGMENTS, Counts, Dataset, write_index, write_videos
from lawdnet.data.rules import FunnelStep, Rule, apply_rules, column_of, mark
from lawdnet.data.schema import VideoRow, rewrite_segments
from lawdnet.data.transfer import claim, refuse_inside
from lawdnet.storage import Location, atomic, is_remote, locate, write_json
from lawdnet.types import RejectReason

QUANTILES = (0, 5, 25, 50, 75, 95, 100)

Progress = Callable[[int, int], None]
"""Called with the number of segment files copied and the total."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The segments of a dataset that meet some rules; nothing is written yet."""

    source: Dataset
    index: pa.Table
    """All measured segments; those that were dropped are marked in column `dropped`."""
    rules: tuple[str, ...]
    """Texts of all rules, those of the source first."""
    funnel: tuple[FunnelStep, ...]
    """A step that counts all measured segments, then one per rule."""
    hash: str

    @cached_property
    def kept(self) -> pa.Table:
        """The rows of the index that were not dropped."""
        return self.index.filter(pc.equal(self.index["dropped"], ""))


def choose(
    source: Dataset,
    rules: Sequence[Rule],
    *,
    features: Sequence[str] = (),
    max_per_video: int | None = None,
    is_fresh: bool = False,
) -> Selection:
    """Apply rules to a dataset's index; no segment file is opened.

    Args:
        rules: a segment is kept if it meets all of them.
        features: a segment is kept if it has all of them; a feature may be missing where a build could not add it.
        max_per_video: keep at most this many of the segments of a video that meet the rules, spread evenly over it.
        is_fresh: ignore the rules that the source was made with, and start from everything that was measured.

    Raises:
        ValueError: a rule uses a score that was not measured, a feature is not stored, or `max_per_video` is less
            than 1.
    """
    if max_per_video is not None and max_per_video < 1:
        raise ValueError(f"max_per_video: {max_per_video} must be at least 1")
    index = source.index()
    before = _funnel(source)
    if is_fresh:
        index = mark(index, np.ones(len(index), np.int32), [""])
        before = ()
    index, steps = apply_rules(index, rules)
    for name in features:
        index, step = _with_feature(index, source, name)
        steps.append(step)
    if max_per_video is not None:
        index, step = _spread(index, max_per_video)
        steps.append(step)
    funnel = (*before, *(steps[1:] if before else steps))
    parts = [source.hash, "fresh" if is_fresh else "", *(step.rule for step in steps[1:])]
    return Selection(
        source=source,
        index=index,
        rules=tuple(step.rule for step in funnel[1:]),
        funnel=funnel,
        hash=hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16],
    )


def _funnel(dataset: Dataset) -> tuple[FunnelStep, ...]:
    """Return the funnel in dataset.json, which may be missing."""
    return tuple(FunnelStep(**step) for step in dataset.info.get("funnel", ()))


def _with_feature(index: pa.Table, source: Dataset, name: str) -> tuple[pa.Table, FunnelStep]:
    """Drop the remaining rows of videos that lack a feature."""
    source.feature_dim(name)
    lacking = [row.video_id for row in source.video_rows() if name in row.lacks.split(",")]
    is_out = pc.and_(pc.is_in(index["video_id"], pa.array(lacking, pa.string())), pc.equal(index["dropped"], ""))
    dropped_R = is_out.to_numpy().astype(np.int32)
    text, dropped = f"has {name}", int(dropped_R.sum())
    left = pc.sum(pc.equal(index["dropped"], "")).as_py() - dropped
    return mark(index, dropped_R, [text]), FunnelStep(text, dropped, left)


def _spread(index: pa.Table, most: int) -> tuple[pa.Table, FunnelStep]:
    """Drop all but `most` of each video's remaining rows, so that those that stay are spread evenly over the video."""
    left = np.flatnonzero(pc.equal(index["dropped"], "").to_numpy())
    videos = index["video_id"].take(pa.array(left)).combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.argsort(videos, kind="stable")
    counts = np.bincount(videos)
    rank = np.empty(len(left), np.int64)
    rank[order] = np.arange(len(left)) - (np.cumsum(counts) - counts)[videos[order]]
    share = counts[videos]
    out = (rank + 1) * most // share == rank * most // share
    dropped_R = np.zeros(len(index), np.int32)
    dropped_R[left[out]] = 1
    text = f"at most {most} per video"
    return mark(index, dropped_R, [text]), FunnelStep(text, int(out.sum()), int((~out).sum()))


def advice(selection: Selection, rules: Sequence[Rule]) -> dict[str, dict[str, float]]:
    """Return the values that the first rule which left nothing was compared with.

    Returns:
        Name in the rule → {"0 %": …, "50 %": …, "100 %": …} over the segments that reached the rule; empty if none of
        them was measured.
    """
    texts = [str(rule) for rule in rules]
    ends = {step.rule for step in selection.funnel[1:] if step.dropped and not step.left}
    for number, rule in enumerate(rules):
        if texts[number] in ends:
            has_reached = pc.is_in(selection.index["dropped"], value_set=pa.array(["", *texts[number:]]))
            reached = selection.index.filter(has_reached)
            return {part.name: _quantiles(reached, part) for part in rule.conditions if part.operator[0] in "<>"}
    return {}


def _quantiles(index: pa.Table, condition: Condition) -> dict[str, float]:
    values = index[column_of(condition)].to_numpy().astype(np.float64)
    values = np.abs(values) if condition.is_absolute else values
    return quantiles(values)


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Return {"0 %": …, "5 %": …, … "100 %": …} of the finite values; empty if there are none."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return {}
    found = np.percentile(finite.astype(np.float64), QUANTILES)
    return {f"{q} %": float(f"{value:.6g}") for q, value in zip(QUANTILES, found, strict=True)}


def write_selection(
    selection: Selection, out: Location, *, copy: bool = False, on_file: Progress | None = None
) -> Dataset:
    """Write a selection as a dataset; the source is not changed.

    A view (`copy=False`) is an index that points into the source's files (see `pointer`) and keeps the dropped rows,
    marked. A copy has segment files of its own with only the selected segments.

    Args:
        out: a folder that does not exist, is empty, or contains the same selection.

    Raises:
        ValueError: no segment is left, `out` contains something else or lies in the source, or a view in `out` could
            not reach the source's files.
    """
    if not len(selection.kept):
        raise ValueError(f"{selection.source.root}: no segment is left; loosen a rule")
    if is_remote(out) and not copy and not is_remote(selection.source.root):
        raise ValueError(f"{out}: a view in an object store cannot point to local files; add --copy")
    refuse_inside(out, [selection.source.root])
    claim(out, "select", {"hash": selection.hash, "copy": copy})
    index = _copied(selection, out, on_file) if copy else _pointed(selection, out)
    rows = [row.columns() for row in _video_rows(selection)]
    write_index(out, index)
    write_videos(out, rows)
    write_json(out / MANIFEST, _manifest(selection, rows, out))
    return Dataset(out)


def _pointed(selection: Selection, out: Location) -> pa.Table:
    """Return the index with paths that lead from `out` to the source's files."""
    column = selection.index["path"].combine_chunks().dictionary_encode()
    paths = pa.array(
        [pointer(selection.source.resolve(path), out) for path in column.dictionary.to_pylist()], pa.string()
    )
    return _with(selection.index, "path", pa.DictionaryArray.from_arrays(column.indices, paths).cast(pa.string()))


def pointer(path: str, out: Location) -> str:
    """Return the path by which the dataset `out` refers to a file or folder of another dataset.

    Args:
        path: an absolute path or a URI.

    Returns:
        A relative path (`../NAME/segments/…`) if both lie under the parent or the grandparent of `out`, so that they
        can be moved together; else `path`.
    """
    if "://" in path or is_remote(out):
        return path
    folder, name = os.path.split(os.path.normpath(path))
    file = os.path.join(os.path.realpath(folder), name)
    here = os.path.realpath(str(out))
    relative = os.path.relpath(file, here)
    is_near = relative.split(os.sep).count("..") <= 2 and os.path.commonpath([file, here]) != os.sep
    return relative if is_near else file


def _copied(selection: Selection, out: Location, on_file: Progress | None) -> pa.Table:
    """Write segment files with the selected segments, of the same names as those they are from; return their index."""
    kept = selection.kept.sort_by([("video_id", "ascending"), ("index", "ascending")])
    groups_of: dict[str, list[int]] = {}
    places = []
    for row in kept.select(["path", "row_group"]).to_pylist():
        groups = groups_of.setdefault(row["path"], [])
        places.append((f"{SEGMENTS}/{_file_name(row['path'])}", len(groups)))
        groups.append(row["row_group"])
    assert len({_file_name(path) for path in groups_of}) == len(groups_of), "they are the files of one dataset"
    for done, (path, groups) in enumerate(groups_of.items(), 1):
        target = out / SEGMENTS / _file_name(path)
        if not target.exists():  # else it is complete, from a selection that was stopped
            with atomic(target) as temporary:
                rewrite_segments(locate(selection.source.resolve(path)), temporary, lambda table: table, groups)
        if on_file:
            on_file(done, len(groups_of))
    paths, numbers = zip(*places, strict=True)
    return _with(_with(kept, "path", pa.array(paths, pa.string())), "row_group", pa.array(numbers, pa.int32()))


def _file_name(path: str) -> str:
    return path.rpartition("/")[2]


def _with(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


def _video_rows(selection: Selection) -> list[VideoRow]:
    """Return the source's rows with what is left of each video; a video without segments left is rejected."""
    sums = selection.kept.group_by("video_id").aggregate([("num_frames", "sum"), ("num_frames", "count")])
    kept = {row["video_id"]: row for row in sums.to_pylist()}
    dropped: dict[str, list[str]] = {}
    marks = selection.index.group_by(["video_id", "dropped"], use_threads=False).aggregate([([], "count_all")])
    for row in marks.to_pylist():
        dropped.setdefault(row["video_id"], []).append(f"{row['count_all']} fell at {row['dropped']}")

    def after(row: VideoRow) -> VideoRow:
        if not row.is_accepted and row.reason != RejectReason.THRESHOLD:
            return row
        if found := kept.get(row.video_id):
            segments, frames = found["num_frames_count"], found["num_frames_sum"]
            return replace(row, status="accepted", reason="", detail="", segments=segments, frames_used=frames)
        detail = "; ".join(dropped.get(row.video_id, [row.detail]))
        reason = str(RejectReason.THRESHOLD)
        return replace(row, status="rejected", reason=reason, detail=detail, segments=0, frames_used=0)

    return [after(row) for row in selection.source.video_rows()]


def _manifest(selection: Selection, rows: Sequence[Mapping[str, Any]], out: Location) -> Mapping[str, Any]:
    """Return the source's dataset.json with what the selection changes."""
    return selection.source.info | {
        "code_version": __version__,
        "source": pointer(str(selection.source.root), out),
        "source_hash": selection.source.hash,
        "rules": list(selection.rules),
        "funnel": [asdict(step) for step in selection.funnel],
        "counts": asdict(Counts.of(rows)),
        "hash": selection.hash,
    }


def check_files(dataset: Dataset) -> None:
    """Check that the files of a dataset's segments, and what a view points to, are as they were.

    Raises:
        ValueError: a file is missing, or the dataset that a view points to has changed since.
    """
    index = dataset.index()
    named = pc.unique(index["path"].filter(pc.equal(index["dropped"], ""))).to_pylist()
    paths = [locate(dataset.resolve(path)) for path in named]
    missing = [path for path in paths if not is_remote(path) and not path.exists()]
    if missing:
        text = f"{len(missing)} of {len(paths)} segment files are missing, the first is {missing[0]}"
        raise ValueError(f"{dataset.root}: {text}; make the dataset again")
    is_view = any(not path.startswith(f"{SEGMENTS}/") for path in named)
    if is_view and "source_hash" in dataset.info:
        source = dataset.resolve(dataset.info["source"])
        if Dataset(locate(source)).hash != dataset.info["source_hash"]:
            raise ValueError(f"{dataset.root}: {source}, which it points to, was built again; select again")
