"""Build throughput on 1, 2 and 4 simulated nodes of one CPU each, and what Ray costs per video.

    python -m benchmarks.build_scaling [--videos 24] [--seconds 8] [--nodes 1,2,4] [--one-long]

With `--one-long` it is one video as long as all of them, in spans of `--seconds`; the plain loop builds it undivided.
The nodes are Ray's own, all on this machine: more of them than it has cores share the cores, so what scaling there
can be ends there. `direct` is the same work in a plain loop without Ray. Prints a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from lawdnet.data.config import BuildConfig
from lawdnet.data.records import VideoRecord
from lawdnet.synthetic import write_talking_head
from lawdnet.tasks.task import Progress

CONFIG = BuildConfig(crop_width=160, val_fraction=0, span_seconds=0)


def direct(source: Path, root: Path) -> float:
    """Seconds for all videos in a plain loop, none divided, after one that warms up."""
    from lawdnet.tasks.inputs import list_inputs
    from lawdnet.tasks.task import TaskRunner
    from pipelines.build.task import BuildJob, VideoItem, VideoTask

    items = [VideoItem.of(file) for file in list_inputs(source)]
    list(TaskRunner(VideoTask, BuildJob(config=CONFIG, root=str(root / "warm-up")))(items[:1]))
    began = time.perf_counter()
    list(TaskRunner(VideoTask, BuildJob(config=CONFIG, root=str(root / "dataset")))(items))
    return time.perf_counter() - began


def on_nodes(source: Path, root: Path, nodes: int, span_seconds: int) -> dict[str, float]:
    """Seconds until the first video or span was done (actors start in that time), and from then to the last."""
    import ray
    from ray.cluster_utils import Cluster

    from pipelines.build.build import build
    from pipelines.cluster import resources

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 200_000_000})
    for _ in range(nodes):
        # nodes that anything may use would leave two CPUs to training
        cluster.add_node(num_cpus=1, object_store_memory=200_000_000, labels={"lawdnet-role": "preprocess"})
    ray.init(address=cluster.address, log_to_driver=False)
    resources.quiet_data()
    times: list[float] = []
    began = time.perf_counter()

    def note(progress: Progress[VideoRecord]) -> None:
        if not progress.record.borders:
            times.append(time.perf_counter() - began)

    build(source, root, replace(CONFIG, span_seconds=span_seconds), on_progress=note)
    whole = time.perf_counter() - began
    ray.shutdown()
    cluster.shutdown()
    return {"first s": times[0], "first to last s": times[-1] - times[0], "whole s": whole}


def elsewhere(source: Path, root: Path, nodes: int, span_seconds: int) -> dict[str, float]:
    """The same in a fresh process, whose cluster nobody else joins."""
    code = "import json, sys; from pathlib import Path; from benchmarks.build_scaling import on_nodes\n"
    code += "print(json.dumps(on_nodes(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))"
    with tempfile.TemporaryDirectory(prefix="rs", dir="/tmp", ignore_cleanup_errors=True) as folder:
        environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": folder, "RAY_ADDRESS": "auto"}
        command = [sys.executable, "-c", code, str(source), str(root), str(nodes), str(span_seconds)]
        ran = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--nodes", default="1,2,4")
    parser.add_argument("--one-long", action="store_true")
    options = parser.parse_args()
    count, seconds, spans = options.videos, options.seconds, 0
    if options.one_long:
        count, seconds, spans = 1, seconds * count, round(seconds)
    os.environ["OMP_NUM_THREADS"] = "1"
    report: dict[str, object] = {"cores": os.cpu_count(), "videos": count, "seconds each": seconds}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        source.mkdir()
        for number in range(count):
            path = source / f"{number:03d}.mp4"
            write_talking_head(path, identity=number, motion=number, speech=number, seconds=seconds)
        plain = direct(source, Path(folder) / "direct")
        frames = 25 * seconds * count
        report["direct"] = {"s": round(plain, 2), "frames/s": round(frames / plain)}
        for nodes in map(int, options.nodes.split(",")):
            found = elsewhere(source, Path(folder) / f"nodes{nodes}", nodes, spans)
            rate = frames * (1 - nodes / options.videos) / found["first to last s"]
            entry = {name: round(value, 2) for name, value in found.items()} | {"frames/s, all at work": round(rate)}
            if nodes == 1:
                per_item = found["first to last s"] / (options.videos - 1) - plain / options.videos
                entry["Ray's overhead per item, ms"] = round(1000 * per_item)
            report[f"{nodes} nodes"] = entry
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
