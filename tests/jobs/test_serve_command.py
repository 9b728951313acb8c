"""`lawdnet serve` as a process: it starts, answers, and ends cleanly; and what it refuses."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from jobs import serve as serve_module
from jobs.cli import app
from pipelines.serve.config import read_keys
from tests.support.serving import finished, small_generator, speech, until

runner = CliRunner()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_generator(tmp_path_factory.mktemp("network") / "clip_96" / "epoch_0001")


@contextmanager
def served(*arguments: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The URL of a server in a process of its own."""
    command = [sys.executable, "-c", "from jobs.cli import main; main()", "serve", *arguments, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
    assert process.stderr
    try:
        line = process.stderr.readline()
        found = re.search(r"serving at (http://\S+)", line)
        assert found, line + process.stderr.read()
        yield found[1], process
    finally:
        process.kill()
        process.wait()


def test_it_serves_survives_a_kill_and_ends_with_ctrl_c(network: Path, drawn: Path, tmp_path: Path) -> None:
    arguments = (str(network), "--template", f"anna={drawn}", "--data", str(tmp_path / "data"), "--device", "cpu")
    with served(*arguments) as (url, process), httpx.Client(base_url=url, timeout=30) as client:
        until(lambda: client.get("/readyz").status_code == 200, 60)
        done = client.post("/v1/videos", files={"audio": speech(tmp_path / "a.wav").read_bytes()}).json()
        assert finished(client, done)["state"] == "succeeded"
        content = client.get(done["urls"]["content"]).content
        long = client.post("/v1/videos", files={"audio": speech(tmp_path / "b.wav", 20).read_bytes()}).json()
        until(lambda: client.get(long["urls"]["self"]).json()["frames"] > 2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with served(*arguments) as (url, process), httpx.Client(base_url=url, timeout=30) as client:
        assert client.get(done["urls"]["content"]).content == content
        ended = finished(client, long)
        assert (ended["state"], ended["frames"]) == ("succeeded", 500)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr
        assert process.stderr.read() == "stopped; run the same command again to resume\n"


def test_others_may_only_come_with_a_key(network: Path, tmp_path: Path) -> None:
    answer = runner.invoke(app, ["serve", str(network), "--host", "0.0.0.0"], env={"LAWDNET_API_KEY": ""})
    assert answer.exit_code == 2
    assert "other machines could use this server; give a key with --api-key-file or LAWDNET_API_KEY" in answer.stderr
    keys = tmp_path / "keys"
    keys.write_text("# ours\nshort\n")
    answer = runner.invoke(app, ["serve", str(network), "--api-key-file", str(keys)])
    assert (answer.exit_code, "an API key has 5 characters" in answer.stderr) == (2, True)
    assert "short" not in answer.stderr.replace("too short", "")


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text("# ours\n\n0123456789abcdef\n fedcba9876543210 \n")
    monkeypatch.setenv("LAWDNET_API_KEY", "aaaaaaaaaaaaaaaa")
    keys = read_keys(tmp_path / "keys")
    assert keys == ("aaaaaaaaaaaaaaaa", "0123456789abcdef", "fedcba9876543210")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--template", "anna"], "--template anna: write NAME=VALUE"),
        (["--set", "audio_secs=3"], "unknown key 'audio_secs' (did you mean audio_seconds?)"),
        (["--set", "queue=0"], "queue: 0 must be more than 0"),
        (["--landmarks", "x"], "landmarks: unknown 'x'"),
        (["--template", "a=x.mp4", "--template", "a=y.mp4"], "--template a: given twice"),
    ],
)
def test_wrong_usage(arguments: list[str], text: str, network: Path, tmp_path: Path) -> None:
    answer = runner.invoke(app, ["serve", str(network), "--data", str(tmp_path), *arguments])
    assert answer.exit_code == 2, answer.output
    assert text in answer.stderr


def test_a_bad_template_or_checkpoint_is_one_line(network: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_text("no video")
    words = ["serve", str(network), "--data", str(tmp_path / "data"), "--template", f"a={tmp_path}/bad.mp4"]
    answer = runner.invoke(app, words)
    assert answer.exit_code == 1
    assert "bad.mp4: video: not a known video or audio format" in answer.stderr
    answer = runner.invoke(app, ["serve", str(tmp_path / "nothing"), "--data", str(tmp_path / "data")])
    assert answer.exit_code == 1
    assert str(tmp_path / "nothing") in answer.stderr


def test_without_its_packages_it_names_the_extra(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_module, "NEEDS", ("fastapi", "no_such_package"))
    answer = runner.invoke(app, ["serve", str(network)])
    assert answer.exit_code == 1
    assert "serve needs no_such_package; in a checkout of lawdnet, run: pip install" in answer.stderr
    assert "'.[serve]'" in answer.stderr
