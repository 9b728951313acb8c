"""From the records of all videos to a dataset: duplicates, groups, split, rules, and the files that readers need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa

from lawdnet.data.config import BuildConfig, digest
from lawdnet.data.groups import assign_groups
from lawdnet.data.manifest import BUILD, MANIFEST, SEGMENTS, Dataset, index_schema, manifest, write_index, write_videos
from lawdnet.data.records import VideoRecord, read_records, video_records
from lawdnet.data.rules import SCORES, FunnelStep, apply_rules, parse_rule
from lawdnet.data.schema import SCORE, rewrite_segments, with_columns
from lawdnet.data.span_records import SPANS, forget_spans
from lawdnet.data.speakers import keep_speakers
from lawdnet.data.split import split_videos
from lawdnet.storage import Location, atomic, is_remote, local_copy, remove_temporaries, write_json
from lawdnet.tasks.records import Refusal
from lawdnet.types import RejectReason

AT_ONCE = 500
"""Videos whose segments are in memory as Python objects at a time."""
SEEN = ("video_id", "landmarks_sha256", "split", "segments", "frames_used")
"""The columns of a video's row that decide what training sees of it."""


def finalize(
    root: Location,
    config: BuildConfig,
    extractors: Mapping[str, Mapping[str, Any]],
    source: str,
    marks: Mapping[str, str],
    listed: Mapping[str, str],
) -> Dataset:
    """Write index.parquet, videos.parquet and dataset.json, and remove segment files that nothing names.

    Args:
        extractors: what dataset.json says about each.
        marks: extractor → the mark of its rows (see `VideoRecord.features`).
        listed: key of an input → the group that the list of inputs names now.

    Raises:
        ValueError: a rule needs a score that was not measured, or a record cannot be read.
    """
    records = read_records(root)
    _reject_duplicates(root, records)
    kept = {name for record in records.values() for name in record.files} | forget_spans(root, records)
    for key, record in records.items():
        if record.listed != (name := listed.get(key, record.listed)):
            record.listed = name
            _store(root, key, record)
    assign_groups(records, config)
    accepted = {key: record for key, record in records.items() if record.is_accepted}
    for record in accepted.values():
        record.lacks = ",".join(record.lacking(marks))
    _split(root, accepted, config.val_fraction)
    index, funnel = choose(index_of(root, accepted), config)
    videos = [record.row().columns() for record in after_rules(list(records.values()), index)]
    if not is_remote(root):
        (root / SEGMENTS).mkdir(parents=True, exist_ok=True)
    write_index(root, index)
    write_videos(root, videos)
    content = manifest(
        config,
        extractors,
        videos,
        source=source,
        funnel=[asdict(step) for step in funnel],
        dataset_hash=_hash(config, extractors, videos),
    )
    write_json(root / MANIFEST, content)
    _sweep(root, kept)
    return Dataset(root)


def _sweep(root: Location, kept: Collection[str]) -> None:
    """Remove all other segment files, and what killed workers left half written."""
    for path in (root / SEGMENTS).glob("*.parquet"):
        if path.name not in kept:
            path.unlink()
    for folder in (root, root / BUILD, root / BUILD / SPANS, root / SEGMENTS):
        remove_temporaries(folder)


def _hash(config: BuildConfig, extractors: Mapping[str, Any], videos: Iterable[Mapping[str, Any]]) -> str:
    """Hash of everything that training sees: settings, models, and the bytes of videos and landmarks."""
    accepted = [video for video in videos if video["status"] == "accepted"]
    # older datasets have no column `lacks`, and their hashes hold
    parts = sorted([*(video[name] for name in SEEN), *filter(None, [video["lacks"]])] for video in accepted)
    return digest([config.hash(), {name: dict(info) for name, info in extractors.items()}, parts])


def index_of(root: Location, accepted: Mapping[str, VideoRecord]) -> pa.Table:
    """The rows of index.parquet, by video id and position; a score that was not measured is null."""
    keys = sorted(accepted, key=lambda key: accepted[key].video_id)
    found: set[str] = set()
    schema = index_schema(list(SCORES))
    tables = [schema.empty_table()]
    # some videos at a time: as columns all segments take a tenth of the memory that they take as Python objects
    for start in range(0, len(keys), AT_ONCE):
        rows: list[dict[str, Any]] = []
        for record in video_records(root).read_many(keys[start : start + AT_ONCE], brief=False).values():
            found.update(name for row in record.rows for name in row.scores)
            rows += _index_rows(record)
        tables.append(pa.Table.from_pylist(rows, schema))
    measured = [name for name in schema.names if not name.startswith(SCORE) or name.removeprefix(SCORE) in found]
    return pa.concat_tables(tables).select(measured).combine_chunks()


def _index_rows(record: VideoRecord) -> Iterator[dict[str, Any]]:
    video = {"video_id": record.video_id, "split": record.split, "dropped": ""}
    for row in record.rows:
        path = f"{SEGMENTS}/{row.part or record.video_id}.parquet"
        yield {**video, "path": path, **asdict(row), **{SCORE + name: value for name, value in row.scores.items()}}


def choose(index: pa.Table, config: BuildConfig) -> tuple[pa.Table, list[FunnelStep]]:
    """The index with `dropped` filled by the configuration's rules, and the funnel."""
    if not len(index):
        return index, [FunnelStep("", 0, 0)]
    index, funnel = apply_rules(index, [parse_rule(rule) for rule in config.where])
    if config.face == "sync":
        index, step = keep_speakers(index)
        funnel.append(step)
    return index, funnel


def after_rules(records: Sequence[VideoRecord], index: pa.Table) -> list[VideoRecord]:
    """The records after the rules: a video whose segments were all dropped is rejected, with their rules."""
    left: Counter[str] = Counter()
    frames: Counter[str] = Counter()
    dropped: dict[str, Counter[str]] = {}
    groups = index.group_by(["video_id", "dropped"], use_threads=False)
    for group in groups.aggregate([("num_frames", "sum"), ("num_frames", "count")]).to_pylist():
        name, segments = group["video_id"], group["num_frames_count"]
        if group["dropped"]:
            dropped.setdefault(name, Counter())[group["dropped"]] = segments
        else:
            left[name] = segments
            frames[name] = group["num_frames_sum"]

    def after(record: VideoRecord) -> VideoRecord:
        name = record.video_id
        record = replace(record, segments=left[name], frames_used=frames[name])
        if not left[name]:
            total = sum(dropped[name].values())
            rules = "; ".join(f"{count} of {total} segments fell at {rule}" for rule, count in dropped[name].items())
            record.status, record.reason, record.detail = "rejected", str(RejectReason.THRESHOLD), rules
        return record

    return [after(record) if record.is_accepted else record for record in records]


def _reject_duplicates(root: Location, records: Mapping[str, VideoRecord]) -> None:
    """Of accepted videos with the same bytes only the first stays, in the order of their paths."""
    first: dict[str, str] = {}
    for key, record in records.items():
        if record.is_accepted and (kept := first.setdefault(record.sha256, record.path)) != record.path:
            record.reject(Refusal("rejected", RejectReason.DUPLICATE, f"the same bytes as {kept}"))
            video_records(root).write(key, record)


def _split(root: Location, accepted: Mapping[str, VideoRecord], val_fraction: float) -> None:
    """Put every video on its side; segment files that say otherwise are written again."""
    sides = split_videos({key: record.group or record.sha256 for key, record in accepted.items()}, val_fraction)
    for key, record in accepted.items():
        if record.split != sides[key]:
            record.split = sides[key]
            _rewrite_split(root, key, record)


def _rewrite_split(root: Location, key: str, record: VideoRecord) -> None:
    for path in (root / SEGMENTS / name for name in sorted(record.files)):
        with local_copy(path) as old, atomic(path) as temporary:
            rewrite_segments(old, temporary, lambda table: _on_side(table, record.split))
    _store(root, key, record)


def _store(root: Location, key: str, record: VideoRecord) -> None:
    """Store a record that was read without the rows of its segments."""
    store = video_records(root)
    stored = store.read(key)
    assert stored is not None
    store.write(key, replace(record, rows=stored.rows))


def _on_side(table: pa.Table, split: str) -> pa.Table:
    return with_columns(table, {"split": pa.array([split] * table.num_rows, pa.string())})
