"""Workers with weak points, and one that tells who it is, in a module that Ray's workers can import."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import ray

from lawdnet.data.records import VideoRecord
from lawdnet.data.shards import ShardRecord
from lawdnet.types import Beat
from pipelines.build.pack import ShardItem, ShardTask
from pipelines.build.task import BuildJob, VideoItem, VideoTask
from pipelines.executor import map_items
from pipelines.render.pairs import PairRecord, RenderPair
from pipelines.render.task import RenderTask


class FragileVideoTask(VideoTask):
    """Dies of one video, hangs at another, and once, by chance, dies of a third; a fourth finds the disk full."""

    def run(self, item: VideoItem, record: VideoRecord) -> None:
        once = Path(self.job.root) / ".build" / "once"
        if item.name == "poison.mp4" or (item.name == "c.mp4" and not once.exists()):
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if item.name == "hangs.mp4":
            time.sleep(3600)
        if item.name == "full.mp4":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/the/disk")
        super().run(item, record)


class FragileRenderTask(RenderTask):
    """Dies of one video and of one pair, hangs at another pair, and once, by chance, dies of a third."""

    def prepare(self, items: Sequence[RenderPair]) -> AbstractContextManager[None]:
        return self._maybe_prepared(items)

    @contextmanager
    def _maybe_prepared(self, items: Sequence[RenderPair]) -> Iterator[None]:
        if items[0].video == "deadly.mp4":
            self._die("prepared")
        with super().prepare(items):
            yield

    def run(self, item: RenderPair, record: PairRecord) -> None:
        if item.speech == "poison.wav":
            self._die(item.key)
        if item.speech == "chance.wav" and not (Path(self.job.root) / "died" / item.key).exists():
            self._die(item.key)
        if item.speech == "hangs.wav":
            time.sleep(3600)
        super().run(item, record)

    def _die(self, name: str) -> None:
        count = Path(self.job.root) / "died" / name
        count.parent.mkdir(exist_ok=True)
        with count.open("a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)


class FragileShardTask(ShardTask):
    """Dies once when its shard is written, and half of the records point at it."""

    def run(self, item: ShardItem, record: ShardRecord) -> None:
        died, written = self.root / "died", 0

        def beat() -> None:
            nonlocal written
            written += (self.root / "segments" / item.name).exists()
            if written == 3 and not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        self.beat = beat
        super().run(item, record)


class TellingVideoTask(VideoTask):
    """Leaves the id of its worker process in the dataset's folder."""

    def __init__(self, job: BuildJob, beat: Beat) -> None:
        super().__init__(job, beat)
        names = Path(job.root) / "workers"
        names.mkdir(parents=True, exist_ok=True)
        (names / ray.get_runtime_context().get_worker_id()).touch()


def telling(task: type, *rest: Any, **options: Any) -> Generator[tuple[str, Any], None, None]:
    """`map_items` with workers that tell who they are."""
    return map_items(TellingVideoTask, *rest, **options)


FRAGILE: dict[type, type] = {VideoTask: FragileVideoTask, RenderTask: FragileRenderTask}


def fragile(task: type, *rest: Any, **options: Any) -> Generator[tuple[str, Any], None, None]:
    """`map_items` with the fragile kind of a task."""
    return map_items(FRAGILE[task], *rest, **options)
