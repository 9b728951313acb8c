"""What is left to do for a build that finds outcomes of an earlier one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lawdnet.storage import Location
from lawdnet.tasks.records import Outcome
from lawdnet.types import RejectReason
from pipelines.build.task import lacking

Row = dict[str, Any]


def remaining(
    items: Sequence[Row],
    outcomes: Mapping[str, Outcome],
    *,
    files: Collection[str],
    marks: Mapping[str, str],
    sync_mark: str | None,
    finds_faces: bool,
) -> dict[str, str | None]:
    """What each input still needs, by key: `build`, `complete` (features or sync scores), or None.

    Args:
        items: of `list_inputs`.
        outcomes: by key.
        files: names of the stored segment files.
        marks: see `feature_marks`.
        sync_mark: what sync scores depend on; None asks for none.
        finds_faces: whether a video without a CSV can have landmarks now.
    """
    inputs = {item["key"]: item["inputs"] for item in items}
    stay = {key: found for key, found in outcomes.items() if inputs.get(key, found.inputs) == found.inputs}
    firsts = {found.row["sha256"] for found in stay.values() if found.accepted}

    def may_be_good_now(row: Row) -> bool:
        """Though its files are as they were: rights come back, and so do object stores."""
        if row["reason"] == RejectReason.DUPLICATE:
            return row["sha256"] not in firsts
        return row["reason"] == RejectReason.UNREADABLE or (row["reason"] == RejectReason.NO_LANDMARKS and finds_faces)

    def needed(item: Row, found: Outcome | None) -> str | None:
        if found is None or found.inputs != item["inputs"] or found.row["status"] == "failed":
            return "build"
        if not found.accepted:
            return "build" if may_be_good_now(found.row) else None
        if f"{found.row['video_id']}.parquet" not in files:
            return "build"
        return "complete" if lacking(found, marks) or sync_mark not in (None, found.sync) else None

    return {item["key"]: needed(item, outcomes.get(item["key"])) for item in items}


def check_gone(
    root: Location, gone: Collection[str], outcomes: Mapping[str, Outcome], marks: Mapping[str, str]
) -> None:
    """Videos that are no longer in the source stay as they are, so that nothing can be added to them.

    Raises:
        ValueError: one lacks a feature that the dataset is to have.
    """
    short = [outcomes[key].row["path"] for key in gone if outcomes[key].accepted and lacking(outcomes[key], marks)]
    if short:
        text = f"{len(short)} videos, {min(short)} the first, lack a feature and are no longer in the source"
        raise ValueError(f"{root}: {text}; put them back, or choose another --out")
