"""The records of spans, and how those of a video are joined to its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Literal

from lawdnet.data.manifest import BUILD
from lawdnet.data.near_duplicates import join_hashes
from lawdnet.data.records import VideoRecord, video_records
from lawdnet.data.tally import Tally
from lawdnet.storage import Location
from lawdnet.tasks.records import RecordStore, Refusal
from lawdnet.types import FPS, Rejected, RejectReason

SPANS = "spans"
"""Folder below that of the records."""


@dataclass(kw_only=True)
class SpanRecord(VideoRecord):
    """What became of a span, which may be accepted without segments."""

    part: str
    """Name of its segment file without the suffix."""
    when: str
    """Where it is in the video, for a person."""
    counts: dict[str, int] = field(default_factory=Tally().counts.copy)
    """See `lawdnet.data.tally.Tally.counts`."""

    @property
    def files(self) -> set[str]:
        """Names of its segment files: one, or none."""
        return {self.own_file} if self.is_accepted and self.segments else set()

    @property
    def own_file(self) -> str:
        """Name of its segment file, if it has segments."""
        return f"{self.part}.parquet"

    def place(self, shard: str = "", first: int = 0) -> None:
        """Nothing: spans are not packed."""
        assert not shard


def span_key(key: str, number: int) -> str:
    """What the record of a span is stored under. Args: key: that of its video."""
    return f"{key}-{number:04d}"


def when(ticks: range) -> str:
    """Return where ticks are in a video, as `0:10:00 to 0:20:00`."""
    start, stop = (timedelta(seconds=tick // FPS) for tick in (ticks.start, ticks.stop))
    return f"{start} to {stop}"


def span_records(root: Location) -> RecordStore[SpanRecord]:
    """The records of the spans of the dataset in `root`."""
    return RecordStore(root / BUILD / SPANS, SpanRecord)


def long_video_file(root: Location, key: str) -> Location:
    """Where a `LongVideo` is stored. Args: key: that of its video."""
    return root / BUILD / SPANS / f"{key}.npz"


def join(record: VideoRecord, spans: Sequence[SpanRecord], min_frames: int) -> VideoRecord:
    """Return the record of a video that was divided, from those of all its spans.

    A span that could not be built costs the whole video, as a damaged frame does.

    Args:
        record: the video's own, which may have been joined before.
        spans: in order.
        min_frames: of the shortest segment.
    """
    tally = Tally()
    for span in spans:
        tally.add(span.counts)
    steps: Counter[str] = Counter()
    for seconds in (record.division_seconds, *(span.step_seconds for span in spans)):
        steps.update(seconds)
    total = sum(record.division_seconds.values()) + sum(span.seconds for span in spans)
    joined = replace(
        record, frames=tally.frames, seconds=round(total, 3), step_seconds={n: round(s, 3) for n, s in steps.items()}
    )
    if refusal := _refusal(spans, tally, min_frames):
        joined.reject(refusal)
        return joined
    marks = spans[0].features.items()
    syncs = {span.sync for span in spans}
    return replace(
        joined,
        status="accepted",
        reason="",
        detail=tally.describe(),
        segments=tally.segments,
        frames_used=tally.used,
        rows=[row for span in spans for row in span.rows],
        parts=[span.part for span in spans if span.segments],
        perceptual_hash=join_hashes(span.perceptual_hash for span in spans),
        faces=" ".join(span.faces for span in spans if span.faces),
        features={name: mark for name, mark in marks if all(span.features.get(name) == mark for span in spans)},
        sync=syncs.pop() if len(syncs) == 1 else None,
        not_completed=next((span.not_completed for span in spans if span.not_completed), ""),
    )


def _refusal(spans: Sequence[SpanRecord], tally: Tally, min_frames: int) -> Refusal | None:
    """Why a video gives no segments: what the first span says that was rejected, or else failed, or all together."""
    bad = [span for span in spans if not span.is_accepted]
    if bad:
        first = min(bad, key=lambda span: span.is_failed)
        status: Literal["rejected", "failed"] = "failed" if first.is_failed else "rejected"
        return Refusal(status, RejectReason(first.reason), f"{first.when}: {first.detail}")
    try:
        tally.check(min_frames)
    except Rejected as error:
        return Refusal("rejected", error.reason, error.detail)
    return None


def forget_spans(root: Location) -> set[str]:
    """Remove what is stored of spans that nothing will ask for, and return the segment files of the others.

    Those of a video that was rejected are kept only if the next build tries it again.
    """
    store = span_records(root)
    paths: list[Location] = list(store.folder.glob("*"))
    records = video_records(root).read_many({path.stem.partition("-")[0] for path in paths})
    kept: list[str] = []
    for path in paths:
        key, _, number = path.stem.partition("-")
        record = records.get(key)
        is_one = record and (not record.borders or not number or int(number) < len(record.borders) - 1)
        if record and is_one and (record.borders or record.is_tried_again):
            kept += [path.stem] if path.suffix == ".json" else []
        else:
            path.unlink(missing_ok=True)
    return {name for span in store.read_many(kept).values() for name in span.files}
