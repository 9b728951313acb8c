"""What a worker of a build does with a video: networks load once, then videos become segments."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import cv2
import pyarrow as pa

from lawdnet import storage
from lawdnet.audio.base import AudioExtractor, extractor_options, frame_features, make_extractor
from lawdnet.audio.parts import hear
from lawdnet.audio.silero import Silero
from lawdnet.data.config import SILERO, BuildConfig, digest
from lawdnet.data.faces import encode, sample_faces
from lawdnet.data.group_by import face_distance, group_names
from lawdnet.data.manifest import SEGMENTS
from lawdnet.data.records import SegmentRow, VideoRecord, video_records
from lawdnet.data.schema import (
    FEATURES,
    SCORE,
    rewrite_segments,
    table_to_segment,
    to_rows,
    with_columns,
    write_segments,
)
from lawdnet.data.segments import Sound, check_heard, read_sound, video_id, video_segments
from lawdnet.data.span_records import long_video_file
from lawdnet.data.spans import LongVideo, Span, find_borders, is_long
from lawdnet.data.split import split_draw
from lawdnet.data.tally import Tally
from lawdnet.evaluation.face_embedding import FaceEmbedder
from lawdnet.landmarks.base import LandmarkSource, choose_source, make_source, source_options
from lawdnet.landmarks.openface import csv_of
from lawdnet.networks import HasNetworks, Network
from lawdnet.ranges import BLOCK_BYTES, BLOCKS
from lawdnet.storage import Location, locate
from lawdnet.tasks.batches import even_batches
from lawdnet.tasks.inputs import CSV_SUFFIXES, InputFile, opened
from lawdnet.tasks.task import Job, Task
from lawdnet.types import Beat, Float32, Segment, Video
from lawdnet.video import probe
from pipelines.build.networks import RemoteNetworks
from pipelines.cluster import metrics

if TYPE_CHECKING:
    from lawdnet.evaluation.sync import SyncScorer

T = TypeVar("T")

SYNC = "sync"
"""Name of the network that scores segments."""


@dataclass(frozen=True)
class VideoItem:
    """A video to build, or to complete."""

    key: str
    name: str
    """Its path below the source."""
    source: bytes
    """The whole path or URI."""
    inputs: list[str]
    """Fingerprints of the video and of its CSV."""
    to_complete: bool = False
    """Whether the stored segments stay, and only features or sync scores are added to them."""
    listed: str = ""
    """The group that the list of inputs names."""

    @classmethod
    def of(cls, file: InputFile, column: str = "") -> VideoItem:
        """A video to build, whose group stands in a column of the list of inputs."""
        inputs = [file.fingerprint, file.csv_fingerprint]
        return cls(file.key, file.path, file.source, inputs, listed=file.columns.get(column, ""))

    def record(self) -> VideoRecord:
        """A record that says nothing yet."""
        return VideoRecord(path=self.name, inputs=self.inputs, listed=self.listed)


@dataclass(frozen=True, kw_only=True)
class BuildJob(Job):
    """What all workers of a build are told."""

    config: BuildConfig
    weights_dir: str | None = None
    sync: str | None = None
    """File or run of the sync network that scores segments."""
    sync_mark: str | None = None
    """Hash of what its scores depend on."""
    networks: RemoteNetworks | None = None
    """Where the networks are; None computes them in the worker itself."""


def extractors_of(config: BuildConfig, weights_dir: str | None) -> dict[str, AudioExtractor]:
    """The extractors of a build; their networks load when they are first needed.

    Raises:
        ValueError: weights, a package or an option is missing.
    """
    return {
        name: make_extractor(name, **_options(config, name, extractor_options(name), weights_dir))
        for name in config.features
    }


def source_of(config: BuildConfig, name: str, weights_dir: str | None) -> LandmarkSource:
    """A landmark source with the build's options.

    Raises:
        ValueError: weights, a package or an option is missing.
    """
    return make_source(name, **_options(config, name, source_options(name), weights_dir))


def networks_of(job: BuildJob) -> dict[str, Network]:
    """The networks of a build that a GPU is good for; they load when they are first needed.

    Raises:
        ValueError: weights, a package or an option is missing.
    """
    config, place = job.config, job.weights_dir
    made: list[object] = [*extractors_of(config, place).values()]
    if config.landmarks != "auto":  # which means CSVs, and a source that is made for CPUs
        made.append(source_of(config, config.landmarks, place))
    found = {
        f"{one.name}/{name}": network
        for one in made
        if isinstance(one, HasNetworks)
        for name, network in one.networks.items()
    }
    if job.sync:
        scorer = cache(partial(_sync_scorer, job.sync))
        found[SYNC] = Network(lambda *segment: scorer()(*segment))
    return found


def feature_marks(config: BuildConfig, extractors: Mapping[str, AudioExtractor]) -> dict[str, str]:
    """For each extractor, a hash of what its rows depend on: its weights and options."""
    return {name: digest([made.model_sha256, dict(config.options.get(name, {}))]) for name, made in extractors.items()}


def weights_place(weights_dir: str | None) -> Location | None:
    return locate(weights_dir) if weights_dir else None


def _options(config: BuildConfig, name: str, known: Mapping[str, Any], weights_dir: str | None) -> dict[str, Any]:
    shared = {"weights_dir": weights_place(weights_dir), "tolerance": config.landmark_tolerance}
    return {option: value for option, value in shared.items() if option in known} | dict(config.options.get(name, {}))


class VideoTask(Task[VideoItem, VideoRecord]):
    """One video in, its segment file and one record out."""

    item_type: ClassVar[type[VideoItem]] = VideoItem
    most_copied = BLOCKS * BLOCK_BYTES
    """A remote video of more bytes is read in parts: the disk may not hold it."""
    record_type: ClassVar[type[VideoRecord]] = VideoRecord

    def __init__(self, job: BuildJob, beat: Beat) -> None:
        cv2.setNumThreads(1)  # Ray counts one CPU for this process
        self.job = job
        self.beat = beat
        self.config = job.config
        self.root = locate(job.root)
        self.store = video_records(self.root)
        self.extractors = {
            name: self._connected(made) for name, made in extractors_of(job.config, job.weights_dir).items()
        }
        self.marks = feature_marks(job.config, self.extractors)
        self.scorer = self._scorer(job.sync) if job.sync else None
        place = weights_place(job.weights_dir)
        self.speech = Silero(place) if job.config.speech == SILERO else None
        self.embedder = FaceEmbedder.find(place) if face_distance(job.config.group_by) else None

    @staticmethod
    def count(record: VideoRecord) -> None:
        """Count a finished video in the metrics; one that was divided is finished with its spans."""
        if not record.borders:
            metrics.count_video(record)

    @staticmethod
    def batches(items: Sequence[VideoItem], workers: int) -> Iterator[Sequence[VideoItem]]:
        """One video at a time, or some short ones if there are very many."""
        yield from even_batches(items, [storage.bytes_of(item.inputs[0]) for item in items], workers)

    def begin(self, item: VideoItem) -> VideoRecord:
        """The stored record where segments are only completed."""
        stored = self.store.read(item.key) if item.to_complete else None
        return stored or item.record()

    def run(self, item: VideoItem, record: VideoRecord) -> None:
        """Build the video, or complete it if it is built."""
        began = time.perf_counter()
        if self.job.networks:
            self.job.networks.video = item.key
        tally = Tally(self.beat)
        work = self._complete if record.is_accepted else self._build
        try:
            with self._opened(item, tally) as path:
                work(item, path, record, tally)
        finally:
            record.frames = record.frames or tally.frames
            record.seconds = round(record.seconds + time.perf_counter() - began, 3)
            for step, seconds in tally.seconds.items():
                record.step_seconds[step] = round(record.step_seconds.get(step, 0.0) + seconds, 3)
            metrics.count_build_work(tally, is_accepted=record.is_accepted)

    @contextmanager
    def _opened(self, item: VideoItem, tally: Tally) -> Iterator[Path]:
        """The input as a local file, with its CSV beside it.

        Raises:
            Rejected: UNREADABLE.
        """
        with ExitStack() as stack:
            with tally.timed("open"):
                location = locate(os.fsdecode(item.source))
                path = stack.enter_context(opened(location, CSV_SUFFIXES, most=self.most_copied, beat=self.beat))
            yield path

    def _build(self, item: VideoItem, path: Path, record: VideoRecord, tally: Tally) -> None:
        csv = csv_of(path)
        with tally.timed("open"):
            record.bytes = path.stat().st_size
            record.sha256 = storage.sha256(path, beat=self.beat)
            record.landmarks_sha256 = storage.sha256(csv) if csv.is_file() else ""
            group = group_names([record.path], self.config.group_by, [record.listed])[0]
            record.split = "val" if split_draw(group or record.sha256) < self.config.val_fraction else "train"
            video = probe(path)
            source = self._source(path)
            record.landmarks = source.name
            if source.reads_frames:
                record.landmarks_sha256 = source.model_sha256 or ""
        # duplicates of one name may have other landmarks, and need a file each until one of them is chosen
        name = video_id(path, digest([record.sha256, record.landmarks_sha256]))
        if is_long(video, self.config.span_ticks):
            self._divide(item, video, record, tally)
            record.video_id = name
        else:
            self._write(name, video, record, tally)

    def _divide(self, item: VideoItem, video: Video, record: VideoRecord, tally: Tally) -> None:
        """Leave a long video to the tasks of its spans, and store what they need and is found out once."""
        with tally.timed("sound"):
            heard = hear(video.path, num_frames=video.num_frames, beat=self.beat)
            check_heard(heard.frames, heard.missing, self.config)
        with tally.timed("crop"):
            record.borders = find_borders(video, self.config.span_ticks, self.config.shot_threshold, self.beat)
        with tally.timed("write"):
            LongVideo.of(video, heard).write(long_video_file(self.root, item.key))
        record.status = "divided"
        record.frames = video.num_frames
        record.division_seconds = {step: round(seconds, 3) for step, seconds in tally.seconds.items()}

    def _write(
        self, name: str, video: Video, record: VideoRecord, tally: Tally, span: Span | None = None, part: str = ""
    ) -> None:
        """Write the segments of a video, or of a span to its `part`, and say so in the record."""
        segments = video_segments(
            video,
            name=name,
            split=record.split,
            source=self._source(video.path),
            extractors=self.extractors,
            config=self.config,
            tally=tally,
            scorer=self._score if self.scorer else None,
            speech=partial(self.speech, beat=self.beat) if self.speech else None,
            span=span,
        )
        rows: list[SegmentRow] = []
        began = time.perf_counter()
        elsewhere = sum(tally.seconds.values())
        with storage.atomic(self.root / SEGMENTS / f"{part or name}.parquet", beat=self.beat) as temporary:
            write_segments(temporary, _noted(segments, rows, part))
        tally.seconds["write"] += time.perf_counter() - began - (sum(tally.seconds.values()) - elsewhere)
        record.video_id = name
        record.status = "accepted"
        record.detail = tally.describe()
        record.segments = tally.segments
        record.frames_used = tally.used
        record.rows = rows
        record.perceptual_hash = tally.perceptual_hash
        self._note_models(record)

    def _complete(self, item: VideoItem, path: Path, record: VideoRecord, tally: Tally) -> None:
        """Add what the stored segments lack. No frame of the video is decoded."""
        if record.rows and (record.lacking(self.marks) or (self.scorer and record.sync != self.job.sync_mark)):
            self._rewrite(item, path, record, tally)
        record.not_completed = ""
        self._note_models(record)

    def _sound(self, item: VideoItem, path: Path) -> Sound:
        """The audio that the features of the item are computed from."""
        return read_sound(probe(path), None, self.config)  # the record counts what was decoded, maybe one frame less

    def _rewrite(self, item: VideoItem, path: Path, record: VideoRecord, tally: Tally) -> None:
        """Add features and sync scores to the stored segments."""
        missing = {name: self.extractors[name] for name in record.lacking(self.marks)}
        with tally.timed("sound"):
            sound = self._sound(item, path)
            features = {
                name: frame_features(made, sound.samples, len(sound.ticks), beat=tally.beat)
                for name, made in missing.items()
            }
        rows = iter(record.rows)
        scored: list[Mapping[str, float]] = []

        def completed(table: pa.Table) -> pa.Table:
            self.beat()
            row = next(rows)
            ticks = range(row.start_frame, row.start_frame + row.num_frames)
            said = {FEATURES + name: to_rows(rows_TC[sound.slice(ticks)]) for name, rows_TC in features.items()}
            table = with_columns(table, said)
            if not self.scorer or record.sync == self.job.sync_mark:
                return table
            with tally.timed("score"):
                scores = self._score(table_to_segment(table), sound.of(ticks))
            scored.append(scores)
            cells = {SCORE + name: pa.array([value], pa.float32()) for name, value in scores.items()}
            return with_columns(table, cells)

        (name,) = record.files
        file, groups = self.root / SEGMENTS / name, [row.row_group for row in record.rows]
        with storage.atomic(self.root / SEGMENTS / record.own_file, beat=self.beat) as temporary:
            rewrite_segments(file, temporary, completed, groups)
        record.place()
        for row, scores in zip(record.rows, scored, strict=False):  # none, or one for each row
            row.scores.update(scores)

    def _note_models(self, record: VideoRecord) -> None:
        record.features |= self.marks
        record.sync = self.job.sync_mark or record.sync
        if self.embedder and record.rows and not record.faces:
            (name,) = record.files
            file = self.root / SEGMENTS / name
            record.faces = encode(self.embedder.person(*sample) for sample in sample_faces(file, record.rows))

    def _score(self, segment: Segment, audio_S: Float32) -> Mapping[str, float]:
        assert self.scorer
        self.beat()
        return self.scorer(segment.frames_jpeg, segment.landmarks_T68x2, segment.features, audio_S)

    def _source(self, path: Path) -> LandmarkSource:
        return choose_source(path, self.config.landmarks, self._made_source)

    @cache  # noqa: B019 a worker lives as long as its process
    def _made_source(self, name: str) -> LandmarkSource:
        return self._connected(source_of(self.config, name, self.job.weights_dir))

    def _connected(self, made: T) -> T:
        """A source or an extractor, whose networks are wherever the job says."""
        return self.job.networks.connect(made, self.beat) if self.job.networks else made

    def _scorer(self, path: str) -> Callable[..., Mapping[str, float]]:
        networks = self.job.networks
        return partial(networks.compute, self.beat, SYNC) if networks else _sync_scorer(path)


def _sync_scorer(path: str) -> SyncScorer:
    from lawdnet.evaluation.sync import SyncScorer  # brings torch, which builds without it do not need

    return SyncScorer(Path(path))


def _noted(segments: Iterator[Segment], rows: list[SegmentRow], part: str) -> Iterator[Segment]:
    """Pass segments on, and keep what the index says of them."""
    for group, segment in enumerate(segments):
        rows.append(
            SegmentRow(
                segment_id=segment.segment_id,
                index=segment.index,
                track=segment.track,
                start_frame=segment.start_frame,
                num_frames=segment.num_frames,
                row_group=group,
                scores=dict(segment.scores),
                part=part,
            )
        )
        yield segment
