"""A dataset out of a dataset: what rules leave of it, as a view of its files or as a copy.

Shape letter: R rows of an index.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lawdnet import __version__
from lawdnet.conditions import Condition
from lawdnet.data.manifest import MANIFEST, SEGMENTS, Dataset, write_index, write_videos
from lawdnet.data.rules import Rule, Step, apply_rules, column_of, mark
from lawdnet.data.transfer import claim, refuse_inside
from lawdnet.storage import Location, atomic, is_remote, locate, parquet_file, write_json
from lawdnet.types import RejectReason

QUANTILES = (0, 5, 25, 50, 75, 95, 100)

Progress = Callable[[int, int], None]
"""Called with the videos copied, and of how many."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What rules leave of a dataset; nothing is written yet."""

    source: Dataset
    index: pa.Table
    """All measured segments, those that fell marked in column `dropped`."""
    rules: tuple[str, ...]
    """Texts of every rule that marks a row, those of the source first."""
    funnel: tuple[Step, ...]
    """A step for all measured segments, then one per rule."""
    hash: str

    @cached_property
    def kept(self) -> pa.Table:
        """The rows of the index that are left."""
        return self.index.filter(pc.equal(self.index["dropped"], ""))


def choose(
    source: Dataset, rules: Sequence[Rule], *, max_per_video: int | None = None, is_fresh: bool = False
) -> Selection:
    """Applies rules to a dataset's index; no segment is opened.

    Args:
        rules: a segment stays where all hold.
        max_per_video: of what the rules leave, at most this many segments of a video, spread evenly over it.
        is_fresh: forget the rules that the source was made with and begin with all that was measured.

    Raises:
        ValueError: a rule names a score that was not measured, or `max_per_video` is less than 1.
    """
    if max_per_video is not None and max_per_video < 1:
        raise ValueError(f"max_per_video: {max_per_video} is less than 1")
    index, before = source.index(), _funnel(source)
    if is_fresh:
        index, before = mark(index, np.ones(len(index), np.int32), [""]), ()
    index, steps = apply_rules(index, rules)
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


def _funnel(dataset: Dataset) -> tuple[Step, ...]:
    """The steps of dataset.json; none where it has none."""
    return tuple(Step(**step) for step in dataset.info.get("funnel", ()))


def _spread(index: pa.Table, most: int) -> tuple[pa.Table, Step]:
    """Drops all but `most` of each video's rows that are left, those that stay spread evenly over the video."""
    left = np.flatnonzero(pc.equal(index["dropped"], "").to_numpy())
    videos = index["video_id"].take(pa.array(left)).combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.argsort(videos, kind="stable")
    counts = np.bincount(videos)
    rank = np.empty(len(left), np.int64)
    rank[order] = np.arange(len(left)) - (np.cumsum(counts) - counts)[videos[order]]
    share = counts[videos]
    out = (rank + 1) * most // share == rank * most // share
    fell_R = np.zeros(len(index), np.int32)
    fell_R[left[out]] = 1
    text = f"at most {most} per video"
    return mark(index, fell_R, [text]), Step(text, int(out.sum()), int((~out).sum()))


def advice(selection: Selection, rules: Sequence[Rule]) -> dict[str, dict[str, float]]:
    """Where the values lie that a rule was held against, for each rule that left nothing.

    Returns:
        Name in the rule → {"0 %": …, "50 %": …, "100 %": …} over the segments that reached the rule; empty where none
        of them was measured.
    """
    texts = [str(rule) for rule in rules]
    ends = {step.rule for step in selection.funnel[1:] if step.dropped and not step.left}
    for place, rule in enumerate(rules):
        if texts[place] in ends:
            came = pc.is_in(selection.index["dropped"], value_set=pa.array(["", *texts[place:]]))
            reached = selection.index.filter(came)
            return {part.name: _quantiles(reached, part) for part in rule.conditions if part.operator[0] in "<>"}
    return {}


def _quantiles(index: pa.Table, condition: Condition) -> dict[str, float]:
    values = index[column_of(condition)].to_numpy().astype(np.float64)
    values = np.abs(values) if condition.is_absolute else values
    return quantiles(values)


def quantiles(values: np.ndarray) -> dict[str, float]:
    """{"0 %": …, "5 %": …, … "100 %": …} of the values that are finite; empty where none is."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return {}
    found = np.percentile(finite.astype(np.float64), QUANTILES)
    return {f"{q} %": float(f"{value:.6g}") for q, value in zip(QUANTILES, found, strict=True)}


def write_selection(
    selection: Selection, out: Location, *, copy: bool = False, on_video: Progress | None = None
) -> Dataset:
    """Writes a selection as a dataset; the source is not changed.

    A view (`copy=False`) is an index that points into the source's files (see `pointer`) and keeps the rows that
    fell, marked. A copy has segment files of its own, with nothing but the chosen segments.

    Args:
        out: a folder that is not there, is empty, or holds the same selection.

    Raises:
        ValueError: nothing is left, `out` holds something else or lies in the source, or a view there could not reach
            the source's files.
    """
    if not len(selection.kept):
        raise ValueError(f"{selection.source.root}: no segment is left; loosen a rule")
    if is_remote(out) and not copy and not is_remote(selection.source.root):
        raise ValueError(f"{out}: a view there cannot point to files of this machine; add --copy")
    refuse_inside(out, [selection.source.root])
    claim(out, "select", {"hash": selection.hash, "copy": copy})
    index = _copied(selection, out, on_video) if copy else _pointed(selection, out)
    rows = _video_rows(selection)
    write_index(out, index)
    write_videos(out, rows)
    write_json(out / MANIFEST, _manifest(selection, rows, out))
    return Dataset(out)


def _pointed(selection: Selection, out: Location) -> pa.Table:
    """The index with paths that lead from `out` into the source's files."""
    source, column = selection.source, selection.index["path"].combine_chunks().dictionary_encode()
    paths = pa.array([pointer(source.resolve(path), out) for path in column.dictionary.to_pylist()], pa.string())
    return _with(selection.index, "path", pa.DictionaryArray.from_arrays(column.indices, paths).cast(pa.string()))


def pointer(path: str, out: Location) -> str:
    """What the dataset `out` calls a file or folder of another dataset.

    Args:
        path: absolute, or a URI.

    Returns:
        Relative (`../NAME/segments/…`) where both lie under the parent or the grandparent of `out`, so that they can
        move together; else the path as it is.
    """
    if "://" in path or is_remote(out):
        return path
    folder, name = os.path.split(os.path.normpath(path))
    file, here = os.path.join(os.path.realpath(folder), name), os.path.realpath(str(out))
    relative = os.path.relpath(file, here)
    is_near = relative.split(os.sep).count("..") <= 2 and os.path.commonpath([file, here]) != os.sep
    return relative if is_near else file


def _copied(selection: Selection, out: Location, on_video: Progress | None) -> pa.Table:
    """Writes segment files with the chosen segments; returns their index."""
    kept = selection.kept.sort_by([("video_id", "ascending"), ("index", "ascending")])
    places: dict[str, list[tuple[str, int]]] = {}
    for row in kept.select(["video_id", "path", "row_group"]).to_pylist():
        places.setdefault(row["video_id"], []).append((selection.source.resolve(row["path"]), row["row_group"]))
    for done, (video_id, groups) in enumerate(places.items(), 1):
        target = out / SEGMENTS / f"{video_id}.parquet"
        if not target.exists():  # else whole, from a selection that was stopped
            with atomic(target) as temporary:
                _copy_groups(groups, temporary)
        if on_video:
            on_video(done, len(places))
    paths = [f"{SEGMENTS}/{video_id}.parquet" for video_id, groups in places.items() for _ in groups]
    numbers = [number for groups in places.values() for number in range(len(groups))]
    return _with(_with(kept, "path", pa.array(paths, pa.string())), "row_group", pa.array(numbers, pa.int32()))


def _copy_groups(groups: Sequence[tuple[str, int]], to: Path) -> None:
    """One file of row groups that may come from several, one segment in memory at a time."""
    with ExitStack() as stack:
        files: dict[str, pq.ParquetFile] = {}
        writer: pq.ParquetWriter | None = None
        for path, number in groups:
            if path not in files:
                files[path] = stack.enter_context(parquet_file(locate(path)))
            table = files[path].read_row_group(number)
            writer = writer or stack.enter_context(pq.ParquetWriter(to, table.schema, compression="zstd"))
            writer.write_table(table)


def _with(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


def _video_rows(selection: Selection) -> list[dict[str, Any]]:
    """The source's rows with what is left of each video; one that lost all its segments is rejected."""
    sums = selection.kept.group_by("video_id").aggregate([("num_frames", "sum"), ("num_frames", "count")])
    kept = {row["video_id"]: row for row in sums.to_pylist()}
    fell: dict[str, list[str]] = {}
    marks = selection.index.group_by(["video_id", "dropped"], use_threads=False).aggregate([([], "count_all")])
    for row in marks.to_pylist():
        fell.setdefault(row["video_id"], []).append(f"{row['count_all']} fell at {row['dropped']}")
    rows = selection.source.videos().to_pylist()
    for row in rows:
        if row["status"] != "accepted" and row["reason"] != RejectReason.THRESHOLD:
            continue
        if found := kept.get(row["video_id"]):
            row |= {"status": "accepted", "reason": "", "detail": ""}
            row |= {"segments": found["num_frames_count"], "frames_used": found["num_frames_sum"]}
        else:
            row |= {"status": "rejected", "reason": str(RejectReason.THRESHOLD), "segments": 0, "frames_used": 0}
            row |= {"detail": "; ".join(fell.get(row["video_id"], [row["detail"]]))}
    return rows


def _manifest(selection: Selection, rows: Sequence[dict[str, Any]], out: Location) -> dict[str, Any]:
    """The source's dataset.json with what the selection changes."""
    info = selection.source.info
    reasons = Counter(row["reason"] for row in rows if row["reason"])
    counts = {
        "videos": len(rows),
        **{status: sum(row["status"] == status for row in rows) for status in ("accepted", "rejected", "failed")},
        "segments": sum(row["segments"] for row in rows),
        "frames": sum(row["frames_used"] for row in rows),
        "reasons": dict(sorted(reasons.items())),
    }
    return info | {
        "code_version": __version__,
        "source": pointer(str(selection.source.root), out),
        "source_hash": selection.source.hash,
        "rules": list(selection.rules),
        "funnel": [asdict(step) for step in selection.funnel],
        "counts": counts,
        "hash": selection.hash,
    }


def check_files(dataset: Dataset) -> None:
    """Looks whether the files of a dataset's segments, and what a view points to, are as they were.

    Raises:
        ValueError: a file is missing, or the dataset that a view points to has changed since.
    """
    index = dataset.index()
    named = pc.unique(index["path"].filter(pc.equal(index["dropped"], ""))).to_pylist()
    places = [locate(dataset.resolve(path)) for path in named]
    missing = [place for place in places if not is_remote(place) and not place.exists()]
    if missing:
        text = f"{len(missing)} of {len(places)} segment files are missing, {missing[0]} the first"
        raise ValueError(f"{dataset.root}: {text}; make the dataset again")
    is_view = any(not path.startswith(f"{SEGMENTS}/") for path in named)
    if is_view and "source_hash" in dataset.info:
        source = dataset.resolve(dataset.info["source"])
        if Dataset(locate(source)).hash != dataset.info["source_hash"]:
            raise ValueError(f"{dataset.root}: {source}, which it points to, was built again; select again")
