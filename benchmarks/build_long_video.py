"""Memory, scratch and speed of building one long video: a clip with its CSV, repeated without re-encoding.

    python benchmarks/build_long_video.py CLIP.mp4 --minutes 60 [--span-seconds 600] [--most-spans 3]

Prints a JSON object: what dividing the video took, then what its spans took, in frames/s, seconds per stage, the peak
of the worker's resident memory, and the largest file that a span writes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av

from lawdnet.data.config import BuildConfig
from lawdnet.data.records import VideoRecord
from lawdnet.landmarks.openface import read_csv, write_csv
from lawdnet.tasks.inputs import list_inputs
from lawdnet.tasks.task import TaskRunner
from lawdnet.video import probe
from pipelines.build.span import SpanTask, span_items
from pipelines.build.task import BuildJob, VideoItem, VideoTask


def repeat(clip: Path, to: Path, times: int) -> None:
    """Copies the packets of a clip again and again, each time a clip's length later."""
    with av.open(str(clip)) as source:
        seconds = source.duration / av.time_base
        with av.open(str(to), "w") as target:
            wanted = [stream for stream in source.streams if stream.type in ("audio", "video")]
            streams: dict[int, Any] = {stream.index: target.add_stream_from_template(stream) for stream in wanted}
            last: dict[int, int] = {}
            for turn in range(times):
                source.seek(0)
                for packet in source.demux(*wanted):
                    if packet.dts is None:
                        continue
                    shift = round(turn * seconds / packet.time_base)
                    packet.pts, packet.dts = (packet.pts or 0) + shift, packet.dts + shift
                    if packet.dts <= last.get(packet.stream.index, packet.dts - 1):
                        continue  # the audio is a little longer than the frames
                    last[packet.stream.index] = packet.dts
                    packet.stream = streams[packet.stream.index]
                    target.mux(packet)


def peak_mib() -> int:
    """The most memory that this process has had so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def report(what: str, record: VideoRecord, seconds: float) -> None:
    """Print what became of a video or of some spans."""
    content = {
        "what": what,
        "status": record.status,
        "detail": record.detail,
        "frames": record.frames,
        "seconds": round(seconds, 1),
        "frames_per_second": round(record.frames / seconds, 1),
        "seconds_by_step": record.step_seconds,
        "peak_mib": peak_mib(),
    }
    print(json.dumps(content, indent=1))


def write_csvs(clip: Path, long: Path) -> None:
    """Repeat the rows of a clip's CSV for a long video, without holding them all as text."""
    once, video = read_csv(clip.with_suffix(".csv")).points_T68x2, probe(long)
    write_csv(long.with_suffix(".csv"), once, video.fps)
    header, *rows = long.with_suffix(".csv").read_text().splitlines()
    with long.with_suffix(".csv").open("w") as file:
        file.write(header + "\n")
        for frame, row in zip(range(video.num_source_frames), itertools.cycle(rows), strict=False):
            file.write(f"{frame + 1}, " + row.split(", ", 1)[1] + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--span-seconds", type=int, default=600, help="0 does not divide the video")
    parser.add_argument("--most-spans", type=int, default=None, help="build only the last ones")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, root = Path(folder) / "source", Path(folder) / "dataset"
        source.mkdir()
        once = probe(arguments.clip)
        times = max(1, round(arguments.minutes * 60 * once.fps / once.num_source_frames))
        repeat(arguments.clip, source / "long.mp4", times)
        # in a process of its own, so that its memory does not count
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            pool.submit(write_csvs, arguments.clip, source / "long.mp4").result()
        config = BuildConfig(val_fraction=0.0, span_seconds=arguments.span_seconds)
        job = BuildJob(config=config, root=str(root))
        item = VideoItem.of(list_inputs(source)[0])
        print(json.dumps({"size": f"{once.width}x{once.height}", "peak_mib_before": peak_mib()}))
        began = time.perf_counter()
        ((_, record),) = TaskRunner(VideoTask, job)([item])
        report("video", record, time.perf_counter() - began)
        runner = TaskRunner(SpanTask, job)
        for span in span_items(item, record)[-(arguments.most_spans or 10**6) :]:
            began = time.perf_counter()
            ((_, done),) = runner([span])
            report(span.name, done, time.perf_counter() - began)
        files = [file.stat().st_size for file in (root / "segments").iterdir()]
        print(json.dumps({"largest_segment_file_mib": round(max(files) / 2**20)}))


if __name__ == "__main__":
    main()
