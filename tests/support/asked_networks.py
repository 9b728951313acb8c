"""A landmark source with a small network that can go wrong, in a module that Ray's workers can import."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lawdnet.landmarks.base import BATCH, SOURCES, Frames, in_batches
from lawdnet.networks import Network
from lawdnet.types import Beat, Face, Float32, UInt8, Video
from pipelines.build.task import BuildJob, VideoTask, networks_of

RAISES, HANGS, DIES = 96, 112, 144
"""Widths of frames at which the network goes wrong; the good ones are 128 px wide."""


class AskedFaces:
    """Finds one face in each frame, whose place depends on how bright the frame is.

    Args:
        points: .npy file with 68×2 points.
        folder: where each process that computes leaves its id.
        dies_at: the call, counted over all processes, at which the process is killed.
    """

    name = "asked"
    reads_frames = True
    model_sha256: str | None = None

    def __init__(self, *, points: str, folder: str, dies_at: int = 0) -> None:
        self.points_68x2, self.folder, self.dies_at = np.load(points), Path(folder), dies_at
        self.calls = 1
        self.networks = {"find": Network(self._find, BATCH)}

    def faces(self, video: Video, frames: Frames) -> Iterator[list[Face]]:
        return in_batches(video, frames, self._faces, self.calls)

    def _faces(self, images: list[UInt8]) -> list[list[Face]]:
        small_BHW3 = np.stack([image_HW3[::2, ::2] for image_HW3 in images])
        return [[Face(points_68x2)] for points_68x2 in self.networks["find"].compute(small_BHW3)]

    def _find(self, small_BHW3: UInt8) -> list[Float32]:
        with (self.folder / "calls").open("a") as calls:
            calls.write(f"{os.getpid()}\n")
        number = len((self.folder / "calls").read_text().splitlines())
        width = 2 * small_BHW3.shape[2]
        if width == RAISES:
            raise ArithmeticError("the network saw something odd")
        if width == HANGS:
            time.sleep(3600)
        if width == DIES or number == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return [self.points_68x2 + small_HW3.mean(dtype=np.float32) / 100 for small_HW3 in small_BHW3]


class AskingTask(VideoTask):
    """A task whose workers know the source."""

    def __init__(self, job: BuildJob, beat: Beat) -> None:
        SOURCES[AskedFaces.name] = AskedFaces
        super().__init__(job, beat)


def networks(job: BuildJob) -> dict[str, Network]:
    """The networks of a build, in a process that knows the source."""
    SOURCES[AskedFaces.name] = AskedFaces
    return networks_of(job)


def processes(folder: Path) -> list[int]:
    """Ids of the processes that computed, in order."""
    return list(dict.fromkeys(map(int, (folder / "calls").read_text().split())))


def asking(**options: Any) -> Any:
    """A pool's `execute` for a build of these tasks: `NetworkPool` without a GPU, as there is none."""
    return partial(_execute, options)


def _execute(options: dict[str, Any], task: type, job: BuildJob, items: Any, **rest: Any) -> Any:
    from pipelines.build.networks import NetworkPool

    with NetworkPool(networks, job, 0.0, **options) as pool:
        yield from pool(AskingTask, job, items, **rest)
