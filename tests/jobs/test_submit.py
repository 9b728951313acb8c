"""`lawdnet --address` without a cluster: what is sent, what is refused, and how a job's log is split."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import ZipFile

import pytest
import yaml
from packaging.requirements import Requirement
from ray._private import ray_constants
from ray._private.runtime_env.packaging import create_package
from ray.job_submission import JobStatus
from ray.runtime_env import RuntimeEnv
from typer.testing import CliRunner

from jobs import console, submit
from jobs.cli import app

ROOT = Path(__file__).resolve().parents[2]
NOWHERE = "http://127.0.0.1:9"
MAX_UPLOAD_BYTES = 5 * 2**20
NO_LOCATIONS = {
    "best", "device", "face", "feature", "features", "gate", "group_by", "has", "host", "landmarks", "logger", "model",
    "name", "names", "order", "preset", "region", "root", "save_every", "segment", "settings", "split", "stages",
    "template", "video", "url", "where", "workers",
}  # fmt: skip
"""Text parameters of commands that are not the path or URI of a file or folder."""
runner = CliRunner()


def callbacks() -> list[Any]:
    return [command.callback for command in app.registered_commands]


def test_every_location_is_known() -> None:
    """A new text parameter belongs in `console.LOCATIONS`, or in NO_LOCATIONS above."""
    found = {
        name
        for callback in callbacks()
        for name, parameter in inspect.signature(callback).parameters.items()
        if re.search(r"\bstr\b", str(parameter.annotation))
    }
    assert not console.LOCATIONS & NO_LOCATIONS
    assert found <= console.LOCATIONS | NO_LOCATIONS, found - console.LOCATIONS - NO_LOCATIONS


def test_every_command_is_a_module_that_runs_it() -> None:
    for callback in callbacks():
        source = inspect.getsource(import_module(callback.__module__))
        assert ast.unparse(ast.parse(source).body[-1]).endswith(f"console.run({callback.__name__})")


@pytest.mark.parametrize(
    "words",
    [
        ["build", "corpus", "--out", "/dataset"],
        ["build", "/corpus", "--out", "dataset"],
        ["build", "s3://b/corpus", "--out", "s3://b/dataset", "--sync", "run"],
        ["train", "./dataset", "--out", "/run"],
        ["train", "/dataset", "--out", "/run", "--init", "old.pth"],
        ["merge", "/a", "b", "--out", "/c"],
        ["inspect", "/dataset", "--html", "page.html"],
        ["evaluate", "run", "/dataset"],
        ["infer", "/run", "--video", "v.mp4", "--audio", "/a.wav", "--out", "/o.mp4"],
    ],
)
def test_a_relative_path_is_refused_before_anything_is_sent(words: list[str]) -> None:
    answer = runner.invoke(app, ["--address", NOWHERE, *words])
    assert answer.exit_code == 2, answer.output
    assert "a job does not run in this folder; give an absolute path" in answer.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--address", NOWHERE, "doctor"], "doctor runs on this machine only"),
        (["--address", NOWHERE, "quickstart"], "quickstart runs on this machine only"),
        (["--address", "head:8265", "inspect", "/dataset"], "such as http://HEAD:8265"),
        (["--detach", "inspect", "/dataset"], "add --address"),
        (["--address", NOWHERE, "build", "/corpus"], "--out"),
        (
            ["--address", NOWHERE, "--runtime-env", str(ROOT / "README.md"), "inspect", "/d"],
            "not a valid Ray runtime environment",
        ),
    ],
)
def test_what_cannot_be_submitted(words: list[str], says: str) -> None:
    answer = runner.invoke(app, words, env={"COLUMNS": "200"})
    assert answer.exit_code in (1, 2)
    assert says in answer.output
    assert "Traceback" not in answer.output


class Head(BaseHTTPRequestHandler):
    """A job server that asks for the token "right" and knows nothing else."""

    def do_GET(self) -> None:
        said = self.headers.get("Authorization", "")
        code = 401 if not said else 403 if said != f"Bearer {'right' * 8}" else 404
        self.send_response(code)
        self.end_headers()
        self.wfile.write(b"no")

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def guarded() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Head)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_missing_head(guarded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", guarded)  # must not win over the given URL
    answer = runner.invoke(app, ["inspect", "/dataset"], env={"LAWDNET_ADDRESS": NOWHERE})
    assert answer.exit_code == 1
    assert (
        answer.output == f"error: {NOWHERE}: no job server answers; check that the head and the tunnel to it are up\n"
    )


@pytest.mark.parametrize(
    ("token", "says"),
    [("", "asks for a token"), ("wrong" * 8, "refuses the token"), ("right" * 8, "404")],
    ids=["none", "wrong", "right"],
)
def test_tokens(guarded: str, token: str, says: str, tmp_path: Path) -> None:
    """The token is found where Ray keeps it, without RAY_AUTH_MODE, and is never shown."""
    if token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text(token, encoding="utf8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    answer = subprocess.run(
        [sys.executable, "-c", "from jobs.cli import main; main()", "--address", guarded, "inspect", "/dataset"],
        env=environment | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    (line,) = answer.stderr.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert (answer.returncode, answer.stdout) == (1, "")
    assert not token or token not in line


def test_the_log_is_split(capsys: pytest.CaptureFixture[str]) -> None:
    whole = "one\n--- result\n{\n  a\n}\n--- end of result\ntwo\tb\x1b[2J\nlast"
    log = submit.Log()
    log.begin()
    for start in range(0, len(whole), 7):
        log.feed(whole[start : start + 7])
        if start == 21:  # the connection broke
            log.begin()
            log.feed(whole[: start + 7])
    log.end()
    assert capsys.readouterr() == ("{\n  a\n}\n", "one\ntwo b\\x1b[2J\nlast\n")


class Flaky:
    """A client whose connection breaks and falls silent, and whose head does not answer for a while."""

    def __init__(self, answers: list[str | Exception]) -> None:
        self.answers, self.tails = answers, 0

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        self.tails += 1
        yield "one\ntw"
        if self.tails == 1:
            raise RuntimeError("WebSocket connection closed unexpectedly")
        yield "o\n"
        if self.tails == 2:
            await asyncio.sleep(5)
            raise AssertionError("still listening")
        yield "three\n"

    def get_job_info(self, job: str) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(status=JobStatus(answer), submission_id=job)


def test_a_lost_connection_is_reopened(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(submit, "SILENCE_SECONDS", 0.1)
    client: Any = Flaky(["RUNNING", ConnectionError("no"), "SUCCEEDED"])
    assert submit._follow(client, "j", NOWHERE).status == JobStatus.SUCCEEDED
    assert capsys.readouterr() == ("", "one\ntwo\nthree\n")
    monkeypatch.setattr(submit, "PATIENCE_SECONDS", 0.0)
    for error, says in [
        (ConnectionError("no"), "stopped answering; run the same command again to follow job j"),
        (RuntimeError("Request failed with status code 404"), "no longer knows job j, because its head was restarted"),
    ]:
        client = Flaky([error, error])
        with pytest.raises(ValueError, match=says):
            submit._follow(client, "j", NOWHERE)


def test_a_job_marks_its_result_and_prints_the_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(console.IN_JOB, "{}")
    console.say("hello")
    console.result({"a": 1}, ["a 1"], as_json=False)
    out, err = capsys.readouterr()
    assert out == "--- result\na 1\n--- end of result\n"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d hello\n", err)


@pytest.mark.parametrize(
    ("words", "resources"),
    [
        (["build", "/a", "--out", "/b"], {}),
        (["train", "/a", "--out", "/b", "--gpu"], {}),
        (["synth", "/a"], {"entrypoint_num_cpus": 1, "entrypoint_label_selector": {"lawdnet-role": "!train"}}),
        (["evaluate", "/a", "/b", "--device", "cuda:0"], {"entrypoint_num_cpus": 1, "entrypoint_num_gpus": 1}),
    ],
)
def test_what_is_submitted(words: list[str], resources: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def fake(*given: Any) -> int:
        seen.append(given)
        return 3

    monkeypatch.setattr(submit, "submit", fake)
    answer = runner.invoke(app, ["--address", NOWHERE, "--detach", *words, "--debug"])
    assert answer.exit_code == 3, answer.output
    module = {"build": "build_dataset"}.get(words[0], words[0])
    entrypoint = f"exec python -m jobs.{module} {' '.join(words[1:])} --debug"
    assert seen == [(submit.Cluster(NOWHERE, detach=True), entrypoint, resources)]


@pytest.mark.parametrize(
    ("status", "driver", "code"), [("SUCCEEDED", 0, 0), ("FAILED", 3, 3), ("FAILED", -9, 137), ("STOPPED", None, 130)]
)
def test_exit_codes(status: str, driver: int | None, code: int) -> None:
    job: Any = SimpleNamespace(status=status, driver_exit_code=driver, message="", submission_id="j")
    assert submit._exit_code(job) == code


def test_a_job_that_did_not_start_says_why() -> None:
    job: Any = SimpleNamespace(status="FAILED", driver_exit_code=None, message="no such package", submission_id="j")
    with pytest.raises(ValueError, match="j: no such package"):
        submit._exit_code(job)


def packed(folder: Path, target: Path) -> set[str]:
    """Return the files that Ray puts into the archive of a working directory, which must be small."""
    create_package(
        str(folder), target, include_gitignore=True, excludes=ray_constants.get_runtime_env_default_excludes()
    )
    assert target.stat().st_size < MAX_UPLOAD_BYTES
    return set(ZipFile(target).namelist())


def test_only_the_code_is_sent(tmp_path: Path) -> None:
    with submit._code() as folder:
        sent = packed(Path(folder), tmp_path / "sent.zip")
    assert {name.split("/")[0] for name in sent} == set(submit.PARTS)
    assert {"lawdnet/templates/run.html.j2", "jobs/runtime_env.yaml"} <= sent
    assert not [name for name in sent if "__pycache__" in name]
    assert packed(ROOT, tmp_path / "checkout.zip") == sent, ".rayignore must let through what `lawdnet --address` sends"


def test_the_runtime_environment() -> None:
    """Ray accepts it; packages and versions come from the project's own files, which are sent with the code."""
    content = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text(encoding="utf8"))
    assert RuntimeEnv(**content)["uv"]["packages"] == content["uv"]["packages"]
    here = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"
    (package,) = (Requirement(text) for text in content["uv"]["packages"])
    assert (package.name, package.url) == ("lawdnet", f"file://{here}")
    assert content["uv"]["uv_pip_install_options"] == [f"--constraint={here}/constraints.txt"]
    assert {"pyproject.toml", "constraints.txt"} <= set(submit.PARTS)
    with pytest.raises(ValueError, match="working_dir"):
        submit._runtime_env(_written(content | {"working_dir": "."}))


def _written(content: dict[str, Any]) -> Any:
    return SimpleNamespace(read_text=lambda encoding: yaml.safe_dump(content))
