"""Who gets which part of a cluster: builds, trainers, those who draw samples, and shares of a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.data import ExecutionResources

from lawdnet.training.virtual_ranks import Workers
from pipelines.cluster import resources
from pipelines.train.elastic import scaling
from tests.support.drawn_clip import copy
from tests.support.ray_heads import ENVIRONMENT, Head, ray_head
from tests.support.runs import TINY, grey

ROOT = Path(__file__).resolve().parents[3]


def options() -> ray.data.ExecutionOptions:
    return ray.data.DataContext.get_current().execution_options


def test_a_build_stays_away_from_trainers(ray_session: None) -> None:
    before = options().label_selector
    with resources.beside_training(uses_gpus=False):
        assert options().label_selector == {"lawdnet-role": "!train"}
        assert options().exclude_resources == ExecutionResources(cpu=0)  # this machine's own Ray is all for the build
    assert options().label_selector == before
    with resources.beside_training(uses_gpus=True):
        assert options().label_selector is None


def test_a_build_spares_cpus_where_others_work_too(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    with resources.beside_training(uses_gpus=False):
        assert options().exclude_resources == ExecutionResources(cpu=resources.SPARED_CPUS)
    assert options().exclude_resources == ExecutionResources.zero()
    nodes = [
        {"Alive": True, "Resources": {"CPU": 16}, "Labels": {"lawdnet-role": role}} for role in ("train", "preprocess")
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    with resources.beside_training(uses_gpus=False):
        assert options().exclude_resources == ExecutionResources(cpu=0)


def test_trainers_stay_away_from_builders() -> None:
    assert scaling(Workers(1, 2), gpu=False).label_selector == {"lawdnet-role": "!preprocess"}
    assert scaling(Workers(2, 2), gpu=True).label_selector == {"lawdnet-role": "!preprocess"}


def test_a_trainer_draws_with_the_cpus_that_its_node_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU its share but one CPU; only nodes that may train count, and the smallest of them."""

    def node(cpus: float, gpus: float, role: str = "train") -> dict[str, Any]:
        return {"Alive": True, "Resources": {"CPU": cpus, "GPU": gpus}, "Labels": {"lawdnet-role": role}}

    builder, nodes = node(8, 4, "preprocess"), [node(16, 2), node(64, 4), {**node(2, 1), "Alive": False}]
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    for there, wanted in (([], 2), ([builder], 2), ([builder, *nodes], 6), (nodes[1:], 12), ([node(2, 2)], 0)):
        monkeypatch.setattr(ray, "nodes", lambda there=there: there)
        assert resources.loaders(2, gpu=True) == wanted
    assert resources.loaders(2, gpu=False) == 0
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [resources.loaders(n, gpu=True) for n in (1, 2, 4, 8, 9)] == [7, 3, 1, 0, 0]
    assert [resources.loaders(n, gpu=False) for n in (1, 4, 8)] == [1, 1, 0]
    assert scaling(Workers(2, 2), gpu=True, loaders=3).resources_per_worker == {"CPU": 4, "GPU": 1}


def test_cpus_of_nodes_that_are_alive_count(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = ({}, {"lawdnet-role": "train"}, {"lawdnet-role": "preprocess"})
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0**n}, "Labels": found} for n, found in enumerate(labels)]
    dead = {"Alive": False, "Resources": {"CPU": 1000.0}, "Labels": {}}
    head = {"Alive": True, "Resources": {}, "Labels": {}}
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, dead, head])
    assert resources.cpus() == 21


@pytest.mark.parametrize(
    ("gpus", "share", "wanted"),
    [(1, 1.0, 1), (1, 0.25, 4), (2, 0.4, 4), (3, 0.1, 30), (2, 0.7, 2), (5, 2.0, 2), (0, 0.5, 1), (0, 0.0, 1)],
)
def test_network_workers_follow_from_the_gpus(
    gpus: float, share: float, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its share of one GPU, or whole ones; a cluster without a GPU is asked for one."""
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": gpus})
    assert resources.network_workers(share) == wanted
    monkeypatch.delenv("RAY_ADDRESS")
    if share and not gpus:
        with pytest.raises(ValueError, match="--gpu: no GPU on this machine"):
            resources.network_workers(share)


GPU_DRIVER = """
import json, sys
from pathlib import Path
import ray
from lawdnet.data.config import BuildConfig
from pipelines.build.build import build
ray.init(num_cpus=3, num_gpus=1, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False)
used = []
def note(progress):
    used.append(1 - ray.available_resources().get("GPU", 0))
source, root = map(Path, sys.argv[1:3])
build(source, root, BuildConfig(crop_width=80, val_fraction=0.0), gpu=float(sys.argv[3]), on_progress=note)
print(json.dumps(used))
"""


@pytest.fixture
def ray_folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="rs", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.mark.slow
def test_each_worker_of_a_build_takes_its_share_of_a_gpu(drawn: Path, tmp_path: Path, ray_folder: str) -> None:
    """On a GPU that Ray is told of: three workers could have a CPU, and one of 0.4 each leaves room for two."""
    for number in range(12):
        copy(drawn, tmp_path / "source" / f"{number}.mp4")
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": ray_folder}
    command = [sys.executable, "-c", GPU_DRIVER, str(tmp_path / "source"), str(tmp_path / "dataset"), "0.4"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    used = json.loads(done.stdout.splitlines()[-1])
    assert len(used) == 12
    assert max(used) == pytest.approx(0.8)


VIDEOS = 300


@pytest.fixture
def three_cpus() -> Iterator[Head]:
    with ray_head(node_cpus=3) as head:
        yield head


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_training_and_a_build_get_on_side_by_side(three_cpus: Head, drawn: Path, tmp_path: Path) -> None:
    """The build has begun first and could use every CPU: training still starts, streams, and ends before it."""
    dataset = grey(tmp_path / "grey")
    for number in range(VIDEOS):
        copy(drawn, tmp_path / "source" / f"{number}.mp4")
    environment = {**ENVIRONMENT, "RAY_ADDRESS": f"127.0.0.1:{three_cpus.port}", "PYTHONPATH": str(ROOT)}
    built, run = tmp_path / "built", tmp_path / "run"
    build_line = ["jobs.build_dataset", str(tmp_path / "source"), "--out", str(built), "--crop-width", "80"]
    settings = [word for setting in [*TINY, "stages.epochs_constant=2"] for word in ("--set", setting)]
    train_line = ["jobs.train", str(dataset.root), "--out", str(run), "--preset", "small", "--stages", "frame_32",
                  "--workers", "1", "--validate-every", "0", *settings]  # fmt: skip

    def start(line: list[str]) -> subprocess.Popen[str]:
        log = (tmp_path / f"{line[0]}.log").open("w")
        return subprocess.Popen(
            [sys.executable, "-m", *line], cwd=ROOT, env=environment, stdout=log, stderr=log, text=True
        )

    def done() -> int:
        return len(list((built / "segments").glob("*.parquet")))

    build = start(build_line)
    try:
        deadline = time.monotonic() + 120
        while not done() and time.monotonic() < deadline and build.poll() is None:
            time.sleep(0.2)
        before = done()
        assert before, (tmp_path / "jobs.build_dataset.log").read_text()
        train = start(train_line)
        try:
            assert train.wait(400) == 0, (tmp_path / "jobs.train.log").read_text()
        finally:
            train.kill()
        meanwhile = done()
        assert build.poll() is None, "the build left nothing to be shared"
        assert before < meanwhile < VIDEOS
        assert (run / "frame_32" / "epoch_0002").is_dir()
        assert build.wait(400) == 0, (tmp_path / "jobs.build_dataset.log").read_text()
        assert done() == VIDEOS
    finally:
        build.kill()
