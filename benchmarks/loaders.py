"""Measure drawing samples in processes of a rank's own (`lawdnet train --loaders N`) against drawing in the trainer's.

    python -m benchmarks.loaders [--loaders 1] [--mouth 64] [--batch 16] [--steps 400]

Each way has a process for itself, and draws from the same drawn head at a crop width of 320 px, 96 segments in 24 files
of their own. Printed for each, and as the ratio of the two:

    samples/s        delivered to a trainer that does nothing else
    first, resumed   seconds to the first batch, at the start and in the middle of an epoch
    CPU, trainer     CPU seconds of all processes per 1000 samples, and of the trainer's alone
    computing        how much a trainer gets done that computes (in Python and with torch) while samples arrive at half
                     of that speed, compared with computing alone
    memory MB        of the trainer and all processes that draw (shared pages are divided)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from lawdnet.data.sampling import SampleSpec
from lawdnet.data.schema import write_segments
from lawdnet.data.segment_list import SegmentRef
from lawdnet.data.segments import encode_jpeg
from lawdnet.synthetic import write_talking_head
from lawdnet.tasks.background import ahead
from lawdnet.training.loader import Batch, rank_batches
from lawdnet.training.position import START, Position
from lawdnet.types import Segment
from lawdnet.video import decode

FILES, PER_FILE, FRAMES, WIDTH = 24, 4, 90, 320
Streams = Callable[[Position], Iterator[list[Batch]]]


def store(root: Path) -> list[SegmentRef]:
    """Write the segments: all show the same head, which costs a reader as much as different ones."""
    write_talking_head(root / "head.mp4", identity=1, motion=2, speech=3, seconds=FRAMES / 25, size=(416, WIDTH))
    jpegs = tuple(encode_jpeg(image, 95) for _, image in decode(root / "head.mp4"))[:FRAMES]
    refs = []
    for video in range(FILES):
        names = [f"v{video:02d}-{index}" for index in range(PER_FILE)]
        segments = (
            Segment(
                segment_id=name,
                video_id=f"v{video:02d}",
                index=index,
                start_frame=0,
                split="train",
                frames_jpeg=jpegs,
                landmarks_T68x2=np.zeros((FRAMES, 68, 2), np.float32),
                matrix_T33=np.zeros((FRAMES, 3, 3), np.float32),
                features={"mel": np.zeros((FRAMES, 320), np.float32)},
            )
            for index, name in enumerate(names)
        )
        path = root / f"v{video:02d}.parquet"
        write_segments(path, segments)
        refs += [SegmentRef(n, f"v{video:02d}", "train", FRAMES, str(path), i) for i, n in enumerate(names)]
    return refs


def compute() -> None:
    """Some milliseconds of a trainer: half of it holds the interpreter's lock."""
    sum(number * number for number in range(40_000))
    square = torch.ones(192, 192)
    for _ in range(8):
        square = square @ square / 192


def computed(seconds: float, take: Callable[[], Any] = lambda: None, every: float = 1e9) -> float:
    """How often a second the trainer computes while it takes a batch `every` so many seconds."""
    began = taken = time.perf_counter()
    count = 0
    while (now := time.perf_counter()) - began < seconds:
        compute()
        count += 1
        if now - taken >= every:
            take()
            taken = now
    return count / (time.perf_counter() - began)


def measure(streams: Streams, batch: int, steps: int) -> dict[str, float]:
    """Measure one way of drawing; see above."""
    torch.set_num_threads(1)
    took = []
    for start in (START, Position(0, 7)):
        began = time.perf_counter()
        stream = ahead(streams(start), 2)
        next(stream)
        took.append(time.perf_counter() - began)
        if start == START:
            stream.close()
    for _ in range(steps // 4):  # what was drawn ahead meanwhile does not count
        next(stream)
    own = psutil.Process()
    tree = [own, *own.children(recursive=True)]
    began, before = time.perf_counter(), [sum(one.cpu_times()[:2]) for one in tree]
    for _ in range(steps):
        next(stream)
    seconds = time.perf_counter() - began
    busy = [sum(one.cpu_times()[:2]) - was for one, was in zip(tree, before, strict=True)]
    memory = sum(one.memory_full_info().pss for one in tree)
    beside = computed(8, lambda: next(stream), every=2 * seconds / steps)
    stream.close()
    return {
        "samples/s": steps * batch / seconds,
        "first": took[0],
        "resumed": took[1],
        "CPU": 1e3 * sum(busy) / (steps * batch),
        "trainer": 1e3 * busy[0] / (steps * batch),
        "computing": beside / computed(4),
        "memory MB": memory / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loaders", type=int, default=1)
    parser.add_argument("--mouth", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--segments", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.segments:
        refs = [SegmentRef(**row) for row in json.loads(Path(options.segments).read_text())]
        print(json.dumps(measure(lambda start: drawn(refs, options, start), options.batch, options.steps)))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = compare(Path(folder), options)
    for name, values in found.items():
        print(json.dumps({"how": name, **{key: round(value, 3) for key, value in values.items()}}))


def drawn(refs: list[SegmentRef], options: argparse.Namespace, start: Position) -> Iterator[list[Batch]]:
    """The stream that is measured."""
    return rank_batches(refs, spec_of(options), stored_width=WIDTH, start=start, loaders=options.loaders, **ONE)


ONE: dict[str, Any] = {"seed": 1, "rank": 0, "world": 1, "epochs": 1000}


def spec_of(options: argparse.Namespace) -> SampleSpec:
    """32 samples of a segment, as in the stages of `full`."""
    return SampleSpec(
        mouth_px=options.mouth,
        num_frames=1,
        batch_size=options.batch,
        samples_per_segment=32,
        audio="mel",
        sync="mel",
    )


def compare(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure both ways, each in a process of its own."""
    listed = folder / "segments.json"
    listed.write_text(json.dumps([vars(ref) for ref in store(folder)]))
    found = {}
    for name, loaders in (("trainer", 0), ("loaders", options.loaders)):
        command = [sys.executable, "-m", "benchmarks.loaders", "--segments", str(listed), "--loaders", str(loaders)]
        command += ["--mouth", str(options.mouth), "--batch", str(options.batch), "--steps", str(options.steps)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
    found["ratio"] = {key: value / max(found["trainer"][key], 1e-9) for key, value in found["loaders"].items()}
    return found


if __name__ == "__main__":
    main()
