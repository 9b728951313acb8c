"""Every example of docs/serving.md works."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from jobs.cli import app
from lawdnet.serving.limits import Limits
from lawdnet.video import probe
from pipelines.serve.app import AppConfig
from tests.support.command_lines import parse
from tests.support.serving import Running, finished, speech, until

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "serving.md").read_text(encoding="utf8")
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, drawn: Path, network: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the files that the examples name."""
    shutil.copy(drawn, tmp_path / "anna.mp4")
    shutil.copy(drawn.with_suffix(".csv"), tmp_path / "anna.csv")
    speech(tmp_path / "hello.wav", 0.4)
    speech(tmp_path / "goodbye.wav", 0.8)
    (tmp_path / "run").symlink_to(network)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_shell_examples(folder: Path, server: Running, client: httpx.Client) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    video_id = ""
    ran = 0
    for line in SHELL:
        words = line.replace("-F video=@anna.mp4", "-F video=@anna.mp4 -F landmarks=@anna.csv")
        done = subprocess.run(
            ["/bin/sh", "-c", words],
            env={**os.environ, "URL": server.url, "ID": video_id},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, (line, done.stderr, done.stdout)
        ran += 1
        if line.startswith("curl -sf -F audio=@hello.wav -F template"):
            video_id = re.findall(r'"id":"(\w{32})"', done.stdout)[0]
        if "events" in line:
            assert '"state":"succeeded"' in done.stdout
        if line.endswith("name=bert $URL/v1/templates"):
            until(lambda: client.get("/v1/templates/bert").json()["state"] == "ready")
    assert ran >= 10
    assert probe(folder / "made.mp4").num_frames == probe(folder / "answer.mp4").num_frames == 10
    assert (folder / "part.mp4").read_bytes() == (folder / "made.mp4").read_bytes()[:100]


def test_the_client_of_ten_lines(folder: Path, server: Running) -> None:
    (code,) = (code for code in PYTHON if "import httpx" in code)
    exec(compile(code, "docs/serving.md", "exec"), {"url": server.url})
    assert probe(folder / "out.mp4").num_frames == 10


def test_the_engine_of_ten_lines(folder: Path) -> None:
    (code,) = (code for code in PYTHON if "from lawdnet import Engine" in code)
    exec(compile(code, "docs/serving.md", "exec"), {"__name__": "example"})
    assert (probe(folder / "hello.mp4").num_frames, probe(folder / "goodbye.mp4").num_frames) == (10, 20)


def test_the_commands_are_valid(folder: Path, server: Running) -> None:
    commands = re.findall(r"^    (lawdnet .+)$", TEXT, re.MULTILINE)
    assert [parse(app, shlex.split(command)[1:]) for command in commands] == ["serve"]
    (infer,) = re.findall(r"`(lawdnet infer --url [^`]+)`", TEXT)
    words = shlex.split(infer.replace("$URL", server.url))[1:]
    assert CliRunner().invoke(app, words).exit_code == 0


def test_every_limit_and_argument_is_described() -> None:
    for found in fields(Limits):
        assert f"`{found.name}`" in TEXT, found.name
    for found in fields(AppConfig):
        assert found.name == "workers" or f"`{found.name}`" in TEXT, found.name


def test_its_table_of_states_is_complete(client: httpx.Client, tmp_path: Path) -> None:
    answer = client.post("/v1/videos", files={"audio": speech(tmp_path / "a.wav").read_bytes()})
    assert finished(client, answer.json())["state"] == "succeeded"
    for name in ("state", "place", "frames", "total", "progress", "problem", "summary", "expires"):
        assert name in answer.json()
        assert f"`{name}`" in TEXT
