"""What the driver of a build needs as its inputs grow: listing them, reading what is done, and writing the manifest.

    python -m benchmarks.many_videos [--counts 1000,10000,100000] [--segments 8] [--loose]

No video is decoded: the inputs are empty files, and what their builds left behind is made up. 100,000 videos of 72
seconds, 8 segments each, are 2,000 hours; short clips have one or two. The records are packed, as a build leaves many;
with `--loose` each has a file of its own, as just after the work. Prints a JSON object; every count runs in a process
of its own, and memory is the peak of its resident memory over that of the same process with ten inputs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.core_speed import high_water
from lawdnet.data.config import BuildConfig
from lawdnet.data.near_duplicates import STARTS
from lawdnet.data.publish import publish
from lawdnet.data.records import SegmentRow, VideoRecord, video_records
from lawdnet.data.rules import SCORES
from lawdnet.data.settle import settle
from lawdnet.data.shards import plan_shards
from lawdnet.data.split import split_videos
from lawdnet.tasks.inputs import list_inputs
from lawdnet.tasks.records import PREFIX
from pipelines.build.plan import Plan
from pipelines.build.task import VideoItem

PER_FOLDER = 1000
PER_SHARD = 300
WINDOWS = 5
"""Windows of a video that have a perceptual hash: those of a clip of four seconds."""
CONFIG = BuildConfig()
MARKS = {"mel": "0123456789abcdef"}


def make(source: Path, root: Path, count: int, segments: int, is_loose: bool) -> None:
    """Inputs, and the records of a build that had just come to its end."""
    for number in range(count):
        path = source / f"{number // PER_FOLDER:04d}" / f"{number:06d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    store = video_records(root)
    alike: defaultdict[str, dict[str, VideoRecord]] = defaultdict(dict)
    items = [VideoItem.of(file) for file in list_inputs(source)]
    sides = split_videos({item.key: sha256_of(item) for item in items}, CONFIG.val_fraction)
    for number, item in enumerate(items):
        record = make_record(item, segments, f"shard-{number // PER_SHARD:016x}")
        record.split = sides[item.key]
        if is_loose:
            store.write(item.key, record)
        else:
            alike[item.key[:PREFIX]][item.key] = record
    for records in alike.values():
        store.write_packed(records)


def sha256_of(item: VideoItem) -> str:
    """What stands for the hash of its content."""
    return hashlib.sha256(item.key.encode()).hexdigest()


def make_record(item: VideoItem, segments: int, shard: str) -> VideoRecord:
    """What a build would have stored of a video."""
    sha256, record = sha256_of(item), item.record()
    record.video_id = f"{Path(item.name).stem}-{item.key[:10]}"
    record.status = "accepted"
    record.detail = f"{225 * segments} of {225 * segments} frames used"
    record.sha256 = record.landmarks_sha256 = sha256
    record.segments = segments
    record.frames = record.frames_used = 225 * segments
    record.step_seconds = {"open": 0.012, "faces": 0.123, "sound": 0.045, "crop": 1.234, "score": 0.123, "write": 0.012}
    record.perceptual_hash = " ".join(f"{start}:{sha256[4 * n :][:16]}" for n, start in enumerate(STARTS[:WINDOWS]))
    record.features, record.parts = MARKS, [shard]
    scores = {score: 0.123456789 for score in SCORES if not score.startswith("sync")}
    for i in range(segments):
        place = {"index": i, "track": 0, "start_frame": 225 * i, "num_frames": 225, "row_group": i, "part": shard}
        record.rows.append(SegmentRow(segment_id=f"{record.video_id}-{i:04d}", **place, scores=scores))
    return record


def measure(source: Path, root: Path) -> dict[str, float]:
    """Seconds of each part of the driver's work, and the peak of this process in MiB after each."""
    took: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        took[f"{name} s"] = round(time.perf_counter() - began, 2)
        took[f"{name} peak MiB"] = high_water() >> 10

    with timed("list"):
        inputs = list_inputs(source)
    with timed("read what is done"):
        plan = Plan(
            inputs=inputs,
            files={f"shard-{number:016x}.parquet" for number in range(-(-len(inputs) // PER_SHARD))},
            marks=MARKS,
            sync_mark=None,
            finds_faces=False,
            group_by=CONFIG.group_by,
        )
        work = plan.work(root)
        assert (len(work.items), work.ready) == (0, len(inputs)), "all is done"
    with timed("duplicates, groups, split"):
        settled = settle(root, CONFIG, plan.listed)
        assert not plan_shards(settled.videos, {}, {}, CONFIG.pack_files)
    with timed("manifest"):
        extractors = {"mel": {"dim": 320, "model_sha256": None, "options": {}}}
        publish(root, CONFIG, extractors, str(source), MARKS, settled)
    return took | {"peak MiB": high_water() >> 10}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default="1000,10000,100000")
    parser.add_argument("--segments", type=int, default=8)
    parser.add_argument("--loose", action="store_true")
    options = parser.parse_args()
    report: dict[str, dict[str, float]] = {}
    floor = 0.0
    for count in (10, *map(int, options.counts.split(","))):
        with tempfile.TemporaryDirectory() as folder:
            source, root = Path(folder) / "source", Path(folder) / "dataset"
            make(source, root, count, options.segments, options.loose)
            code = "import json, sys; from pathlib import Path; from benchmarks.many_videos import measure\n"
            code += "print(json.dumps(measure(Path(sys.argv[1]), Path(sys.argv[2]))))"
            ran = subprocess.run([sys.executable, "-c", code, str(source), str(root)], check=True, capture_output=True)
            found = json.loads(ran.stdout)
            floor = floor or found["peak MiB"]
            report[f"{count} videos"] = found | {"memory MiB": found["peak MiB"] - floor}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
