"""What the driver of a build needs as its inputs grow: listing them, reading what is done, and writing the manifest.

    python -m benchmarks.many_videos [--counts 1000,10000,100000] [--segments 8]

No video is decoded: the inputs are empty files, and what their builds left behind is made up. 100,000 videos of 72
seconds, 8 segments each, are 2,000 hours. Prints a JSON object; every count runs in a process of its own, and memory
is the peak of its resident memory over that of the same process with ten inputs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.core_speed import high_water
from lawdnet.data.config import BuildConfig
from lawdnet.data.finalize import finalize
from lawdnet.data.records import SegmentRow, read_records, video_records
from lawdnet.data.rules import SCORES
from lawdnet.data.split import split_draw
from lawdnet.tasks.inputs import list_inputs
from pipelines.build.plan import Plan
from pipelines.build.task import VideoItem

PER_FOLDER = 1000
CONFIG = BuildConfig()


def make(source: Path, root: Path, count: int, segments: int) -> None:
    """Inputs, and the records of a build that had just come to its end."""
    for number in range(count):
        path = source / f"{number // PER_FOLDER:04d}" / f"{number:06d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    store = video_records(root)
    scores = {score: 0.123456789 for score in SCORES if not score.startswith("sync")}
    for item in map(VideoItem.of, list_inputs(source)):
        record = item.record()
        record.video_id = f"{Path(item.name).stem}-{item.key[:10]}"
        record.status = "accepted"
        record.sha256 = item.key * 4
        record.split = "val" if split_draw(record.sha256) < CONFIG.val_fraction else "train"
        record.segments = segments
        record.frames = 225 * segments
        record.features = {"mel": "0123456789abcdef"}
        for i in range(segments):
            place = {"index": i, "track": 0, "start_frame": 225 * i, "num_frames": 225, "row_group": i}
            record.rows.append(SegmentRow(segment_id=f"{record.video_id}-{i:04d}", **place, scores=scores))
        store.write(item.key, record)


def measure(source: Path, root: Path) -> dict[str, float]:
    """Seconds of each part of the driver's work, and the peak of this process in MiB."""
    took: dict[str, float] = {}

    def timed(name: str, began: float) -> None:
        took[name] = round(time.perf_counter() - began, 2)

    began = time.perf_counter()
    inputs = list_inputs(source)
    timed("list s", began)
    began = time.perf_counter()
    records = read_records(root)
    plan = Plan(
        inputs=inputs,
        records=records,
        files={f"{record.video_id}.parquet" for record in records.values()},
        marks={"mel": "0123456789abcdef"},
        sync_mark=None,
        finds_faces=False,
    )
    assert len(plan.stored) == len(inputs), "all is done"
    timed("read what is done s", began)
    began = time.perf_counter()
    finalize(root, CONFIG, {"mel": {"dim": 320, "model_sha256": None, "options": {}}}, str(source))
    timed("manifest s", began)
    return took | {"peak MiB": high_water() >> 10}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", default="1000,10000,100000")
    parser.add_argument("--segments", type=int, default=8)
    options = parser.parse_args()
    report: dict[str, dict[str, float]] = {}
    floor = 0.0
    for count in (10, *map(int, options.counts.split(","))):
        with tempfile.TemporaryDirectory() as folder:
            source, root = Path(folder) / "source", Path(folder) / "dataset"
            make(source, root, count, options.segments)
            code = "import json, sys; from pathlib import Path; from benchmarks.many_videos import measure\n"
            code += "print(json.dumps(measure(Path(sys.argv[1]), Path(sys.argv[2]))))"
            ran = subprocess.run([sys.executable, "-c", code, str(source), str(root)], check=True, capture_output=True)
            found = json.loads(ran.stdout)
            floor = floor or found["peak MiB"]
            report[f"{count} videos"] = found | {"memory MiB": found["peak MiB"] - floor}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
