"""A node goes and another comes while a stage trains, on a cluster of its own: minutes, most of them waiting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from lawdnet.training.loggers import METRICS, read_jsonl
from pipelines.train.train import train
from tests.support.runs import assert_same, grey, here, rows, tiny, weights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = ["frame_32.epochs_constant=4", "frame_32.samples_per_segment=200", "frame_32.global_batch=4"]

DRIVER = """
import sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
import ray
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
ray.init(address=cluster.address, log_to_driver=False)
from lawdnet.data.manifest import Dataset
from lawdnet.training.options import RunOptions
from lawdnet.training.virtual_ranks import Workers
from pipelines.train import elastic
from lawdnet.training.loggers import METRICS, read_jsonl
from pipelines.train.train import train
from lawdnet.training.loggers import read_jsonl
from tests.support.runs import tiny
elastic.RESIZE_SECONDS = 5.0
dataset, run = Path(sys.argv[1]), Path(sys.argv[2])
metrics = run / "frame_32" / "metrics.jsonl"
running = RunOptions(workers=Workers(1, 2), save_every_steps=20, validate_every=0)
thread = threading.Thread(target=train, args=(Dataset(dataset), run, tiny(["frame_32"], *sys.argv[3:]), running))
thread.start()

def wait(workers, seconds=240):
    end = time.monotonic() + seconds
    while time.monotonic() < end and thread.is_alive():
        found = read_jsonl(metrics) if metrics.exists() else []
        starts = [i for i, row in enumerate(found) if row["kind"] == "start"]
        now = found[starts[-1]:] if starts else []
        if now and now[0]["workers"] == workers and any(row["kind"] == "step" for row in now):
            return
        time.sleep(0.2)
    raise SystemExit(f"never trained with {workers} workers")

wait(2)
cluster.remove_node(nodes.pop())
wait(1)
nodes.append(cluster.add_node(num_cpus=1))
wait(2)
thread.join(400)
assert not thread.is_alive()
ray.shutdown()
cluster.shutdown()
"""


@pytest.fixture
def ray_folder() -> Iterator[str]:
    """Where the cluster leaves its address: elsewhere, every `ray.init` of this machine would join it."""
    with tempfile.TemporaryDirectory(prefix="re", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder


def test_workers_go_and_come(tmp_path: Path, ray_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    """2 → 1 → 2 workers: every change is told, no step is lost, and the weights are those of a run on one."""
    dataset = grey(tmp_path / "dataset")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "disabled",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
        "RAY_TMPDIR": ray_folder,
    }
    command = [sys.executable, "-c", DRIVER, str(dataset.root), str(tmp_path / "elastic"), *SETTINGS]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=850, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = tmp_path / "elastic"
    worlds = [row["world"] for row in rows(run, "frame_32", "resume")]
    assert worlds[-1] == 2
    assert 1 in worlds
    resumes = rows(run, "frame_32", "resume")
    assert all(row["repeated_steps"] <= 41 for row in resumes), json.dumps(resumes)
    grown = [row for row in resumes if row["world"] == 2]
    assert grown[-1]["repeated_steps"] == 0, "a checkpoint is written before workers are added"

    train(dataset, tmp_path / "fixed", tiny(["frame_32"], *SETTINGS), here())
    assert_same(weights(tmp_path / "fixed", "frame_32")["networks"], weights(run, "frame_32")["networks"], 2e-2)
    elastic, fixed = (curve(tmp_path / name) for name in ("elastic", "fixed"))
    assert elastic.keys() == fixed.keys()
    for epoch, loss in fixed.items():
        assert elastic[epoch] == pytest.approx(loss, rel=0.05)
    with capsys.disabled():
        sys.stdout.writelines(f"\n{line}" for line in [*pauses(run), f"mean losses: {elastic} elastic, {fixed} fixed"])


def pauses(run: Path) -> list[str]:
    """What each change of the workers cost, from the last step before it to the first after it."""
    found: list[str] = []
    changes: list[dict[str, Any]] = []
    last = 0.0
    for row in read_jsonl(run / "frame_32" / METRICS):
        if row["kind"] == "resume":
            changes.append(row)
        elif row["kind"] == "step":
            found += [f"{row['time'] - last:.1f} s until it went on: {change['text']}" for change in changes]
            changes, last = [], row["time"]
    return found


def curve(run: Path) -> dict[int, float]:
    """Mean loss of each epoch over its logged steps; of steps that were repeated the last time counts.

    The mean in an epoch's own row is no measure here: after an interruption it is over the rest of the epoch alone.
    """
    losses = {(row["epoch"], row["step"]): row["total"] for row in rows(run, "frame_32", "step")}
    epochs = sorted({epoch for epoch, _ in losses})
    return {epoch: fmean(loss for (e, _), loss in losses.items() if e == epoch) for epoch in epochs}
