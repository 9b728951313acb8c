"""The stateful workers of the dataset graph: models load once, then videos go through."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import pyarrow as pa

from lawdnet import storage
from lawdnet.audio.base import AudioExtractor, extractor_options, frame_features, make_extractor
from lawdnet.audio.io import load_audio
from lawdnet.data.config import BuildConfig, digest
from lawdnet.data.manifest import SEGMENTS
from lawdnet.data.schema import (
    BUILD_STAGES,
    FEATURES,
    SCORE,
    rewrite_segments,
    table_to_segment,
    to_rows,
    with_columns,
    write_segments,
)
from lawdnet.data.segments import Tally, split_draw, video_id, video_segments
from lawdnet.landmarks.base import LandmarkSource, make_source, resolve_auto, source_options
from lawdnet.landmarks.openface import csv_of
from lawdnet.storage import locate
from lawdnet.tasks.inputs import CSV_SUFFIXES, opened
from lawdnet.tasks.records import EMPTY_ROW, MAX_ATTEMPTS, Attempts, Outcome, read_outcome, write_outcome
from lawdnet.tasks.watchdog import Watchdog
from lawdnet.types import SAMPLES_PER_FRAME, Float32, Rejected, RejectReason, Segment
from lawdnet.video import probe
from pipelines.cluster import metrics
from pipelines.executor import full_disk, is_full_disk

if TYPE_CHECKING:
    from lawdnet.evaluation.sync import SyncScorer

log = logging.getLogger(__name__)

STALL_SECONDS = 300.0
"""A video that does not get on by a single picture or window of sound for this long is given up."""


@dataclass(frozen=True)
class Order:
    """What all workers of a build are told."""

    config: BuildConfig
    root: str
    run: str
    """Name of this run of the build."""
    weights_dir: str | None = None
    sync: str | None = None
    """File or run of the sync network that scores segments."""
    sync_mark: str | None = None
    """What its scores depend on."""
    stall_seconds: float = STALL_SECONDS


def extractors_of(config: BuildConfig, weights_dir: str | None) -> dict[str, AudioExtractor]:
    """The extractors of a build; their networks load when they are first needed.

    Raises:
        ValueError: weights, a package or an option that there is not.
    """
    return {
        name: make_extractor(name, **_options(config, name, extractor_options(name), weights_dir))
        for name in config.features
    }


def source_of(config: BuildConfig, name: str, weights_dir: str | None) -> LandmarkSource:
    """A landmark source with the build's options.

    Raises:
        ValueError: weights, a package or an option that there is not.
    """
    return make_source(name, **_options(config, name, source_options(name), weights_dir))


def feature_marks(config: BuildConfig, extractors: Mapping[str, AudioExtractor]) -> dict[str, str]:
    """What each extractor's rows depend on: its weights and options."""
    return {name: digest([made.model_sha256, dict(config.options.get(name, {}))]) for name, made in extractors.items()}


def lacking(outcome: Outcome, marks: Mapping[str, str]) -> list[str]:
    """Extractors whose rows an outcome does not have, or has from other weights or options."""
    return [name for name, mark in marks.items() if outcome.features.get(name) != mark]


def _options(config: BuildConfig, name: str, known: Mapping[str, Any], weights_dir: str | None) -> dict[str, Any]:
    shared = {"weights_dir": Path(weights_dir) if weights_dir else None, "tolerance": config.landmark_tolerance}
    return {option: value for option, value in shared.items() if option in known} | dict(config.options.get(name, {}))


class VideoBuilder:
    """One video in, its segment file and one row out; whatever happens, there is a row."""

    def __init__(self, order: Order) -> None:
        cv2.setNumThreads(1)  # Ray counts one CPU for this actor
        self.order, self.config, self.root = order, order.config, locate(order.root)
        self.extractors = extractors_of(order.config, order.weights_dir)
        self.marks = feature_marks(order.config, self.extractors)
        self.scorer = _sync_scorer(order.sync) if order.sync else None
        self.attempts = Attempts(self.root, order.run)
        self.watchdog = Watchdog(order.stall_seconds)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Builds or completes one item and stores its outcome, so that the next build skips it.

        A disk that is full is no fault of the item: it has no outcome then, and `stop` says why all should stop.
        """
        try:
            return {"key": item["key"], "row": self._row(item), "stop": ""}
        except OSError as error:
            return {"key": item["key"], "row": "", "stop": full_disk(error, self.root)}

    def _row(self, item: dict[str, Any]) -> str:
        key = item["key"]
        before, tally = self.attempts.begin(key), Tally(self.watchdog.beat)
        if before["count"] >= MAX_ATTEMPTS:
            outcome = self._quarantined(item, before)
        else:
            with self.watchdog.watching(lambda: self._stalled(key)):
                outcome = self._outcome(item, tally)
        write_outcome(self.root, key, outcome)
        self.attempts.end(key)
        metrics.built(outcome.row, tally)
        return json.dumps(outcome.row)

    def _stalled(self, key: str) -> None:
        detail = f"no picture and no sound got done for {self.order.stall_seconds:.0f} s"
        self.attempts.give_up(key, RejectReason.TIMEOUT, detail)

    def _quarantined(self, item: dict[str, Any], before: Mapping[str, Any]) -> Outcome:
        detail = f"took its worker process with it {MAX_ATTEMPTS} times (out of memory, or a crash in a codec)"
        row = {**EMPTY_ROW, "path": item["path"], "status": "rejected"}
        row |= {"reason": str(before.get("reason", RejectReason.CRASH)), "detail": before.get("detail", detail)}
        return Outcome(list(item["inputs"]), row)

    def _outcome(self, item: dict[str, Any], tally: Tally) -> Outcome:
        began = time.perf_counter()
        outcome = Outcome(list(item["inputs"]), {**EMPTY_ROW, "path": item["path"]})
        row = outcome.row
        try:
            found = read_outcome(self.root, item["key"]) if item["to_complete"] else None
            with self._opened(item, tally) as path:
                if found:
                    outcome, row = found, found.row
                    self._complete(path, outcome, tally)
                else:
                    self._build(path, outcome, tally)
        except Rejected as error:
            _refuse(outcome, "rejected", error.reason, error.detail)
        except Exception as error:  # an unforeseen input must not take the others with it
            if is_full_disk(error):
                raise
            log.exception("%s: failed", item["path"])
            _refuse(outcome, "failed", RejectReason.INTERNAL_ERROR, f"{type(error).__name__}: {error}")
        row["detail"] = row["detail"].encode("utf8", "backslashreplace").decode("utf8")  # it may name a file
        row["frames"] = row["frames"] or tally.frames
        row["seconds"] = round(row["seconds"] + time.perf_counter() - began, 3)
        for stage in BUILD_STAGES:
            row[f"seconds_{stage}"] = round(row[f"seconds_{stage}"] + tally.seconds[stage], 3)
        return outcome

    @contextmanager
    def _opened(self, item: dict[str, Any], tally: Tally) -> Iterator[Path]:
        """The input as a file of this machine, with its CSV beside it.

        Raises:
            Rejected: UNREADABLE.
        """
        place = locate(os.fsdecode(item["source"]))
        with ExitStack() as stack:
            with tally.timed("open"):
                path = stack.enter_context(opened(place, CSV_SUFFIXES, beat=self.watchdog.beat))
            yield path

    def _build(self, path: Path, outcome: Outcome, tally: Tally) -> None:
        row, csv = outcome.row, csv_of(path)
        with tally.timed("open"):
            row |= {"bytes": path.stat().st_size, "sha256": storage.sha256(path, beat=self.watchdog.beat)}
            row["landmarks_sha256"] = storage.sha256(csv) if csv.is_file() else ""
            row["split"] = "val" if split_draw(row["sha256"]) < self.config.val_fraction else "train"
            video = probe(path)
            source = self._source(path)
            row["landmarks"] = source.name
            if source.reads_pictures:
                row["landmarks_sha256"] = source.model_sha256 or ""
        # twins of one name may have other landmarks, and need a file each until one of them is chosen
        name = video_id(path, digest([row["sha256"], row["landmarks_sha256"]]))
        segments = video_segments(
            video,
            name=name,
            split=row["split"],
            source=source,
            extractors=self.extractors,
            config=self.config,
            tally=tally,
            scorer=self._score if self.scorer else None,
        )
        began, elsewhere = time.perf_counter(), sum(tally.seconds.values())
        with storage.atomic(self.root / SEGMENTS / f"{name}.parquet", beat=self.watchdog.beat) as temporary:
            write_segments(temporary, _noted(segments, outcome))
        tally.seconds["write"] += time.perf_counter() - began - (sum(tally.seconds.values()) - elsewhere)
        row |= {"video_id": name, "status": "accepted", "detail": tally.describe()}
        row |= {"segments": tally.segments, "frames_used": tally.used}
        self._note_models(outcome)

    def _complete(self, path: Path, outcome: Outcome, tally: Tally) -> None:
        """Adds what the stored segments lack: features and sync scores. No picture of the video is decoded."""
        missing = {name: self.extractors[name] for name in lacking(outcome, self.marks)}
        with tally.timed("sound"):
            num_frames = probe(path).num_frames  # the row counts what was decoded, which may be one less
            wave = load_audio(path, num_frames=num_frames)
            features = {name: frame_features(made, wave, num_frames, beat=tally.beat) for name, made in missing.items()}
        rows = iter(outcome.segments)

        def completed(table: pa.Table) -> pa.Table:
            self.watchdog.beat()
            row = next(rows)
            span = slice(row["start_frame"], row["start_frame"] + row["num_frames"])
            table = with_columns(table, {FEATURES + name: to_rows(rows_TC[span]) for name, rows_TC in features.items()})
            if not self.scorer or outcome.sync == self.order.sync_mark:
                return table
            with tally.timed("score"):
                sound = wave[span.start * SAMPLES_PER_FRAME : span.stop * SAMPLES_PER_FRAME]
                scores = self._score(table_to_segment(table), sound)
            row["scores"] |= scores
            cells = {SCORE + name: pa.array([value], pa.float32()) for name, value in scores.items()}
            return with_columns(table, cells)

        place = self.root / SEGMENTS / f"{outcome.row['video_id']}.parquet"
        beat = self.watchdog.beat
        with storage.local_copy(place, beat=beat) as old, storage.atomic(place, beat=beat) as temporary:
            rewrite_segments(old, temporary, completed)
        self._note_models(outcome)

    def _note_models(self, outcome: Outcome) -> None:
        outcome.features |= self.marks
        outcome.sync = self.order.sync_mark or outcome.sync

    def _score(self, segment: Segment, wave: Float32) -> Mapping[str, float]:
        assert self.scorer
        self.watchdog.beat()
        return self.scorer(segment.frames_jpeg, segment.landmarks_T68x2, segment.features, wave)

    def _source(self, path: Path) -> LandmarkSource:
        name = self.config.landmarks
        weights_dir = Path(self.order.weights_dir) if self.order.weights_dir else None
        return self._made_source(resolve_auto(path, weights_dir) if name == "auto" else name)

    @cache  # noqa: B019 an actor lives as long as its process
    def _made_source(self, name: str) -> LandmarkSource:
        return source_of(self.config, name, self.order.weights_dir)


def _refuse(outcome: Outcome, status: str, reason: RejectReason, detail: str) -> None:
    """Also of what was accepted before and could not be completed: it has no segments any more."""
    outcome.row |= {"status": status, "reason": str(reason), "detail": detail}
    outcome.row |= {"video_id": "", "segments": 0, "frames_used": 0}
    outcome.segments, outcome.features, outcome.sync = [], {}, None


def _sync_scorer(path: str) -> SyncScorer:
    from lawdnet.evaluation.sync import SyncScorer  # brings torch, which builds without it do not need

    return SyncScorer(Path(path))


def _noted(segments: Iterator[Segment], outcome: Outcome) -> Iterator[Segment]:
    """Passes segments on, and keeps what the index says of them."""
    for group, segment in enumerate(segments):
        names = ("segment_id", "index", "track", "start_frame", "num_frames")
        outcome.segments.append({name: getattr(segment, name) for name in names})
        outcome.segments[-1] |= {"row_group": group, "scores": dict(segment.scores)}
        yield segment
