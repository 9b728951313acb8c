"""A build whose networks wait for a device: the network in every worker (before), and in workers of its own (after).

    python -m benchmarks.build_stages [--videos 40] [--seconds 8] [--loads 0.5,1,2] [--gpu 1]

The device is a network that only sleeps; everything else of the build is real. The machine's CPUs and one logical GPU
make the cluster. `load` says how long the device needs for a frame, as a multiple of what all CPUs together need, which
is measured first and last, with a device that needs no time and one worker per CPU. The slower side alone is the mean
of these two, or the device. All is measured between the first and the last few videos, so that starting does not count.
Other programs on the machine distort it: more processes of ours get a larger part of the CPUs.

    of the slower side   frames/s, as a part of what the slower side could do alone
    device busy          part of the time in which the device was taken
    CPUs used, idle      CPU time of all our processes, and that which nobody used, as parts of all cores
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.stand_in import FACES, SPEECH, StandInTask, networks
from lawdnet.data.config import BuildConfig
from lawdnet.landmarks import make_source
from lawdnet.synthetic import write_talking_head
from lawdnet.video import probe

CPUS = len(os.sched_getaffinity(0))
SIZE = (512, 512)
ENDS = 4
"""Videos at either end, for each CPU, that do not count: not all workers are at work."""


def in_workers(task: type, *rest: Any, **options: Any) -> Generator[tuple[str, Any], None, None]:
    """One stage: the networks are in the workers, which hold a share of the GPU if there is one."""
    from pipelines.executor import map_items

    return map_items(StandInTask, *rest, **options)


def in_pool(
    task: type, job: Any, items: Sequence[Any], *, name: str, gpu: float, **options: int
) -> Generator[tuple[str, Any], None, None]:
    """CPU workers, and network workers with the shares of the GPU."""
    from pipelines.build.networks import NetworkPool

    with NetworkPool(networks, job, gpu, **options) as pool:
        yield from pool(StandInTask, job, items, name=name, gpu=gpu)


EXECUTE = {
    "each worker": in_workers,
    "a pool, one worker per CPU": partial(in_pool, per_cpu=1),
    "a pool": in_pool,
}


def measure(source: Path, root: Path, how: str, ms: float, gpu: float) -> dict[str, float]:
    """Build once, in a Ray of this process; return what was measured in the middle of it."""
    import ray

    from pipelines.build.build import build
    from pipelines.cluster import resources

    device = root.parent / f"{root.name}.device"
    device.touch()
    options = {"device": str(device), "ms": ms}
    config = BuildConfig(
        landmarks=FACES,
        features=(SPEECH,),
        speech="voicing",
        val_fraction=0.0,
        near_duplicates="keep",
        options={FACES: {"points": str(source / "points.npy")} | options, SPEECH: options},
    )
    done: list[tuple[float, int, float, float]] = []
    tree = psutil.Process()

    def on_progress(progress: Any) -> None:
        assert progress.record.is_accepted, progress.record.detail
        done.append((time.time(), progress.record.frames, cpu_seconds(tree), psutil.cpu_times().idle))

    ray.init(address="local", num_cpus=CPUS, num_gpus=1, include_dashboard=False, log_to_driver=False)
    resources.quiet_data()
    build(source, root, config, gpu=gpu, on_progress=on_progress, execute=EXECUTE[how])
    ray.shutdown()
    (first, _, *cpu_first), (last, _, *cpu_last) = done[ENDS * CPUS], done[-ENDS * CPUS]
    seconds = last - first
    spans = [tuple(map(float, line.split())) for line in device.read_text().splitlines()]
    return {
        "frames/s": sum(frames for at, frames, *_ in done if first < at <= last) / seconds,
        "device busy": sum(max(0.0, min(end, last) - max(begin, first)) for begin, end in spans) / seconds,
        "CPUs used": (cpu_last[0] - cpu_first[0]) / seconds / CPUS,
        "CPUs idle": (cpu_last[1] - cpu_first[1]) / seconds / (os.cpu_count() or 1),
        "CPU s/frame": (cpu_last[0] - cpu_first[0]) / sum(frames for at, frames, *_ in done if first < at <= last),
        "device s/frame": sum(end - begin for begin, end in spans) / sum(frames for _, frames, *_ in done),
    }


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time of a process and of all below it that are alive."""
    total = 0.0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += sum(one.cpu_times()[:2])
        except psutil.Error:
            continue
    return total


def elsewhere(source: Path, root: Path, how: str, ms: float, gpu: float) -> dict[str, float]:
    """The same in a fresh process."""
    code = "import json, sys; from pathlib import Path; from benchmarks.build_stages import measure\n"
    code += "source, root, how, ms, gpu = sys.argv[1:]\n"
    code += "print(json.dumps(measure(Path(source), Path(root), how, float(ms), float(gpu))))"
    command = [sys.executable, "-c", code, str(source), str(root), how, str(ms), str(gpu)]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    ran = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def write_videos(source: Path, count: int, seconds: float) -> None:
    """Draw one head, copy it with different bytes, and keep where its face is."""
    source.mkdir()
    first = source / "000.mp4"
    write_talking_head(first, identity=1, motion=1, speech=1, seconds=seconds, size=SIZE)
    video = probe(first)
    faces = list(
        make_source("openface").faces(
            video, ((tick, np.zeros((0, 0, 3), np.uint8)) for tick in range(video.num_frames))
        )
    )
    np.save(source / "points.npy", np.mean([face.points_68x2 for (face,) in faces], 0).astype(np.float32))
    first.with_suffix(".csv").unlink()
    content = first.read_bytes()
    for number in range(1, count):
        name = f"{number:03d}.mp4"
        # an MP4 box that players skip
        (source / name).write_bytes(content + (8 + len(name)).to_bytes(4, "big") + b"free" + name.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--loads", default="0.5,1,2")
    parser.add_argument("--gpu", type=float, default=1.0, help="share of the GPU for each worker that has the networks")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        write_videos(source, options.videos, options.seconds)
        alone = elsewhere(source, Path(folder) / "alone", "each worker", 0.0, 0.0)
        found: dict[str, dict[str, float]] = {}
        for load in map(float, options.loads.split(",")):
            ms = 1000 * load / alone["frames/s"]
            for number, how in enumerate(EXECUTE):
                name = f"load {load:g}, networks in {how}"
                found[name] = elsewhere(source, Path(folder) / f"{number}-{load}", how, ms, options.gpu)
                print(name, rounded(found[name]), file=sys.stderr, flush=True)
        again = elsewhere(source, Path(folder) / "again", "each worker", 0.0, 0.0)
    cpus = (alone["frames/s"] + again["frames/s"]) / 2
    for values in found.values():
        values["of the slower side"] = values["frames/s"] / min(cpus, 1 / values["device s/frame"])
    found = {"CPUs alone, before": alone, "CPUs alone, after": again} | found
    report = {"cores": CPUS} | {name: rounded(values) for name, values in found.items()}
    print(json.dumps(report, indent=1))


def rounded(values: dict[str, float]) -> dict[str, float]:
    """Values as they are printed."""
    return {name: round(value, 4 if value < 0.1 else 2) for name, value in values.items()}


if __name__ == "__main__":
    main()
