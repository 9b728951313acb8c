"""The groups of cluster.yaml under Ray's own autoscaler; its provider starts nodes as processes on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lawdnet.data.manifest import Dataset
from pipelines.cluster.resources import PREPROCESS, TRAIN
from tests.support.drawn_clip import copy
from tests.support.ray_heads import ENVIRONMENT, Head, free_port
from tests.support.runs import grey

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
HEAD = "ray.head.default"
"""The name that the provider gives it."""
STORE_BYTES = 100_000_000
VIDEOS = 450

DRIVER = """
import json, sys, threading, time
from pathlib import Path
import ray
from pipelines.cluster import resources

def build(source, root):
    from lawdnet.data.config import BuildConfig
    from pipelines.build.build import build
    build(source, root, BuildConfig(crop_width=80, val_fraction=0.0))

def train(dataset, run):
    from lawdnet.data.manifest import Dataset
    from lawdnet.training.options import RunOptions
    from lawdnet.training.virtual_ranks import Workers
    from pipelines.train.train import train
    from tests.support.runs import tiny
    train(Dataset(dataset), run, tiny(["frame_32"]), RunOptions(workers=Workers(1, 1), validate_every=0))

def roles():
    nodes = [node for node in ray.nodes() if node["Alive"] and "node:__internal_head__" not in node["Resources"]]
    return sorted(node["Labels"].get(resources.ROLE, "") for node in nodes)

work = {"build": build, "train": train}[sys.argv[1]]
with resources.cluster():
    began, seen = time.monotonic(), []
    thread = threading.Thread(target=work, args=[Path(word) for word in sys.argv[2:]])
    thread.start()
    while thread.is_alive() or (roles() and time.monotonic() - ended < 120):
        now = roles()
        if not seen or seen[-1]["nodes"] != now:
            seen.append({"second": round(time.monotonic() - began, 1), "nodes": now, "working": thread.is_alive()})
        if thread.is_alive():
            ended = time.monotonic()
        time.sleep(0.2)
    seen.append({"second": round(time.monotonic() - began, 1), "nodes": roles(), "working": False})
print(json.dumps(seen))
"""


def simulated(gcs: str) -> dict[str, Any]:
    """Return cluster.yaml with small machines of this provider; groups, labels and limits are unchanged."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf8"))
    groups = config["available_node_types"]
    groups[HEAD] = groups.pop("head")
    for group, cpus, most in (("builder", 1, 2), ("trainer", 2, 1)):
        sizes = {"CPU": cpus, "object_store_memory": STORE_BYTES}
        groups[group]["resources"] = groups[group]["resources"] | sizes
        groups[group]["max_workers"] = most
    for group in groups.values():
        group["node_config"] = {}
    stages = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return config | {
        "head_node_type": HEAD,
        "max_workers": 3,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external", "module": PROVIDER, "gcs_address": gcs, "launch_multiple": True,
            "use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True,
        },
        "auth": {}, "docker": {}, "file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False,
        "rsync_exclude": [], "rsync_filter": [], **{f"{stage}_commands": [] for stage in stages},
    }  # fmt: skip


class Autoscaling(Head):
    """A head that starts nodes when work waits for them."""

    def start(self, node_cpus: int = 0) -> None:
        file = Path(self.folder) / "cluster.yaml"
        file.write_text(yaml.safe_dump(simulated(f"127.0.0.1:{self.port}")), encoding="utf8")
        self._ray("--head", f"--port={self.port}", f"--dashboard-port={self.dashboard_port}", "--num-cpus=0",
                  f"--ray-client-server-port={free_port()}", "--dashboard-host=127.0.0.1",
                  f"--temp-dir={self.folder}", f"--autoscaling-config={file}")  # fmt: skip
        self._wait(nodes=1)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # as `ray up` and KubeRay do, so that autoscaler v2 runs: v1 ignores labels
    simulation = {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "RAY_NODE_TYPE_NAME": HEAD,
                  "RAY_CLOUD_INSTANCE_ID": "f" * 51 + "00000", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="ra", dir="/tmp", ignore_cleanup_errors=True) as folder:
        found = Autoscaling(folder, {**ENVIRONMENT, **simulation, "RAY_TMPDIR": folder})
        try:
            found.start()
            yield found
        finally:
            found.stop()


def watch(head: Head, *words: str) -> list[dict[str, Any]]:
    """Run a driver, and record the nodes until they are gone: seconds, labels, and whether the driver still works."""
    environment = {**ENVIRONMENT, "RAY_ADDRESS": f"127.0.0.1:{head.port}", "PYTHONPATH": str(ROOT)}
    environment["RAY_DATA_MIN_GAP_BETWEEN_AUTOSCALING_REQUESTS"] = (
        "1"  # the default of 10 s is long for a build of a minute
    )
    command = [sys.executable, "-c", DRIVER, *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    seen: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    sys.stdout.write("\n".join(f"{row['second']:6.1f} s  {row['nodes']}" for row in seen) + "\n")
    return seen


def test_a_queued_build_starts_only_builders_and_they_stop(head: Head, drawn: Path, tmp_path: Path) -> None:
    """More videos wait than builders can be started, but no trainer is started for its CPUs."""
    source, root = tmp_path / "source", tmp_path / "dataset"
    for number in range(VIDEOS):
        copy(drawn, source / f"{number}.mp4")
    seen = watch(head, "build", str(source), str(root))
    assert seen[0]["nodes"] == []
    assert any(row["nodes"] == [PREPROCESS] * 2 and row["working"] for row in seen)
    assert {role for row in seen for role in row["nodes"]} == {PREPROCESS}
    assert seen[-1]["nodes"] == []
    assert Dataset(root).info["counts"]["segments"] == VIDEOS


def test_training_starts_only_trainers_and_they_stop(head: Head, tmp_path: Path) -> None:
    """For the worker and for the tasks that draw its samples."""
    seen = watch(head, "train", str(grey(tmp_path / "dataset").root), str(tmp_path / "run"))
    assert seen[0]["nodes"] == []
    assert {role for row in seen for role in row["nodes"]} == {TRAIN}
    assert seen[-1]["nodes"] == []
    assert (tmp_path / "run" / "frame_32" / "epoch_0001").is_dir()
