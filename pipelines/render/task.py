"""What a worker of a render does with a few pairs of one video: the network loads once, the video is prepared once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2

from lawdnet import storage
from lawdnet.landmarks import source_for
from lawdnet.storage import Location, locate
from lawdnet.tasks.inputs import CSV_SUFFIXES, opened
from lawdnet.tasks.task import Job, Task
from lawdnet.training.checkpoint_store import local_folder
from lawdnet.types import Beat
from pipelines.cluster import metrics
from pipelines.render.pairs import PairRecord, RenderPair, pair_records

if TYPE_CHECKING:
    from lawdnet.inference.engine import Engine
    from lawdnet.inference.template import Template

SPEECHES_AT_ONCE = 8
"""Pairs of one video that stay together: a worker prepares it for so many, and others may take the rest."""


@dataclass(frozen=True, kw_only=True)
class RenderJob(Job):
    """What all workers of a render are told."""

    network: str
    """A checkpoint's folder or an old file."""
    landmarks: str
    face: str
    weights_dir: str | None
    device: str


class RenderTask(Task[RenderPair, PairRecord]):
    """A pair in, a video and a record out."""

    item_type = RenderPair
    record_type = PairRecord

    def __init__(self, job: RenderJob, beat: Beat) -> None:
        from lawdnet.inference.engine import Engine

        cv2.setNumThreads(1)  # Ray counts one CPU for this process
        self.job = job
        self.beat = beat
        self.root = locate(job.root)
        self.store = pair_records(self.root)
        self.weights_dir = locate(job.weights_dir) if job.weights_dir else None
        self.template: Template | None = None
        with opened_network(locate(job.network)) as path:
            self.engine: Engine = Engine(path, device=job.device, weights_dir=self.weights_dir, beat=beat)

    @staticmethod
    def batches(items: Sequence[RenderPair], workers: int) -> Iterator[Sequence[RenderPair]]:
        """Pairs of one video, a few at a time, so that all workers have some."""
        at_once = min(SPEECHES_AT_ONCE, -(-len(items) // workers))
        by_video: dict[bytes, list[RenderPair]] = {}
        for pair in items:
            by_video.setdefault(pair.video_source, []).append(pair)
        for pairs in by_video.values():
            for start in range(0, len(pairs), at_once):
                yield pairs[start : start + at_once]

    @staticmethod
    def count(record: PairRecord) -> None:
        """Count a finished pair in the metrics."""
        metrics.count_pair(record)

    def prepare(self, items: Sequence[RenderPair]) -> AbstractContextManager[None]:
        """Open and prepare the video of a batch."""
        return self._prepared(items[0])

    @contextmanager
    def _prepared(self, pair: RenderPair) -> Iterator[None]:
        with opened(pair.video_location, CSV_SUFFIXES, beat=self.beat) as video:
            source = source_for(video, self.job.landmarks, self.weights_dir)
            self.template = self.engine.prepare(video, source, face=self.job.face)
            yield

    def run(self, item: RenderPair, record: PairRecord) -> None:
        """Render one pair with the prepared video."""
        assert self.template is not None
        out = self.root / item.out
        with opened(item.speech_location, beat=self.beat) as speech, storage.atomic(out, beat=self.beat) as temporary:
            video = temporary.with_suffix(".mp4")
            made = self.engine.render(self.template, speech, video)
            video.replace(temporary)
        record.status = "rendered"
        record.frames = made.frames
        record.passed_through = made.passed_through
        record.seconds = round(made.seconds, 3)
        record.result = storage.fingerprint(out)


def opened_network(network: Location) -> AbstractContextManager[Path]:
    """A checkpoint or an old file on this machine."""
    return local_folder(network) if network.is_dir() else storage.local_copy(network)
