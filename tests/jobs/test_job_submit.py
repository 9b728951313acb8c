"""The jobs on a real cluster: from the shell, from Ray's client, and by `lawdnet --address` from an empty folder."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from jobs.synth import synth
from lawdnet.video import probe
from tests.support.ray_heads import ENVIRONMENT, RAY, Head, ray_head

ROOT = Path(__file__).resolve().parents[2]
LAWDNET = [sys.executable, "-c", "from jobs.cli import main; main()"]
TINY = [word for setting in ("epochs_constant=1", "epochs_decay=0", "samples_per_segment=2", "batch_size=2")
        for word in ("--set", f"frame_32.{setting}")]  # fmt: skip
TIMEOUT = 180


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as head:
        yield head


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    synth(folder, videos=2, seconds=2.4, seed=1)
    (folder / "empty.mp4").touch()
    return folder


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """An empty folder to submit from."""
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def begin(folder: Path, command: list[str], **variables: str) -> subprocess.Popen[str]:
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for the process, and return its exit code, stdout and stderr."""
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    return process.returncode, out, err


def lawdnet(head: Head, folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start `lawdnet` with LAWDNET_ADDRESS set."""
    return begin(folder, [*LAWDNET, *words], LAWDNET_ADDRESS=head.address)


def ray_job_submit(head: Head, *words: str) -> subprocess.Popen[str]:
    """Start `ray job submit` in a checkout."""
    return begin(ROOT, [str(RAY), "job", "submit", "--address", head.address, "--working-dir", ".", "--", *words])


def until(process: subprocess.Popen[str], words: str) -> None:
    """Read the process's stderr up to a line with these words."""
    assert process.stderr is not None
    lines = [""]
    while words not in lines[-1]:
        lines.append(process.stderr.readline())
        assert lines[-1], lines


def client_submit(head: Head, entrypoint: str) -> tuple[JobStatus, str]:
    """Run a job through Ray's Python client until it ends."""
    client = JobSubmissionClient(head.address)
    job = client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": str(ROOT)})
    deadline = time.monotonic() + TIMEOUT
    while not (status := client.get_job_status(job)).is_terminal():
        assert time.monotonic() < deadline, client.get_job_logs(job)
        time.sleep(0.3)
    return status, client.get_job_logs(job)


def test_three_jobs_at_once(head: Head, corpus: Path, empty: Path, tmp_path: Path) -> None:
    """One is submitted, detached and followed; one fails; one is given a relative path through `ray job submit`."""
    dataset, missing = tmp_path / "dataset", tmp_path / "missing"
    words = ["build", str(corpus), "--out", str(dataset), "--crop-width", "160", "--set", "val_fraction=0", "--json"]
    code, out, err = end(lawdnet(head, empty, "--detach", *words))
    assert code == 0, err
    job = out.strip()
    assert re.fullmatch(r"raysubmit_\w+", job)
    assert f"submitted as job {job}; to stop it: ray job stop {job} --address {head.address}" in err

    build = lawdnet(head, empty, *words)
    lost = lawdnet(head, empty, "build", str(missing), "--out", f"{tmp_path}/lost")
    relative = ray_job_submit(head, "python", "-m", "jobs.build_dataset", "corpus", "--out", f"{tmp_path}/lost")
    code, out, err = end(build)
    assert code == 0, err
    assert f"already runs as job {job}" in err
    assert "build 3/3 videos" in err
    assert "\r" not in err
    content = json.loads(out)
    assert content["videos"] == {"all": 3, "accepted": 2, "rejected": 1, "failed": 0}
    assert content["reasons"]["empty_file"]["examples"][0]["path"] == "empty.mp4"
    assert json.loads((dataset / "dataset.json").read_text(encoding="utf8"))["counts"]["segments"] == 2

    code, out, err = end(lost)
    assert (code, out) == (1, ""), err
    assert err.splitlines()[-1].endswith(f"error: {missing}: no such file or folder")
    assert "Traceback" not in err

    code, out, _ = end(relative)
    assert code == 1
    assert "error: corpus: a job does not run in this folder; give an absolute path" in out
    assert not (tmp_path / "lost").exists()
    assert not list(empty.iterdir())


def is_running(*words: str) -> bool:
    lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return any(all(word in line for word in words) for line in lines)


@pytest.mark.slow
def test_build_train_render(head: Head, corpus: Path, empty: Path, tmp_path: Path) -> None:
    dataset, run, out = (str(tmp_path / name) for name in ("dataset", "run", "rendered"))
    command = ["python", "-m", "jobs.build_dataset", str(corpus), "--out", dataset, "--crop-width", "160"]
    code, log, err = end(ray_job_submit(head, *command, "--set", "val_fraction=0"))
    assert code == 0, log + err
    assert "2 of 3 used" in log

    command = ["python", "-m", "jobs.train", dataset, "--out", run, "--preset", "small", "--stages", "frame_32", *TINY]
    status, log = client_submit(head, " ".join(command))
    assert status == JobStatus.SUCCEEDED, log
    assert "train 1/1 epochs: frame_32 1/1 loss" in log
    assert (Path(run) / "frame_32" / "epoch_0001" / "state.pt").is_file()

    words = ["render", run, "--videos", str(corpus), "--speeches", str(corpus / "drawn_001.mp4"), "--out", out]
    code, answer, err = end(lawdnet(head, empty, *words, "--json"))
    assert code == 0, err
    content = json.loads(answer)
    assert content["rendered"] == 2
    one, other = (probe(path).num_frames for path in Path(out).glob("*.mp4"))
    assert one == other == content["frames"] / 2 >= 60


@pytest.mark.slow
def test_following_can_be_stopped_and_so_can_the_job(head: Head, empty: Path, tmp_path: Path) -> None:
    words = ["synth", str(tmp_path / "many"), "--videos", "1000", "--seconds", "60"]
    follower = lawdnet(head, empty, *words)
    until(follower, "Running entrypoint")
    follower.send_signal(signal.SIGINT)
    code, _, err = end(follower)
    assert code == 130
    assert "the job keeps running; run the same command again to follow it, or stop it: ray job stop" in err
    assert "Traceback" not in err

    client = JobSubmissionClient(head.address)
    (job,) = (j.submission_id for j in client.list_jobs() if "jobs.synth" in j.entrypoint)
    assert job is not None
    assert client.get_job_status(job) == JobStatus.RUNNING
    follower = lawdnet(head, empty, *words)
    until(follower, "Running entrypoint")
    client.stop_job(job)
    code, _, err = end(follower)
    assert code == 130
    assert err.splitlines()[-1] == "the job was stopped; run the same command again to resume"


@pytest.mark.slow
def test_a_head_with_a_token_is_restarted(corpus: Path, empty: Path, tmp_path: Path) -> None:
    token = "b" * 64
    words = ["build", str(corpus), "--out", str(tmp_path / "dataset"), "--crop-width", "160"]
    with ray_head(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token) as head:
        command = [*LAWDNET, "--address", head.address]
        code, _, err = end(begin(empty, [*command, *words], RAY_AUTH_MODE="disabled"))
        assert "asks for a token" in err
        code, _, err = end(begin(empty, [*command, *words], RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="c" * 64))
        assert "refuses the token" in err
        code, out, err = end(begin(empty, [*command, *words], RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token))
        assert code == 0, err
        assert "2 of 3 used" in out
        assert token not in out + err

        words = ["synth", str(tmp_path / "many"), "--videos", "1000"]
        follower = begin(empty, [*command, *words], RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
        until(follower, "Running entrypoint")
        head.kill()
        deadline = time.monotonic() + 30
        while is_running("jobs.synth", words[1]):
            assert time.monotonic() < deadline, "the job outlives its cluster"
            time.sleep(0.5)
        head.start(node_cpus=2)
        code, _, err = end(follower)
        assert code == 1
        assert "because its head was restarted; run the same command again" in err.splitlines()[-1]
