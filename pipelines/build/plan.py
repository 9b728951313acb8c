"""What is left to do, with videos and with spans of long ones, for a build that finds the records of an earlier one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import overload

import numpy as np

from lawdnet.data.group_by import column_name, face_distance
from lawdnet.data.records import VideoRecord, video_records
from lawdnet.data.span_records import SpanRecord, span_records
from lawdnet.storage import Location
from lawdnet.tasks.inputs import InputList
from lawdnet.tasks.task import OnProgress, Progress
from lawdnet.types import RejectReason
from pipelines.build.span import SpanItem, span_items
from pipelines.build.task import VideoItem

READY, BUILD, COMPLETE = range(3)
"""What is to be done with an input; to complete adds features, sync scores, or who is in it."""


class Items(Sequence[VideoItem]):
    """The inputs that need work, in order; each becomes an object when it is needed.

    Args:
        work: READY, BUILD or COMPLETE of each input.
        column: of the list of inputs, which names groups; may be empty.
    """

    def __init__(self, inputs: InputList, work: np.ndarray, column: str) -> None:
        self._inputs = inputs
        self._work = work
        self._column = column
        self._numbers = np.flatnonzero(work != READY)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> VideoItem: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[VideoItem]: ...

    def __getitem__(self, place: int | slice) -> VideoItem | Sequence[VideoItem]:
        if isinstance(place, slice):
            return self.at(self._numbers[place].tolist())
        return self.at([int(self._numbers[place])])[0]

    def __iter__(self) -> Iterator[VideoItem]:
        for start in range(0, len(self), 4096):
            yield from self[start : start + 4096]

    def at(self, numbers: Sequence[int]) -> list[VideoItem]:
        """The inputs with these numbers, whether they need work or not."""
        found = zip(self._inputs.at(numbers), self._work[np.asarray(numbers, np.int64)], strict=True)
        return [replace(VideoItem.of(file, self._column), to_complete=work == COMPLETE) for file, work in found]


@dataclass
class Work:
    """What a build has to do."""

    items: Items
    ready: int = 0
    """Number of inputs that need no work."""
    divided: dict[str, VideoRecord] = field(default_factory=dict)
    """The records of long videos that are divided already and in reach, by key."""
    has_sync: bool = False
    """Whether a video has sync scores."""
    lacking: list[str] = field(default_factory=list)
    """Paths of videos that lack a feature and cannot be seen now, unless an earlier build has noted that."""

    def check_gone(self, root: Location) -> None:
        """Videos that are no longer in the source, or out of reach, stay as they are: nothing can be added to them.

        Raises:
            ValueError: one of them lacks a feature that the dataset is to have.
        """
        if short := self.lacking:
            text = f"{len(short)} videos, {min(short)} the first, lack a feature and are no longer in the source"
            raise ValueError(f"{root}: {text}; put them back, or choose another --out")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a build does with each input."""

    inputs: InputList
    files: Set[str]
    """Names of the stored segment files."""
    marks: Mapping[str, str]
    """See `feature_marks`."""
    sync_mark: str | None
    """Hash of what sync scores depend on; None if none are asked for."""
    finds_faces: bool
    """Whether a video without a CSV can have landmarks now."""
    group_by: str

    @property
    def listed(self) -> dict[str, str]:
        """The group that the list of inputs names, by key."""
        column = column_name(self.group_by)
        return {file.key: file.columns.get(column, "") for file in self.inputs} if column else {}

    def work(self, root: Location, on_progress: OnProgress[VideoRecord] | None = None) -> Work:
        """Compare the inputs with the records of earlier builds, some at a time.

        Args:
            root: folder of the dataset.
            on_progress: called with the record of every input that needs no work.
        """
        todo = np.full(len(self.inputs), BUILD, np.int8)
        work = Work(Items(self.inputs, todo, column_name(self.group_by)))
        accepted: list[bytes] = []
        duplicates: list[tuple[int, VideoRecord]] = []

        def finish(number: int, record: VideoRecord, left: int) -> None:
            todo[number] = left
            work.ready += left == READY
            if on_progress and left == READY:
                on_progress(Progress(record, True, work.ready, len(self.inputs)))

        for piece in video_records(root).pieces():
            for number, item, record in self._matched(piece, work.items):
                work.has_sync |= bool(record.sync)
                is_gone = item is None or self._is_unreachable(item, record)
                if is_gone and record.is_accepted and not record.not_completed and record.lacking(self.marks):
                    work.lacking.append(record.path)
                if record.is_accepted and (item is None or item.inputs == record.inputs):
                    accepted.append(bytes.fromhex(record.sha256))
                if item is None:
                    continue
                if is_gone or (record.borders and record.inputs == item.inputs):
                    finish(number, record, READY)
                    work.divided |= {} if is_gone else {item.key: record}
                elif record.reason == RejectReason.DUPLICATE and record.inputs == item.inputs:
                    duplicates.append((number, record))
                else:
                    finish(number, record, self._left(item, record))
        firsts = {bytes.fromhex(record.sha256) for _, record in duplicates}.intersection(accepted)
        for number, record in duplicates:
            finish(number, record, READY if bytes.fromhex(record.sha256) in firsts else BUILD)
        work.items = Items(self.inputs, todo, column_name(self.group_by))
        return work

    def _matched(
        self, records: Mapping[str, VideoRecord], items: Items
    ) -> Iterator[tuple[int, VideoItem | None, VideoRecord]]:
        """Records with the number of their input and the input itself, which may be gone."""
        numbers = self.inputs.numbers(list(records))
        found = iter(items.at([number for number in numbers if number is not None]))
        for number, record in zip(numbers, records.values(), strict=True):
            yield (-1, None, record) if number is None else (number, next(found), record)

    def spans(
        self, divided: Mapping[str, VideoRecord], items: Items, root: Location
    ) -> tuple[list[SpanItem], dict[str, SpanRecord]]:
        """The spans of all videos that are divided, and the stored records of those that need no work.

        Args:
            divided: the records of these videos, by key.
            items: see `Work`.
            root: folder of the dataset.
        """
        numbers = sorted(number for number in self.inputs.numbers(list(divided)) if number is not None)
        spans = [span for item in items.at(numbers) for span in span_items(item, divided[item.key])]
        known = span_records(root).read_many(span.key for span in spans)
        left = {span.key: self._left(span, known.get(span.key)) for span in spans}
        stored = {key: known[key] for key, work in left.items() if work == READY}
        return [replace(span, to_complete=left[span.key] == COMPLETE) for span in spans], stored

    def _left(self, item: VideoItem, record: VideoRecord | None) -> int:
        if record is None or record.inputs != item.inputs or record.is_failed:
            return BUILD
        if not record.is_accepted:
            return BUILD if self._may_be_good_now(record) else READY
        if not record.files <= self.files:
            return BUILD
        lacks_faces = bool(face_distance(self.group_by)) and record.segments and not record.faces
        is_short = record.lacking(self.marks) or self.sync_mark not in (None, record.sync) or lacks_faces
        return COMPLETE if is_short else READY

    def _is_unreachable(self, item: VideoItem, record: VideoRecord) -> bool:
        """Whether a built video cannot be seen now, as on a mount that is away: like one that is gone, it stays."""
        return record.is_accepted and record.files <= self.files and not item.inputs[0]

    def _may_be_good_now(self, record: VideoRecord) -> bool:
        """Whether a rejected video may be accepted although its files are as they were."""
        return self.finds_faces if record.reason == RejectReason.NO_LANDMARKS else record.is_tried_again
