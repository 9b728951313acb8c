"""From the outcomes of all inputs to a dataset: twins, split, rules, and the three files that readers begin with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa

from lawdnet.data.config import BuildConfig, digest
from lawdnet.data.manifest import BUILD, MANIFEST, SEGMENTS, Dataset, index_schema, manifest, write_index, write_videos
from lawdnet.data.rules import SCORES, FunnelStep, apply_rules, parse_rule
from lawdnet.data.schema import SCORE, rewrite_segments, with_columns
from lawdnet.data.segments import split_videos
from lawdnet.data.speakers import keep_speakers
from lawdnet.storage import Location, atomic, is_remote, local_copy, write_json
from lawdnet.tasks.records import Outcome, read_outcomes, read_segments, write_outcome
from lawdnet.types import RejectReason

AT_ONCE = 500
"""Videos whose segments are in memory as Python objects at a time."""
SEEN = ("video_id", "landmarks_sha256", "split", "segments", "frames_used")
"""What of a video's row decides what training sees of it."""


def finish(root: Location, config: BuildConfig, extractors: Mapping[str, Mapping[str, Any]], source: str) -> Dataset:
    """Writes index.parquet, videos.parquet and dataset.json, and removes segment files that nothing names.

    Raises:
        ValueError: a rule needs a score that was not measured.
    """
    outcomes = read_outcomes(root)
    _reject_twins(root, outcomes)
    accepted = {key: outcome for key, outcome in outcomes.items() if outcome.accepted}
    _split(root, accepted, config.val_fraction)
    index, funnel = choose(index_of(root, accepted), config)
    rows = judged([outcome.row for outcome in outcomes.values()], index)
    if not is_remote(root):
        (root / SEGMENTS).mkdir(parents=True, exist_ok=True)
    write_index(root, index)
    write_videos(root, rows)
    content = manifest(
        config,
        extractors,
        rows,
        source=source,
        funnel=[asdict(step) for step in funnel],
        dataset_hash=_hash(config, extractors, rows),
    )
    write_json(root / MANIFEST, content)
    _sweep(root, {outcome.row["video_id"] for outcome in accepted.values()})
    return Dataset(root)


def _sweep(root: Location, kept: Collection[str]) -> None:
    """Removes segment files that the index does not name, and what killed workers have left half written."""
    for path in (root / SEGMENTS).glob("*.parquet"):
        if path.stem not in kept:
            path.unlink()
    for folder in (root, root / BUILD, root / SEGMENTS) if not is_remote(root) else ():
        for path in folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)


def _hash(config: BuildConfig, extractors: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> str:
    """Of everything that training sees: settings, models, and the bytes of videos and landmarks."""
    parts = sorted([row[name] for name in SEEN] for row in rows if row["status"] == "accepted")
    return digest([config.hash(), {name: dict(info) for name, info in extractors.items()}, parts])


def index_of(root: Location, accepted: Mapping[str, Outcome]) -> pa.Table:
    """The rows of index.parquet, by video id and position; a score that was not measured is null."""
    keys = sorted(accepted, key=lambda key: accepted[key].row["video_id"])
    found: set[str] = set()
    schema = index_schema(list(SCORES))
    tables = [schema.empty_table()]
    # some videos at a time: as columns all segments take a tenth of the memory that they take as Python objects
    for start in range(0, len(keys), AT_ONCE):
        rows: list[dict[str, Any]] = []
        for key, segments in read_segments(root, keys[start : start + AT_ONCE]):
            found.update(name for segment in segments for name in segment["scores"])
            rows += _index_rows(accepted[key].row, segments)
        tables.append(pa.Table.from_pylist(rows, schema))
    measured = [name for name in schema.names if not name.startswith(SCORE) or name.removeprefix(SCORE) in found]
    return pa.concat_tables(tables).select(measured).combine_chunks()


def _index_rows(row: Mapping[str, Any], segments: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    video = {name: row[name] for name in ("video_id", "split")}
    video |= {"path": f"{SEGMENTS}/{row['video_id']}.parquet", "dropped": ""}
    for segment in segments:
        yield {**video, **segment, **{SCORE + name: value for name, value in segment["scores"].items()}}


def choose(index: pa.Table, config: BuildConfig) -> tuple[pa.Table, list[FunnelStep]]:
    """The index with `dropped` filled by the configuration's rules, and the funnel."""
    if not len(index):
        return index, [FunnelStep("", 0, 0)]
    index, funnel = apply_rules(index, [parse_rule(rule) for rule in config.where])
    if config.face == "sync":
        index, step = keep_speakers(index)
        funnel.append(step)
    return index, funnel


def judged(rows: list[dict[str, Any]], index: pa.Table) -> list[dict[str, Any]]:
    """The rows of videos.parquet after the rules: a video whose segments all fell is rejected with their rules."""
    left: Counter[str] = Counter()
    frames: Counter[str] = Counter()
    fell: dict[str, Counter[str]] = {}
    groups = index.group_by(["video_id", "dropped"], use_threads=False)
    for group in groups.aggregate([("num_frames", "sum"), ("num_frames", "count")]).to_pylist():
        name, segments = group["video_id"], group["num_frames_count"]
        if group["dropped"]:
            fell.setdefault(name, Counter())[group["dropped"]] = segments
        else:
            left[name], frames[name] = segments, group["num_frames_sum"]
    return [_judged(row, left, frames, fell) if row["status"] == "accepted" else row for row in rows]


def _judged(
    row: dict[str, Any], left: Counter[str], frames: Counter[str], fell: Mapping[str, Counter[str]]
) -> dict[str, Any]:
    name = row["video_id"]
    row = row | {"segments": left[name], "frames_used": frames[name]}
    if left[name]:
        return row
    total = sum(fell[name].values())
    rules = "; ".join(f"{count} of {total} segments fell at {rule}" for rule, count in fell[name].items())
    return row | {"status": "rejected", "reason": str(RejectReason.THRESHOLD), "detail": rules}


def _reject_twins(root: Location, outcomes: Mapping[str, Outcome]) -> None:
    """Of accepted inputs (in the order of their paths) with the same bytes only the first stays."""
    first: dict[str, str] = {}
    for key, outcome in outcomes.items():
        row = outcome.row
        if outcome.accepted and first.setdefault(row["sha256"], row["path"]) != row["path"]:
            row |= {"status": "rejected", "reason": str(RejectReason.DUPLICATE), "segments": 0, "frames_used": 0}
            row |= {"detail": f"the same bytes as {first[row['sha256']]}", "video_id": ""}
            write_outcome(root, key, outcome)


def _split(root: Location, accepted: Mapping[str, Outcome], val_fraction: float) -> None:
    """Puts every video on its side; segment files that say otherwise are written anew."""
    sides = split_videos({key: outcome.row["sha256"] for key, outcome in accepted.items()}, val_fraction)
    for key, outcome in accepted.items():
        if outcome.row["split"] == sides[key]:
            continue
        outcome.row["split"] = side = sides[key]
        path = root / SEGMENTS / f"{outcome.row['video_id']}.parquet"
        with local_copy(path) as old, atomic(path) as temporary:
            rewrite_segments(old, temporary, lambda table, side=side: _on_side(table, side))  # type: ignore[misc]
        write_outcome(root, key, replace(outcome, segments=dict(read_segments(root, [key]))[key]))


def _on_side(table: pa.Table, split: str) -> pa.Table:
    return with_columns(table, {"split": pa.array([split] * table.num_rows, pa.string())})
