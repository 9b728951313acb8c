"""Speed of building videos: faces found by MediaPipe's networks, faces from CSVs, and decoding alone.

    python -m benchmarks.build_speed [--as hevc:1080] VIDEO…

Builds every video alone in this process, once without a CSV and once with the one next to it, if there is one, and
decodes it to RGB without more. `per core` are frames per second of CPU time, all threads added up, so that other work
on the machine does not count; `of decoding` is the ratio to those of decoding. `--as` first encodes the videos again,
with another codec and height. Prints a JSON object for each video, and one for all.
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

import av
import cv2

from lawdnet.data.config import BuildConfig
from lawdnet.tasks.inputs import list_inputs
from lawdnet.tasks.task import TaskRunner
from lawdnet.types import FPS
from lawdnet.video import decode, probe
from pipelines.build.task import BuildJob, VideoItem, VideoTask

ENCODERS = {"h264": "libx264", "hevc": "libx265"}


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


def decoded(clip: Path) -> Speed:
    """Decode one video."""
    began, cpu_began = time.perf_counter(), time.process_time()
    frames = sum(1 for _ in decode(clip))
    return Speed(frames, time.process_time() - cpu_began, time.perf_counter() - began)


def encoded(clip: Path, codec: str, height: int, folder: Path) -> Path:
    """Encode a video again as H.264 or HEVC of this height, with its audio; its landmarks are left behind."""
    video = probe(clip)
    width = round(video.width * height / video.height / 2) * 2
    out = folder / clip.name
    with av.open(str(out), "w") as container, av.open(str(clip)) as source:
        images = container.add_stream(ENCODERS[codec], rate=FPS, options={"preset": "medium"})
        images.width, images.height, images.pix_fmt = width, height, "yuv420p"
        sound = container.add_stream_from_template(source.streams.audio[0])
        for _, frame_HW3 in decode(clip):
            scaled = cv2.resize(frame_HW3, (width, height), interpolation=cv2.INTER_AREA)
            container.mux(images.encode(av.VideoFrame.from_ndarray(scaled)))
        container.mux(images.encode())
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = sound
                container.mux(packet)
    return out


def measure(clip: Path, total: dict[str, list[Speed]]) -> None:
    """Print the speeds of one video, and add them to those of all."""
    video = probe(clip)
    row: dict[str, object] = {"video": clip.name, "size": f"{video.width}x{video.height}"}
    alone = decoded(clip)
    for name, with_csv in (("found", False), ("csv", True)):
        if not with_csv or clip.with_suffix(".csv").is_file():
            total[name].append(found := build(clip, with_csv))
            share = found.frames / found.cpu_seconds * alone.cpu_seconds / alone.frames
            row[name] = found.describe() | {"of decoding": round(share, 2)}
    total["decoded"].append(alone)
    print(json.dumps(row | {"decoded": alone.describe()}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, nargs="+")
    parser.add_argument("--as", dest="form", metavar="CODEC:HEIGHT", help="h264:512, hevc:1080")
    options = parser.parse_args()
    build(options.videos[0], with_csv=False)  # loads the networks and the libraries
    total: dict[str, list[Speed]] = {"found": [], "csv": [], "decoded": []}
    with tempfile.TemporaryDirectory() as folder:
        for clip in options.videos:
            if options.form:
                codec, _, height = options.form.partition(":")
                measure(encoded(clip, codec, int(height), Path(folder)), total)
            else:
                measure(clip, total)
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
