"""Networks in processes of their own: the same rows, whatever becomes of those processes."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from lawdnet.data.config import BuildConfig
from lawdnet.data.manifest import Dataset
from lawdnet.landmarks import make_source
from lawdnet.landmarks.base import SOURCES
from lawdnet.networks import Network
from lawdnet.types import Rejected, RejectReason
from lawdnet.video import VideoWriter, probe
from pipelines.build import build as driver
from pipelines.build.build import build
from pipelines.build.network_worker import NetworkWorker
from pipelines.build.networks import RemoteNetworks
from pipelines.build.task import BuildJob
from tests.pipelines.build.test_build_resume import content
from tests.support.asked_networks import DIES, HANGS, RAISES, AskedFaces, AskingTask, asking, processes
from tests.support.drawn_clip import copies, copy
from tests.support.in_process import map_in_process
from tests.support.tiny_networks import need, whisper_variables, write_hubert, write_whisper

ROOT = Path(__file__).resolve().parents[3]
NAMES = ["a.mp4", "b.mp4", "c.mp4"]


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, AskedFaces.name, AskedFaces)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("transformers")
    folder = tmp_path_factory.mktemp("weights")
    write_hubert(folder / "tiny")
    write_whisper(folder / "whisper-tiny.en.bin", whisper_variables())
    return folder


@pytest.fixture(scope="module")
def source(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copies(drawn, tmp_path_factory.mktemp("source"), NAMES, csv=False)


@pytest.fixture(scope="module")
def points(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The points of the first frame, where every face of these tests is."""
    video = probe(drawn)
    nothing = np.zeros((0, 0, 3), np.uint8)
    faces = make_source("openface").faces(video, ((tick, nothing) for tick in range(video.num_frames)))
    path = tmp_path_factory.mktemp("points") / "points.npy"
    np.save(path, next(iter(faces))[0].points_68x2)
    return path


def config(points: Path, folder: Path, features: tuple[str, ...] = ("mel",), **options: Any) -> BuildConfig:
    folder.mkdir()
    asked = {"points": str(points), "folder": str(folder), **options}
    hubert = {"hubert": {"model": "tiny"}} if "hubert" in features else {}
    return BuildConfig(
        crop_width=80, val_fraction=0.0, landmarks="asked", features=features, options={"asked": asked} | hubert
    )


def one_stage(task: type, *rest: Any, **options: Any) -> Any:
    """The networks in the worker, in this process."""
    return map_in_process(AskingTask, *rest, **options)


def rows(dataset: Dataset) -> dict[str, tuple[str, str]]:
    return {row["path"]: (row["status"], row["reason"]) for row in dataset.videos().to_pylist()}


def same_but_for_options(one: Dataset, other: Dataset) -> bool:
    """Whether readers see the same; the tests' own options name other folders."""
    return content(one)[:3] == content(other)[:3]


@pytest.mark.usefixtures("ray_session")
def test_rows_are_those_of_one_stage(source: Path, points: Path, weights: Path, tmp_path: Path) -> None:
    features = ("mel", "hubert", "whisper")
    datasets = []
    for name, execute in (("one", one_stage), ("pool", asking())):
        settings = config(points, tmp_path / f"{name}_calls", features)
        datasets.append(build(source, tmp_path / name, settings, weights_dir=weights, execute=execute))
    assert rows(datasets[0]) == dict.fromkeys(NAMES, ("accepted", ""))
    assert same_but_for_options(*datasets)
    assert processes(tmp_path / "one_calls") == [os.getpid()]
    (other,) = processes(tmp_path / "pool_calls")
    assert other != os.getpid()


@pytest.mark.usefixtures("ray_session")
def test_a_network_worker_is_killed_in_the_middle(source: Path, points: Path, tmp_path: Path) -> None:
    undisturbed = build(source, tmp_path / "one", config(points, tmp_path / "one_calls"), execute=one_stage)
    settings = config(points, tmp_path / "calls", dies_at=5)
    dataset = build(source, tmp_path / "dataset", settings, execute=asking())
    assert same_but_for_options(dataset, undisturbed)
    assert len(processes(tmp_path / "calls")) == 2


def film(path: Path, width: int) -> None:
    frames_THW3 = np.random.default_rng(0).integers(0, 256, (60, 96, width, 3), np.uint8)
    sound = np.random.default_rng(0).normal(0, 0.1, 60 * 640).astype(np.float32)
    with VideoWriter(path, height=96, width=width, audio=sound, sample_rate=16000) as writer:
        for frame_HW3 in frames_THW3:
            writer.write(frame_HW3)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_network_fails_for_one_video_each(source: Path, points: Path, tmp_path: Path) -> None:
    """It raises, hangs, or ends its process: a reason for that video, and nothing for the others."""
    with_bad = tmp_path / "source"
    shutil.copytree(source, with_bad)
    for name, width in {"raises.mp4": RAISES, "hangs.mp4": HANGS, "dies.mp4": DIES}.items():
        film(with_bad / name, width)
    undisturbed = build(source, tmp_path / "one", config(points, tmp_path / "one_calls"), execute=one_stage)
    settings = config(points, tmp_path / "calls")
    dataset = build(with_bad, tmp_path / "dataset", settings, stall_seconds=8.0, execute=asking())
    assert rows(dataset) == dict.fromkeys(NAMES, ("accepted", "")) | {
        "raises.mp4": ("failed", "internal_error"),
        "hangs.mp4": ("rejected", "timeout"),
        "dies.mp4": ("rejected", "crash"),
    }
    said = {row["path"]: row["detail"] for row in dataset.videos().to_pylist()}
    assert said["raises.mp4"] == "ArithmeticError: the network saw something odd"
    assert said["hangs.mp4"] == "a network gave no answer for 8 s"
    assert said["dies.mp4"].startswith("ended the process of a network 3 times")
    assert content(dataset)[:2] == content(undisturbed)[:2]
    assert len(processes(tmp_path / "calls")) == 5, "one hung, and three died"


def test_without_a_gpu_or_without_a_network_there_is_one_stage(
    drawn: Path, points: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(driver, "NetworkPool", lambda *_: pytest.fail("a pool is made"))
    asked: list[float] = []

    def told(task: type, *rest: Any, gpu: float, **options: Any) -> Any:
        asked.append(gpu)
        return map_in_process(AskingTask, *rest, gpu=gpu, **options)

    copy(drawn, tmp_path / "source" / "a.mp4")
    build(tmp_path / "source", tmp_path / "a", config(points, tmp_path / "calls"), gpu=0.0, execute=told)
    assert not caplog.records
    build(tmp_path / "source", tmp_path / "b", BuildConfig(crop_width=80), gpu=0.5, execute=told)
    assert [record.getMessage() for record in caplog.records] == [
        "--gpu: nothing in this build computes on a GPU, so CPUs do the work"
    ]
    assert asked == [0.0, 0.0]


class Told:
    """What a network is given."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, values_B: np.ndarray) -> np.ndarray:
        self.sizes.append(len(values_B))
        if (values_B < 0).any():
            raise ValueError("negative")
        return 2 * values_B


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def worker(ray_session: None, told: Told, tmp_path: Path) -> Iterator[NetworkWorker]:
    """A network worker in this process, which joins calls."""
    job = BuildJob(root=str(tmp_path), config=BuildConfig())
    networks = {"double": Network(told, 8), "single": Network(told)}
    worker = NetworkWorker(lambda _: networks, job, True)
    yield worker
    asyncio.run(worker.close())


def answers(worker: NetworkWorker, name: str, *given: list[float], is_retry: bool = False) -> list[Any]:
    """Make several calls at once."""

    async def ask() -> list[Any]:
        calls = [worker.compute(f"{n}", name, is_retry, np.array(values)) for n, values in enumerate(given)]
        return await asyncio.gather(*calls, return_exceptions=True)

    found = asyncio.run(ask())
    return [one if isinstance(one, Exception) else one.tolist() for one in found]


def test_calls_are_joined_and_a_network_sees_full_batches_only(worker: NetworkWorker, told: Told) -> None:
    given = [[1.0, 2.0], [3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0], [10.0]]
    assert answers(worker, "double", *given) == [[2 * value for value in values] for values in given]
    assert set(told.sizes) == {8}
    assert len(told.sizes) < len(given)
    told.sizes.clear()
    assert answers(worker, "double", [1.0], [2.0], is_retry=True) == [[2.0], [4.0]]
    assert told.sizes == [8, 8], "what a worker may have died of is computed alone"
    told.sizes.clear()
    assert answers(worker, "single", [1.0], [2.0, 3.0]) == [[2.0], [4.0, 6.0]]
    assert told.sizes == [1, 2]


def test_an_error_is_that_of_its_call_alone(worker: NetworkWorker, told: Told) -> None:
    good, bad, other = answers(worker, "double", [1.0], [-2.0], [3.0])
    assert (good, other) == ([2.0], [6.0])
    assert str(bad) == "negative"
    (missing,) = answers(worker, "triple", [1.0])
    assert isinstance(missing, KeyError)
    assert answers(worker, "double", [1.0]) == [[2.0]]


def test_a_video_that_ended_three_processes_is_refused(worker: NetworkWorker, told: Told) -> None:
    for _ in range(3):
        worker._attempts.begin("0")  # as processes do that die of it
    (refusal,) = answers(worker, "double", [1.0], is_retry=True)
    assert isinstance(refusal, Rejected)
    assert refusal.reason == RejectReason.CRASH
    assert not told.sizes


class Elsewhere:
    """A handle of a network worker that says it is on some node."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.place = self

    def remote(self) -> Any:
        return ray.put(self.node)


@pytest.mark.usefixtures("ray_session")
def test_network_workers_of_the_own_node_come_first() -> None:
    here = ray.get_runtime_context().get_node_id()
    own, far, farther = Elsewhere(here), Elsewhere("far"), Elsewhere("farther")

    def used(*workers: Elsewhere) -> list[Elsewhere]:
        remote = RemoteNetworks(workers, 300.0)
        return [remote._choose(lambda: None) for _ in range(4)]

    assert used(far, own) == [own] * 4
    assert used(far, farther) == [farther, far] * 2


LOGICAL = """
import sys
from pathlib import Path
import ray
ray.init(address="local", num_cpus=2, num_gpus=1, log_to_driver=False)
from lawdnet.data.config import BuildConfig
from pipelines.build.build import build
from pipelines.cluster import resources
resources.quiet_data()
config = BuildConfig(crop_width=80, features=("hubert",), options={"hubert": {"model": "tiny"}})
build(Path(sys.argv[1]), Path(sys.argv[2]), config, weights_dir=Path(sys.argv[3]), gpu=float(sys.argv[4]))
"""


@pytest.mark.slow
def test_a_build_with_shares_of_a_gpu(drawn: Path, weights: Path, tmp_path: Path) -> None:
    """The GPU is Ray's word for it only; a Ray of its own, as that of the session has none."""
    for name in NAMES:
        copy(drawn, tmp_path / "source" / name)
    for gpu in ("0", "0.5"):
        command = [sys.executable, "-c", LOGICAL, str(tmp_path / "source"), str(tmp_path / gpu), str(weights), gpu]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=200)
    assert content(Dataset(tmp_path / "0")) == content(Dataset(tmp_path / "0.5"))
    assert rows(Dataset(tmp_path / "0")) == dict.fromkeys(NAMES, ("accepted", ""))
