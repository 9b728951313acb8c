"""Speed of building videos without CSVs, where the faces are found by MediaPipe's networks.

    python -m benchmarks.landmarks_speed VIDEO…

Builds every video alone in this process, once without landmarks and once with the CSV next to it, if there is one.
`per core` are frames per second of CPU time, all threads added up, so that other work on the machine does not count.
Prints a JSON object for each video, and one for all.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from lawdnet.data.config import BuildConfig
from lawdnet.tasks.inputs import list_inputs
from lawdnet.tasks.task import TaskRunner
from lawdnet.video import probe
from pipelines.build.task import BuildJob, VideoItem, VideoTask


@dataclass(frozen=True)
class Speed:
    """What building some frames took."""

    frames: int
    cpu_seconds: float
    seconds: float

    def describe(self) -> dict[str, float]:
        """Return frames per second, of CPU time and of wall clock time."""
        return {
            "per core": round(self.frames / self.cpu_seconds, 1),
            "per second": round(self.frames / self.seconds, 1),
        }


def build(clip: Path, with_csv: bool) -> Speed:
    """Build one video in this process."""
    with tempfile.TemporaryDirectory() as folder:
        source, root = Path(folder) / "source", Path(folder) / "dataset"
        source.mkdir()
        shutil.copy(clip, source)
        if with_csv:
            shutil.copy(clip.with_suffix(".csv"), source)
        runner = TaskRunner(VideoTask, BuildJob(config=BuildConfig(val_fraction=0.0), root=str(root)))
        (file,) = list_inputs(source)
        began, cpu_began = time.perf_counter(), time.process_time()
        ((_, record),) = runner([VideoItem.of(file)])
        if not record.is_accepted:
            raise SystemExit(f"{clip}: {record.status}, {record.detail}")
        return Speed(record.frames, time.process_time() - cpu_began, time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", type=Path, nargs="+")
    options = parser.parse_args()
    build(options.videos[0], with_csv=False)  # loads the networks and the libraries
    total: dict[str, list[Speed]] = {"found": [], "csv": []}
    for clip in options.videos:
        video = probe(clip)
        row: dict[str, object] = {"video": clip.name, "size": f"{video.width}x{video.height}"}
        for name, with_csv in (("found", False), ("csv", True)):
            if not with_csv or clip.with_suffix(".csv").is_file():
                total[name].append(build(clip, with_csv))
                row[name] = total[name][-1].describe()
        print(json.dumps(row), flush=True)
    sums = {
        name: Speed(
            sum(s.frames for s in speeds), sum(s.cpu_seconds for s in speeds), sum(s.seconds for s in speeds)
        ).describe()
        for name, speeds in total.items()
        if speeds
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"videos": len(options.videos), **sums, "cores": os.cpu_count(), "peak_mib": round(peak)}))


if __name__ == "__main__":
    main()
