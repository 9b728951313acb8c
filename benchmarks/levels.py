"""What small versions of the frames cost in a build and save in training, on your videos.

    python -m benchmarks.levels SOURCE [--crop-width 320] [--preset full] [--passes 3]

SOURCE is a folder of videos with their CSVs. They are built with and without small versions, in turn, and the dataset
without them is upgraded. Then the samples of every stage of the preset are drawn from both: CPU ms of a sample, and KB
that it reads, as each segment is read once for `samples_per_segment` samples. The least of the passes counts. One core,
no Ray. Every `ratio` is without / with, but for those of the build and its size.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import pyarrow as pa
import pyarrow.parquet as pq

from lawdnet.data import segments as making
from lawdnet.data.config import BuildConfig
from lawdnet.data.levels import frames_column, level_for
from lawdnet.data.manifest import SEGMENTS
from lawdnet.data.sampling import SampleSpec, Work, draw_batches
from lawdnet.data.segment_list import SegmentRef
from lawdnet.data.transfer import index_of
from lawdnet.data.upgrade import add_levels
from lawdnet.face.geometry import stage_size
from lawdnet.tasks.inputs import list_inputs
from lawdnet.tasks.task import TaskRunner
from lawdnet.training.stages import PRESETS, Stage
from lawdnet.types import no_beat
from pipelines.build.task import BuildJob, VideoItem, VideoTask

ENCODE = making.encode_small
MIX = 16
"""Segments of a group."""


def cpu(work: Callable[[], object], passes: int = 1) -> float:
    """CPU seconds of this process, the least of some passes."""

    def once() -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    return min(once() for _ in range(passes))


def build(source: Path, root: Path, config: BuildConfig, *, with_levels: bool) -> int:
    """Build all videos in this process; return the number of frames in segments."""
    making.encode_small = ENCODE if with_levels else lambda crop_HW3, quality: {}
    runner = TaskRunner(VideoTask, BuildJob(config=config, root=str(root)))
    records = [record for _, record in runner([VideoItem.of(file) for file in list_inputs(source)])]
    return sum(record.frames_used for record in records)


def refs(root: Path) -> list[SegmentRef]:
    names = ["segment_id", "video_id", "split", "num_frames", "path", "row_group"]
    tables = [index_of(path, str(path)).select(names) for path in sorted((root / SEGMENTS).glob("*.parquet"))]
    return [SegmentRef(**row) for row in pa.concat_tables(tables).to_pylist()]


def spec_of(stage: Stage) -> SampleSpec:
    contrast = stage.kind == "syncnet"
    return SampleSpec(
        mouth_px=stage.mouth_px,
        num_frames=stage.num_frames,
        batch_size=stage.batch_size,
        samples_per_segment=stage.samples_per_segment,
        audio="mel",
        sync="mel" if stage.num_frames == 5 else None,
        contrast=contrast,
        mix_segments=MIX,
    )


def draw(found: Sequence[SegmentRef], spec: SampleSpec, width: int) -> None:
    for begin in range(0, len(found), MIX):
        work = Work(0, 0, 0, tuple(found[begin : begin + MIX]))
        for _ in draw_batches(work, spec, seed=0, stored_width=width):
            pass


def bytes_read(found: Sequence[SegmentRef], spec: SampleSpec, width: int) -> int:
    """Bytes of the columns that a stage reads of all segments."""
    total = 0
    for ref in found:
        with pq.ParquetFile(ref.path) as file:
            level = level_for(stage_size(spec.mouth_px)[1], width, file.schema_arrow.names)
            wanted = {frames_column(level), *spec.columns}
            group = file.metadata.row_group(ref.row_group)
            chunks = (group.column(number) for number in range(group.num_columns))
            total += sum(c.total_compressed_size for c in chunks if c.path_in_schema.split(".")[0] in wanted)
    return total


def compare(without: float, with_levels: float, places: int = 2) -> dict[str, float]:
    ratio = without / with_levels
    return {"without": round(without, places), "with": round(with_levels, places), "ratio": round(ratio, 2)}


def size(root: Path) -> int:
    return sum(path.stat().st_size for path in (root / SEGMENTS).iterdir())


def upgrade_all(root: Path, to: Path, quality: int) -> None:
    to.mkdir(exist_ok=True)
    for path in (root / SEGMENTS).iterdir():
        add_levels(path, to / path.name, quality, no_beat)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--crop-width", type=int, default=320)
    parser.add_argument("--preset", default="full", choices=list(PRESETS))
    parser.add_argument("--passes", type=int, default=3)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    config = BuildConfig(crop_width=options.crop_width, val_fraction=0.0)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        roots = {with_levels: Path(folder) / str(with_levels) for with_levels in (False, True)}
        for number in range(options.passes):
            for with_levels, root in roots.items():
                at = root if not number else root / str(number)
                frames: list[int] = []
                make = lambda at=at, with_levels=with_levels, frames=frames: frames.append(  # noqa: E731
                    build(options.source, at, config, with_levels=with_levels)
                )
                seconds[with_levels].append(cpu(make))
        old, new = roots[False], roots[True]
        upgrading = cpu(lambda: upgrade_all(old, Path(folder) / "upgraded", config.jpeg_quality), options.passes)
        per_frame = 1e3 / frames[0]
        result = {
            "frames": frames[0],
            "build, CPU ms of a frame": compare(min(seconds[False]) * per_frame, min(seconds[True]) * per_frame),
            "size, KB of a frame": compare(size(old) / frames[0] / 1e3, size(new) / frames[0] / 1e3),
            "upgrade, CPU ms of a frame": round(upgrading * per_frame, 2),
        }
        for stage in PRESETS[options.preset]:
            spec, found = spec_of(stage), [refs(root) for root in (old, new)]
            samples = len(found[0]) * stage.samples_per_segment
            ms = [
                1e3 * cpu(lambda r=r, s=spec: draw(r, s, options.crop_width), options.passes) / samples for r in found
            ]  # type: ignore[misc]
            kb = [bytes_read(r, spec, options.crop_width) / samples / 1e3 for r in found]
            result[stage.name] = {"CPU ms of a sample": compare(*ms), "KB of a sample": compare(*kb)}
    print(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
