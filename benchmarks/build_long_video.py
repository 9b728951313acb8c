"""Memory and speed of building one long video: a clip with its CSV, repeated to any length without re-encoding.

    python benchmarks/build_long_video.py CLIP.mp4 --minutes 60

Prints a JSON object: frames, frames/s, seconds per stage, and the peak of the worker's resident memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from lawdnet.data.config import BuildConfig
from lawdnet.landmarks.openface import read_csv, write_csv
from lawdnet.tasks.inputs import list_inputs
from lawdnet.tasks.task import TaskRunner
from lawdnet.video import probe
from pipelines.build.task import BuildJob, VideoItem, VideoTask


def repeat(clip: Path, to: Path, times: int) -> None:
    """Copies the packets of a clip again and again, each time a clip's length later."""
    with av.open(str(clip)) as source:
        seconds = source.duration / av.time_base
        with av.open(str(to), "w") as target:
            wanted = [stream for stream in source.streams if stream.type in ("audio", "video")]
            streams = {stream.index: target.add_stream_from_template(stream) for stream in wanted}
            for turn in range(times):
                source.seek(0)
                for packet in source.demux(*wanted):
                    if packet.dts is None:
                        continue
                    shift = round(turn * seconds / packet.time_base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = streams[packet.stream.index]
                    target.mux(packet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, root = Path(folder) / "source", Path(folder) / "dataset"
        source.mkdir()
        long = source / "long.mp4"
        once = probe(arguments.clip)
        times = max(1, round(arguments.minutes * 60 * once.fps / once.num_source_frames))
        repeat(arguments.clip, long, times)
        video = probe(long)
        points = read_csv(arguments.clip.with_suffix(".csv")).points_T68x2
        write_csv(long.with_suffix(".csv"), np.resize(points, (video.num_source_frames, 68, 2)), once.fps)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        runner = TaskRunner(VideoTask, BuildJob(config=BuildConfig(val_fraction=0.0), root=str(root)))
        (file,) = list_inputs(source)
        began = time.perf_counter()
        ((_, record),) = runner([VideoItem.of(file)])
        row = record.row().columns()
        seconds = time.perf_counter() - began
    print(
        json.dumps(
            {
                "status": row["status"],
                "detail": row["detail"],
                "size": f"{video.width}x{video.height}",
                "frames": row["frames"],
                "frames_per_second": round(row["frames"] / seconds, 1),
                "seconds": {name: value for name, value in row.items() if name.startswith("seconds")},
                "peak_mib_before": round(before / 1024),
                "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
