"""A span of a long video as an item of work: its segments go to a file of their own."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from lawdnet.data.records import VideoRecord
from lawdnet.data.segments import Sound, read_sound
from lawdnet.data.span_records import SpanRecord, long_video_file, span_key, span_records, when
from lawdnet.data.spans import LongVideo, Span
from lawdnet.data.tally import Tally
from lawdnet.storage import Location
from lawdnet.tasks.records import RecordStore
from lawdnet.types import Beat
from pipelines.build.task import BuildJob, VideoItem, VideoTask


@dataclass(frozen=True, kw_only=True)
class SpanItem(VideoItem):
    """A span to build, or to complete; its key and inputs are those of its video, and its place in it."""

    video_key: str
    video_id: str
    split: str
    number: int
    start: int
    stop: int
    """Its ticks, stop excluded."""

    def record(self) -> SpanRecord:
        """A record that says nothing yet."""
        return SpanRecord(
            path=self.name,
            inputs=self.inputs,
            listed=self.listed,
            video_id=self.video_id,
            split=self.split,
            part=f"{self.video_id}.{self.number:04d}",
            when=when(range(self.start, self.stop)),
        )


def span_items(item: VideoItem, record: VideoRecord) -> list[SpanItem]:
    """The spans of a video that was divided; none of another one."""
    return [
        SpanItem(
            key=span_key(item.key, number),
            name=f"{item.name} {when(range(start, stop))}",
            source=item.source,
            inputs=[*item.inputs, f"{start}-{stop}"],
            listed=item.listed,
            video_key=item.key,
            video_id=record.video_id,
            split=record.split,
            number=number,
            start=start,
            stop=stop,
        )
        for number, (start, stop) in enumerate(pairwise(record.borders))
    ]


def span_store(root: Location) -> RecordStore[VideoRecord]:
    """Where the executor and the task keep the records of spans, which are records of videos to them."""
    return RecordStore(span_records(root).folder, SpanRecord)


class SpanTask(VideoTask):
    """A span in, its segment file and one record out."""

    item_type = SpanItem
    record_type = SpanRecord
    most_copied = 0
    """It is only a part of the video."""

    def __init__(self, job: BuildJob, beat: Beat) -> None:
        super().__init__(job, beat)
        self.store = span_store(self.root)

    @staticmethod
    def count(record: VideoRecord) -> None:
        """Nothing: the video is counted when all its spans are joined."""

    def _build(self, item: VideoItem, path: Path, record: VideoRecord, tally: Tally) -> None:
        assert isinstance(record, SpanRecord)
        span = self._span(item, path)
        try:
            self._write(record.video_id, span.long.video, record, tally, span, record.part)
        finally:
            record.counts = tally.counts

    def _sound(self, item: VideoItem, path: Path) -> Sound:
        span = self._span(item, path)
        return read_sound(span.long.video, span, self.config)

    def _span(self, item: VideoItem, path: Path) -> Span:
        assert isinstance(item, SpanItem)
        long = LongVideo.read(long_video_file(self.root, item.video_key), path)
        return Span(long=long, number=item.number, ticks=range(item.start, item.stop))
