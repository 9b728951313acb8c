"""The record of a video: its row of videos.parquet, and what the index says of its segments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from lawdnet.data.manifest import BUILD
from lawdnet.data.schema import BUILD_STAGES, VideoRow
from lawdnet.storage import Location
from lawdnet.tasks.records import RecordStore, Refusal, TaskRecord
from lawdnet.types import RejectReason

STATE = "build.json"
"""In the same folder as the records: what the whole build is bound to."""


@dataclass(frozen=True)
class SegmentRow:
    """A segment's row of index.parquet, without the fields of its video."""

    segment_id: str
    index: int
    track: int
    start_frame: int
    num_frames: int
    row_group: int
    scores: dict[str, float]
    part: str = ""
    """Name of its segment file without the suffix, if it is a shard or a span's; empty if it has the video's id."""


@dataclass(kw_only=True)
class VideoRecord(TaskRecord):
    """What became of a video, before rules, duplicates and the split have their say.

    `status` is accepted, rejected or failed; or divided, as long as its spans are not joined.
    """

    path: str
    video_id: str = ""
    split: str = ""
    landmarks: str = ""
    """The landmark source."""
    segments: int = 0
    """Number of stored segments; `rows` tells what they are."""
    frames: int = 0
    frames_used: int = 0
    step_seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by build step."""
    bytes: int = 0
    sha256: str = ""
    landmarks_sha256: str = ""
    group: str = ""
    perceptual_hash: str = ""
    """See `lawdnet.data.near_duplicates.encode`; empty if too little moved, or an earlier version built the video."""
    listed: str = ""
    """The group that the list of inputs names."""
    faces: str = ""
    """See `lawdnet.data.faces.encode`; empty unless a build has grouped by faces."""
    rows: list[SegmentRow] = field(default_factory=list)
    features: dict[str, str] = field(default_factory=dict)
    """Stored extractors, with a hash of what their rows depend on."""
    sync: str | None = None
    """Hash of what its sync scores depend on; None if it has none."""
    not_completed: str = ""
    """Why features or sync scores could not be added by the last build that tried; empty if all is there."""
    lacks: str = ""
    borders: list[int] = field(default_factory=list)
    """First tick of every span, and the number of ticks; empty if the video was built as a whole."""
    parts: list[str] = field(default_factory=list)
    """Names without the suffix of the segment files of its spans, or of the shard that it shares with other videos;
    empty if it has a file of its own."""
    division_seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by build step of what was done before it was divided."""

    @property
    def files(self) -> set[str]:
        """Names of its segment files."""
        return {f"{stem}.parquet" for stem in self.parts or [self.video_id]} if self.is_accepted else set()

    @property
    def own_file(self) -> str:
        """Name of the segment file that it has for itself, unless it was divided or lies in a shard."""
        return f"{self.video_id}.parquet"

    @property
    def is_packed(self) -> bool:
        """Whether its segments lie in a shard, which is never changed; see `lawdnet.data.shards`."""
        return bool(self.parts) and not self.borders

    def place(self, shard: str = "", first: int = 0) -> None:
        """Say that its segments lie in a shard from one row group on, or else in a file of its own."""
        self.parts = [shard] if shard else []
        self.rows = [replace(row, part=shard, row_group=first + n) for n, row in enumerate(self.rows)]

    @property
    def is_tried_again(self) -> bool:
        """Whether the next build tries it although its files are as they were."""
        # permissions come back, and so do object stores; a worker may get more memory
        return self.is_failed or self.reason in (RejectReason.UNREADABLE, RejectReason.CRASH)

    @property
    def is_accepted(self) -> bool:
        """Whether the video gave segments."""
        return self.status == "accepted"

    def refuse(self, refusal: Refusal) -> None:
        """A video that was accepted before and could not be completed keeps its segments; a later build tries again."""
        if self.is_accepted:
            self.not_completed = f"{refusal.reason}: {refusal.printable}"
        else:
            super().refuse(refusal)

    def reject(self, refusal: Refusal) -> None:
        """Record that the video counts for nothing, whatever it was before: it has no segments any more."""
        super().refuse(refusal)
        self.video_id, self.sync = "", None
        self.segments = self.frames_used = 0
        self.rows, self.features, self.borders, self.parts = [], {}, [], []

    def lacking(self, marks: Mapping[str, str]) -> list[str]:
        """Extractors whose rows are not stored, or come from other weights or options."""
        return [name for name, mark in marks.items() if self.features.get(name) != mark]

    def brief(self) -> Self:
        """Without the rows of its segments, which need far more memory than all else."""
        return replace(self, rows=[])

    def row(self) -> VideoRow:
        """The row of videos.parquet."""
        row = VideoRow(**{field.name: getattr(self, field.name) for field in fields(VideoRow)})
        if self.is_accepted and (self.lacks or self.not_completed):
            what = f"lacks {self.lacks}" if self.lacks else "could not be completed"
            why = f" ({self.not_completed})" if self.not_completed else ""
            row = replace(row, detail=f"{row.detail}; {what}{why}: the same build, run again, tries again")
        return row

    @classmethod
    def from_fields(cls, content: dict[str, Any]) -> Self:
        """See `TaskRecord.from_fields`."""
        record = super().from_fields(content)
        record.rows = [SegmentRow(**row) for row in content["rows"]]
        return record

    @classmethod
    def upgrade(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Version 1 called the rows `segments`, had a field per build step, and imports named their one input."""
        known = super().upgrade(content)
        steps = {step: known.get(f"seconds_{step}", 0.0) for step in BUILD_STAGES}
        if isinstance(inputs := content["inputs"], dict):  # an import, which kept no rows
            return {**known, "inputs": list(inputs.values()), "rows": [], "step_seconds": steps}
        return {**known, "rows": content["segments"], "step_seconds": steps}


def video_records(root: Location) -> RecordStore[VideoRecord]:
    """The records of the dataset in `root`."""
    return RecordStore(root / BUILD, VideoRecord, (STATE,))
