"""What is left to do, with videos and with spans of long ones, for a build that finds the records of an earlier one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property

from lawdnet.data.group_by import column_name, face_distance
from lawdnet.data.records import VideoRecord
from lawdnet.data.span_records import SpanRecord, span_records
from lawdnet.storage import Location
from lawdnet.tasks.inputs import InputFile
from lawdnet.types import RejectReason
from pipelines.build.span import SpanItem, span_items
from pipelines.build.task import VideoItem


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a build does with each input."""

    inputs: Sequence[InputFile]
    records: Mapping[str, VideoRecord]
    """What earlier builds stored, by key; also for inputs that are gone."""
    files: Set[str]
    """Names of the stored segment files."""
    marks: Mapping[str, str]
    """See `feature_marks`."""
    sync_mark: str | None
    """Hash of what sync scores depend on; None if none are asked for."""
    finds_faces: bool
    """Whether a video without a CSV can have landmarks now."""
    group_by: str

    @cached_property
    def items(self) -> list[VideoItem]:
        """All inputs, as the work that they are."""
        return [replace(item, to_complete=self._work(item) == "complete") for item in self._inputs]

    @cached_property
    def _inputs(self) -> list[VideoItem]:
        return [VideoItem.of(file, column_name(self.group_by)) for file in self.inputs]

    @property
    def listed(self) -> dict[str, str]:
        """The group that the list of inputs names, by key."""
        return {item.key: item.listed for item in self._inputs if column_name(self.group_by)}

    @property
    def stored(self) -> dict[str, VideoRecord]:
        """The records of the inputs that need no work, by key."""
        return {item.key: self.records[item.key] for item in self.items if not self._work(item)}

    def spans(self, records: Mapping[str, VideoRecord], root: Location) -> tuple[list[SpanItem], dict[str, SpanRecord]]:
        """The spans of all videos that are divided, and the stored records of those that need no work.

        Args:
            records: of the videos, by key, after those that needed work were built or divided.
            root: folder of the dataset.
        """
        reachable = [item for item in self._inputs if not self._is_unreachable(item)]
        items = [span for item in reachable for span in span_items(item, records[item.key])]
        known = span_records(root).read_many(item.key for item in items)
        left = {item.key: self._left(item, known.get(item.key)) for item in items}
        stored = {key: known[key] for key, work in left.items() if not work}
        return [replace(item, to_complete=left[item.key] == "complete") for item in items], stored

    @cached_property
    def _accepted_sha256(self) -> set[str]:
        """The contents of accepted videos that are as they were."""
        now = {item.key: item.inputs for item in self._inputs}
        return {
            record.sha256
            for key, record in self.records.items()
            if record.is_accepted and now.get(key, record.inputs) == record.inputs
        }

    def _work(self, item: VideoItem) -> str:
        """`build`, `complete` (features, sync scores, or who is in it), or nothing."""
        record = self.records.get(item.key)
        is_divided = record is not None and record.borders and record.inputs == item.inputs
        return "" if is_divided or self._is_unreachable(item) else self._left(item, record)

    def _left(self, item: VideoItem, record: VideoRecord | None) -> str:
        if record is None or record.inputs != item.inputs or record.is_failed:
            return "build"
        if not record.is_accepted:
            return "build" if self._may_be_good_now(record) else ""
        if not record.files <= self.files:
            return "build"
        lacks_faces = bool(face_distance(self.group_by)) and record.segments and not record.faces
        is_short = record.lacking(self.marks) or self.sync_mark not in (None, record.sync) or lacks_faces
        return "complete" if is_short else ""

    def _is_unreachable(self, item: VideoItem) -> bool:
        """Whether a built video cannot be seen now, as on a mount that is away: like one that is gone, it stays."""
        record = self.records.get(item.key)
        is_built = record is not None and record.is_accepted and record.files <= self.files
        return is_built and not item.inputs[0]

    def _may_be_good_now(self, record: VideoRecord) -> bool:
        """Whether a rejected video may be accepted although its files are as they were."""
        if record.reason == RejectReason.DUPLICATE:
            return record.sha256 not in self._accepted_sha256
        if record.reason == RejectReason.NO_LANDMARKS:
            return self.finds_faces
        return record.is_tried_again

    def check_gone(self, root: Location) -> None:
        """Videos that are no longer in the source, or out of reach, stay as they are: nothing can be added to them.

        Raises:
            ValueError: one of them lacks a feature that the dataset is to have, and no earlier build has noted that.
        """
        gone = self.records.keys() - {item.key for item in self.items if not self._is_unreachable(item)}
        records = [self.records[key] for key in gone]
        known = [record for record in records if record.is_accepted and not record.not_completed]
        short = [record.path for record in known if record.lacking(self.marks)]
        if short:
            text = f"{len(short)} videos, {min(short)} the first, lack a feature and are no longer in the source"
            raise ValueError(f"{root}: {text}; put them back, or choose another --out")
