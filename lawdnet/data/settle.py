"""What is decided when all videos are built: which are duplicates, what belongs together, and who is held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lawdnet.data.config import BuildConfig
from lawdnet.data.groups import groups_of, re_encodings
from lawdnet.data.ledger import ledger
from lawdnet.data.manifest import SEGMENTS
from lawdnet.data.records import VideoRecord, video_records
from lawdnet.data.schema import rewrite_segments, with_columns
from lawdnet.data.span_records import forget_spans
from lawdnet.data.split import held_out
from lawdnet.storage import Location, atomic
from lawdnet.tasks.records import Refusal
from lawdnet.types import Bool, RejectReason


@dataclass(frozen=True, kw_only=True)
class Settled:
    """The videos of a dataset, after duplicates, groups and the split."""

    videos: pa.Table
    """The accepted ones, in the columns of `lawdnet.data.ledger`."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """Key of a video → its group; those that stand alone are left out."""
    re_encodings: Mapping[str, str] = field(default_factory=dict)
    """Key of a near-duplicate that is left out, which its record does not say → path of the first video."""
    span_files: frozenset[str] = frozenset()
    """Segment files of spans that a later build may need."""


def settle(root: Location, config: BuildConfig, listed: Mapping[str, str]) -> Settled:
    """Reject duplicates, and put every video on its side of the split.

    A near-duplicate that is rejected stays as it was in the store, with its segments: a build with another
    `near_duplicates` has it back without decoding.

    Args:
        config: `group_by`, `near_duplicates` and `val_fraction` count.
        listed: key of an input → the group that the list of inputs names now.

    Raises:
        ValueError: a record cannot be read.
    """
    span_files = forget_spans(root)
    _note_listed(root, listed)
    videos = _reject_duplicates(root, ledger(root))
    copies = {} if config.near_duplicates == "keep" else re_encodings(videos)
    left_out: dict[str, str] = {}
    if config.near_duplicates == "reject":
        keys, paths = videos["key"], videos["path"]
        left_out = {keys[copy].as_py(): paths[first].as_py() for copy, first in copies.items()}
        is_kept = np.ones(len(videos), np.bool_)
        is_kept[list(copies)] = False
        videos, copies = videos.filter(pa.array(is_kept)), {}
    groups = groups_of(videos, config, copies)
    videos = videos.drop_columns(["perceptual_hash", "faces", "listed"])
    pa.default_memory_pool().release_unused()
    videos = _split(root, videos, groups, config.val_fraction)
    return Settled(
        videos=videos,
        groups={key.as_py(): group for key, group in zip(videos["key"], groups, strict=True) if group},
        re_encodings=left_out,
        span_files=frozenset(span_files),
    )


def reject_re_encoding(record: VideoRecord, first: str) -> None:
    """Change a record to that of a near-duplicate which is left out. Args: first: path of the first video."""
    detail = f"a re-encoding of {first}: the face moves alike; set near_duplicates to group or keep to use it"
    record.reject(Refusal("rejected", RejectReason.DUPLICATE, detail))


def _note_listed(root: Location, listed: Mapping[str, str]) -> None:
    store = video_records(root)
    for piece in store.pieces(brief=False) if listed else ():
        for key, record in piece.items():
            if record.listed != (name := listed.get(key, record.listed)):
                record.listed = name
                store.write(key, record)


def _reject_duplicates(root: Location, videos: pa.Table) -> pa.Table:
    """Of accepted videos with the same bytes only the first stays, in the order of their paths."""
    same = videos["sha256"].combine_chunks().dictionary_encode().indices.to_numpy()
    first = np.unique(same, return_index=True)[1][same] if len(same) else same
    is_copy: Bool = first != np.arange(len(videos))
    if not is_copy.any():
        return videos
    store = video_records(root)
    for number in np.flatnonzero(is_copy).tolist():
        key, kept = videos["key"][number].as_py(), videos["path"][int(first[number])].as_py()
        record = store.read(key)
        assert record is not None
        record.reject(Refusal("rejected", RejectReason.DUPLICATE, f"the same bytes as {kept}"))
        store.write(key, record)
    return videos.filter(pa.array(~is_copy)).combine_chunks()


def _split(root: Location, videos: pa.Table, groups: list[str], val_fraction: float) -> pa.Table:
    """Put every video on its side; segment files that say otherwise are written again."""
    drawn_from = (group or sha256.as_py() for group, sha256 in zip(groups, videos["sha256"], strict=True))
    is_val = held_out(drawn_from, len(videos), val_fraction)
    split = pa.array(["train", "val"], pa.string()).take(pa.array(is_val.astype(np.int8)))
    is_changed = pc.not_equal(videos["split"], split)
    for number in np.flatnonzero(is_changed.to_numpy()).tolist():
        _rewrite_split(root, videos["key"][number].as_py(), split[number].as_py())
    return with_columns(videos, {"split": split, "shard": pc.if_else(is_changed, "", videos["shard"])})


def _rewrite_split(root: Location, key: str, split: str) -> None:
    store = video_records(root)
    record = store.read(key)
    assert record is not None
    record.split = split
    for name in sorted(record.files):
        target, groups = name, None
        if record.is_packed:  # the others in the shard stay as they are
            target, groups = record.own_file, [row.row_group for row in record.rows]
        with atomic(root / SEGMENTS / target) as temporary:
            rewrite_segments(root / SEGMENTS / name, temporary, lambda table: _on_side(table, split), groups)
    if record.is_packed:
        record.place()
    store.write(key, record)


def _on_side(table: pa.Table, split: str) -> pa.Table:
    return with_columns(table, {"split": pa.array([split] * table.num_rows, pa.string())})
