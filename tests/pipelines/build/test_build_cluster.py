"""Nodes go and come while a dataset is built, on a cluster of its own: minutes, most of them Ray's own waiting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lawdnet.data.manifest import Dataset
from pipelines.build.build import build
from tests.pipelines.build.test_build_resume import CONFIG, content
from tests.support.drawn_clip import copy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[3]
VIDEOS = 400

DRIVER = """
import json, sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
import ray
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
def add():
    # one that anything may use would be left to training
    return cluster.add_node(num_cpus=1, labels={"lawdnet-role": "preprocess"})

nodes = [add() for _ in range(int(sys.argv[3]))]
ray.init(address=cluster.address, log_to_driver=False)
from lawdnet.data.config import BuildConfig
from pipelines.cluster import resources
from pipelines.build.build import build
resources.quiet_data()
began, rows, failure = time.monotonic(), [], []

def on_progress(progress):
    record = progress.record
    rows.append({"path": record.path, "status": record.status, "at": time.monotonic() - began})

def work():
    try:
        build(Path(sys.argv[1]), Path(sys.argv[2]), BuildConfig(crop_width=80), on_progress=on_progress)
    except BaseException as error:
        failure.append(repr(error))

def wait(what, seconds=180):
    end = time.monotonic() + seconds
    while time.monotonic() < end and thread.is_alive():
        if what():
            return
        time.sleep(0.1)
    raise SystemExit(f"waited in vain: {rows} {failure}")

thread = threading.Thread(target=work)
thread.start()
wait(lambda: len(rows) >= 3)
changed = time.monotonic() - began
if sys.argv[4] == "remove":
    cluster.remove_node(nodes.pop(), allow_graceful=False)
else:
    nodes.append(add())
    wait(lambda: ray.cluster_resources().get("CPU") == 2 and ray.available_resources().get("CPU", 0) == 0)
used = time.monotonic() - began
thread.join(300)
assert not thread.is_alive() and not failure, failure
ray.shutdown()
cluster.shutdown()
print(json.dumps({"rows": rows, "changed": changed, "used": used}))
"""


@pytest.fixture
def ray_folder() -> Iterator[str]:
    """Where the cluster leaves its address: elsewhere, every `ray.init` of this machine would join it."""
    with tempfile.TemporaryDirectory(prefix="rb", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.fixture(scope="module")
def source(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for number in range(VIDEOS):
        copy(drawn, folder / f"{number:02d}.mp4")
    return folder


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return build(source, tmp_path_factory.mktemp("undisturbed") / "dataset", CONFIG)


def disturbed(source: Path, root: Path, ray_folder: str, nodes: int, change: str) -> dict[str, Any]:
    """Builds on a cluster of one-CPU nodes that changes after three videos."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": ray_folder,
                   "RAY_ADDRESS": "auto"}  # fmt: skip
    command = [sys.executable, "-c", DRIVER, str(source), str(root), str(nodes), change]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def test_a_node_goes(
    source: Path, undisturbed: Dataset, tmp_path: Path, ray_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = disturbed(source, tmp_path / "dataset", ray_folder, 2, "remove")
    assert sorted(row["path"] for row in said["rows"]) == sorted(path.name for path in source.glob("*.mp4"))
    assert {row["status"] for row in said["rows"]} == {"accepted"}
    assert content(Dataset(tmp_path / "dataset")) == content(undisturbed)
    after = min(row["at"] for row in said["rows"] if row["at"] > said["changed"])
    with capsys.disabled():
        sys.stdout.write(f"\nnode removed: the next video was done {after - said['changed']:.1f} s later\n")


def test_a_node_comes(
    source: Path, undisturbed: Dataset, tmp_path: Path, ray_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = disturbed(source, tmp_path / "dataset", ray_folder, 1, "add")
    assert content(Dataset(tmp_path / "dataset")) == content(undisturbed)
    with capsys.disabled():
        sys.stdout.write(f"\nnode added: at work {said['used'] - said['changed']:.1f} s later\n")
