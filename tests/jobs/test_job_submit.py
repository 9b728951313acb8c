"""The jobs on a real cluster: a head as an operator starts it, jobs from the shell and from the Python client."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from jobs.synth import synth

ROOT = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).with_name("ray")
ENVIRONMENT = {
    **os.environ,
    "RAY_AUTH_MODE": "disabled",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # Ray Data leaves an actor behind that a SIGTERM waits for
    "PATH": f"{RAY.parent}:{os.environ['PATH']}",
}


@dataclass(frozen=True)
class Head:
    """A running head node."""

    dashboard: str
    gcs: str


def free_port() -> int:
    """A free port outside 10002 … 19999, which Ray gives to its workers."""
    while True:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = int(listener.getsockname()[1])
        if not 10002 <= port <= 19999:
            return port


def processes_of(folder: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if any(folder in word for word in process.cmdline()) and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # sockets lie below it, and their names must be short
    with tempfile.TemporaryDirectory(prefix="rj", dir="/tmp", ignore_cleanup_errors=True) as folder:
        port, dashboard = free_port(), free_port()
        command = [
            str(RAY), "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}",
            "--dashboard-host=127.0.0.1", f"--temp-dir={folder}", "--num-cpus=2", "--object-store-memory=200000000",
            "--disable-usage-stats",
        ]  # fmt: skip
        with (Path(folder) / "head.log").open("w+") as log:
            process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log, cwd=folder)
        try:
            wait_for(dashboard, process)
            yield Head(dashboard=f"http://127.0.0.1:{dashboard}", gcs=f"127.0.0.1:{port}")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            left = processes_of(folder)
            for child in left:
                child.kill()
            psutil.wait_procs(left, timeout=10)


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "ray start ended"
        try:
            JobSubmissionClient(f"http://127.0.0.1:{port}").list_jobs()
            return
        except (ConnectionError, RuntimeError):
            time.sleep(0.5)
    pytest.fail("the job server did not answer within 60 s")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    synth(folder, videos=2, seconds=2.4, seed=1)
    (folder / "empty.mp4").touch()
    return folder


def submit(head: Head, entrypoint: str) -> tuple[JobStatus, str]:
    """A job through the Python client, to its end."""
    client = JobSubmissionClient(head.dashboard)
    job = client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": str(ROOT)})
    deadline = time.monotonic() + 150
    while not (status := client.get_job_status(job)).is_terminal():
        assert time.monotonic() < deadline, client.get_job_logs(job)
        time.sleep(0.3)
    return status, client.get_job_logs(job)


def test_build_then_train(head: Head, corpus: Path, tmp_path: Path) -> None:
    dataset, run = tmp_path / "dataset", tmp_path / "run"
    command = [
        str(RAY), "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--",
        "python", "-m", "jobs.build_dataset", str(corpus), "--out", str(dataset), "--crop-width", "160",
        "--set", "val_fraction=0",
    ]  # fmt: skip
    built = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=150, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "build 3/3 videos" in built.stdout
    assert "2 of 3 used" in built.stdout
    counts = json.loads((dataset / "dataset.json").read_text(encoding="utf8"))["counts"]
    assert (counts["segments"], counts["reasons"]) == (2, {"empty_file": 1})

    settings = "--set frame_64.epochs_constant=1 --set frame_64.epochs_decay=0 --set frame_64.samples_per_segment=2"
    settings += " --set frame_64.batch_size=2"
    train = f"python -m jobs.train {dataset} --out {run} --preset small --stages frame_64 {settings}"
    status, log = submit(head, train)
    assert status == JobStatus.SUCCEEDED, log
    assert "train 1/1 epochs: frame_64 1/1 loss" in log
    assert (run / "frame_64" / "epoch_0001" / "state.pt").is_file()


def test_a_job_that_fails_says_why_in_one_line(head: Head, tmp_path: Path) -> None:
    status, log = submit(head, f"python -m jobs.build_dataset {tmp_path}/missing --out {tmp_path}/dataset")
    assert status == JobStatus.FAILED
    assert f"error: {tmp_path}/missing: no such file or folder" in log
    assert "Traceback" not in log
    assert not (tmp_path / "dataset").exists()


def test_a_job_with_a_relative_out_is_refused(head: Head, tmp_path: Path) -> None:
    status, log = submit(head, f"python -m jobs.build_dataset {tmp_path} --out dataset")
    assert status == JobStatus.FAILED
    assert "dataset: would be in the job's own copy of the code" in log
