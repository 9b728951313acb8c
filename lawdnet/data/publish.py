"""From the records of all videos to the files that readers need: rules, index.parquet, videos.parquet, dataset.json.

Nothing here grows with the number of videos but a few strings for each: rows are written, sorted and read in pieces.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa

from lawdnet.data.config import BuildConfig
from lawdnet.data.manifest import (
    BUILD,
    INDEX,
    MANIFEST,
    SEGMENTS,
    VIDEOS,
    Counts,
    Dataset,
    index_schema,
    manifest,
    write_pieces,
)
from lawdnet.data.records import VideoRecord, video_records
from lawdnet.data.rules import SCORES, FunnelStep, apply_rules, parse_rule
from lawdnet.data.schema import SCORE, VIDEO_SCHEMA
from lawdnet.data.settle import Settled, reject_re_encoding
from lawdnet.data.shards import SHARDS, shard_records
from lawdnet.data.span_records import SPANS
from lawdnet.data.speakers import keep_speakers
from lawdnet.data.spill import Spill, borders_of
from lawdnet.storage import Location, is_remote, remove_temporaries, write_json
from lawdnet.types import RejectReason

SEEN = ("video_id", "landmarks_sha256", "split", "segments", "frames_used")
"""The columns of a video's row that decide what training sees of it."""
INDEX_SCHEMA = index_schema(list(SCORES))
MOST_LOOSE = 10_000
"""Number of records that may have a file of their own when a build ends."""


def publish(
    root: Location,
    config: BuildConfig,
    extractors: Mapping[str, Mapping[str, Any]],
    source: str,
    marks: Mapping[str, str],
    settled: Settled,
) -> Dataset:
    """Write the files that describe the dataset, and remove segment files that nothing names.

    Args:
        extractors: what dataset.json says about each.
        source: the folder or list that the videos came from.
        marks: extractor → the mark of its rows (see `VideoRecord.features`).

    Raises:
        ValueError: a rule needs a score that was not measured, or a record cannot be read.
    """
    if not is_remote(root):
        (root / SEGMENTS).mkdir(parents=True, exist_ok=True)
    kept = set(settled.span_files)
    counts, funnel, content = Counts.of(()), Funnel(config), DatasetHash(config, extractors)

    def finished(videos: Iterable[pa.Table]) -> Iterator[pa.Table]:
        nonlocal counts
        for table in videos:
            counts += Counts.of(table.select(["status", "reason", "segments", "frames_used"]).to_pylist())
            yield table

    with ExitStack() as stack:
        ids, paths = borders_of(settled.videos["video_id"]), borders_of(settled.videos["path"])
        index = stack.enter_context(Spill(INDEX_SCHEMA, ("video_id", "index"), ids))
        accepted = stack.enter_context(Spill(VIDEO_SCHEMA, ("video_id",), ids))
        videos = stack.enter_context(Spill(VIDEO_SCHEMA, ("path",), paths))
        measured = _gather(root, settled, marks, index, accepted, videos, kept)
        write_pieces(root / INDEX, _ruled(index, accepted, videos, funnel, content, measured))
        write_pieces(root / VIDEOS, finished(videos.read()))
    steps = [asdict(step) for step in funnel.steps]
    about = manifest(config, extractors, counts, source=source, funnel=steps, dataset_hash=content.hexdigest())
    write_json(root / MANIFEST, about)
    _sweep(root, kept)
    return Dataset(root)


def _gather(
    root: Location,
    settled: Settled,
    marks: Mapping[str, str],
    index: Spill,
    accepted: Spill,
    videos: Spill,
    kept: set[str],
) -> list[str]:
    """Spill the rows of all records, and return the columns of the index: a score that nobody measured has none."""
    found: set[str] = set()
    for piece in video_records(root).pieces(brief=False, most_loose=MOST_LOOSE):
        rows: list[dict[str, Any]] = []
        inputs: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for key, stored in piece.items():
            kept |= stored.files
            record = replace(stored, group=settled.groups.get(key, ""))
            if key in settled.re_encodings:
                reject_re_encoding(record, settled.re_encodings[key])
            if record.is_accepted:
                record.lacks = ",".join(record.lacking(marks))
                rows += index_rows(record)
            inputs[record.is_accepted].append(record.row().columns())
        found.update(name for row in rows for name in row if name.startswith(SCORE))
        index.add(pa.Table.from_pylist(rows, INDEX_SCHEMA))
        accepted.add(pa.Table.from_pylist(inputs[True], VIDEO_SCHEMA))
        videos.add(pa.Table.from_pylist(inputs[False], VIDEO_SCHEMA))
    return [name for name in INDEX_SCHEMA.names if not name.startswith(SCORE) or name in found]


def index_rows(record: VideoRecord) -> Iterator[dict[str, Any]]:
    """The rows of index.parquet of an accepted video; a score that was not measured is left out."""
    video = {"video_id": record.video_id, "split": record.split, "dropped": ""}
    for row in record.rows:
        path = f"{SEGMENTS}/{row.part or record.video_id}.parquet"
        own = {name: getattr(row, name) for name in ("segment_id", "index", "track", "start_frame", "num_frames")}
        scores = {SCORE + name: value for name, value in row.scores.items()}
        yield {**video, **own, "path": path, "row_group": row.row_group, **scores}


def _ruled(
    index: Spill, accepted: Spill, videos: Spill, funnel: Funnel, content: DatasetHash, measured: list[str]
) -> Iterator[pa.Table]:
    """Apply the rules to the index, and pass the videos on as they leave them."""
    for segments, rows in zip(index.read(), accepted.read(), strict=True):
        table = funnel.apply(segments.select(measured))
        yield table
        after = [row | changes for row, changes in zip(rows.to_pylist(), _after_rules(rows, table), strict=True)]
        content.add(row for row in after if row["status"] == "accepted")
        videos.add(pa.Table.from_pylist(after, VIDEO_SCHEMA))


def _after_rules(videos: pa.Table, index: pa.Table) -> Iterator[dict[str, Any]]:
    """What changes in the row of each video: one whose segments were all dropped is rejected, with their rules."""
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
    for name in videos["video_id"].to_pylist():
        changes: dict[str, Any] = {"segments": left[name], "frames_used": frames[name]}
        if not left[name]:
            total = sum(dropped[name].values())
            rules = "; ".join(f"{count} of {total} segments fell at {rule}" for rule, count in dropped[name].items())
            changes |= {"status": "rejected", "reason": str(RejectReason.THRESHOLD), "detail": rules}
        yield changes


@dataclass
class Funnel:
    """The rules of a dataset, applied to pieces of its index, each with all segments of its videos."""

    config: BuildConfig
    steps: list[FunnelStep] = field(default_factory=lambda: [FunnelStep("", 0, 0)])
    """What they did to all pieces together."""

    def apply(self, index: pa.Table) -> pa.Table:
        """The piece with `dropped` filled.

        Raises:
            ValueError: a rule uses a score that the index does not have.
        """
        if not len(index):
            return index
        index, steps = apply_rules(index, [parse_rule(rule) for rule in self.config.where])
        if self.config.face == "sync":
            index, step = keep_speakers(index)
            steps.append(step)
        before = [*self.steps, *(FunnelStep(step.rule, 0, 0) for step in steps[len(self.steps) :])]
        self.steps = [_sum(*pair) for pair in zip(before, steps, strict=True)]
        return index


def _sum(one: FunnelStep, other: FunnelStep) -> FunnelStep:
    return FunnelStep(
        one.rule, one.dropped + other.dropped, one.left + other.left, one.not_measured + other.not_measured
    )


class DatasetHash:
    """Hash of everything that training sees: settings, models, and the bytes of videos and landmarks.

    It is `digest` of a list with a row for each accepted video, by video id, which is never in memory as a whole.
    """

    def __init__(self, config: BuildConfig, extractors: Mapping[str, Any]) -> None:
        head = json.dumps([config.hash(), {name: dict(info) for name, info in extractors.items()}, []], sort_keys=True)
        self._digest = hashlib.sha256(head.removesuffix("]]").encode())
        self._is_first = True

    def add(self, videos: Iterable[Mapping[str, Any]]) -> None:
        """Add the rows of videos."""
        for video in videos:
            # older datasets have no column `lacks`, and their hashes hold
            part = [*(video[name] for name in SEEN), *filter(None, [video["lacks"]])]
            self._digest.update(f"{'' if self._is_first else ', '}{json.dumps(part)}".encode())
            self._is_first = False

    def hexdigest(self) -> str:
        """16 hex digits."""
        whole = self._digest.copy()
        whole.update(b"]]")
        return whole.hexdigest()[:16]


def _sweep(root: Location, kept: Collection[str]) -> None:
    """Remove all other segment files, and what killed workers left half written."""
    for path in (root / SEGMENTS).glob("*.parquet"):
        if path.name not in kept:
            path.unlink()
    for path in shard_records(root).folder.glob("*.json"):
        if f"{path.stem}.parquet" not in kept:
            path.unlink()
    for folder in (root, root / SEGMENTS, root / BUILD, *(root / BUILD / name for name in (SPANS, SHARDS))):
        remove_temporaries(folder)
