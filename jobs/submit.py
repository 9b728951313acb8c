"""Runs a command as a job on a Ray cluster and follows its log, as if it ran here."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from jobs import console

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

PARTS = ("lawdnet", "pipelines", "jobs", "pyproject.toml", "README.md", "constraints.txt")
"""What a job sends to the cluster: the code, and in a checkout the files that install it."""

HERE = frozenset({"quickstart", "weights", "doctor", "serve"})
"""Commands that only make sense on this machine."""

ALONE = frozenset({"synth", "import-lawdnet", "export-segments", "infer", "evaluate", "compare"})
"""Commands that do their work in the job's own process: it gets a CPU of a worker node, not of the head."""

PATIENCE_SECONDS = 300.0
"""How long to keep asking a head that does not answer; the job itself runs on without us."""
SILENCE_SECONDS = 120.0
"""Reconnect to a log that has been silent for this long: a connection can die without an error."""
PAUSE_SECONDS = 2.0
"""Pause before asking for the job's state or log again."""

QUIET = (
    "dashboard.modules.dashboard_sdk",
    "dashboard.modules.job.sdk",
    "_private.runtime_env.packaging",
    "_private.authentication.http_token_authentication",
)
"""Loggers of Ray that report every step of a submission."""


@dataclass(frozen=True)
class Cluster:
    """The cluster that runs a command, and how to submit it."""

    address: str
    """URL of the job server, such as `http://HEAD:8265`."""
    runtime_env: Path | None = None
    """YAML file with a Ray runtime environment; None if the cluster's machines already have what the code needs."""
    detach: bool = False
    """Whether to return as soon as the job is submitted."""

    def __post_init__(self) -> None:
        if not self.address.startswith(("http://", "https://")):
            raise console.WrongUsage(
                f"--address {self.address}: must be the URL of the job server, such as http://HEAD:8265"
            )


class Command(TyperCommand):
    """A command that runs as a job, with the same arguments, if `ctx.obj` is a Cluster."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[__name__] = tuple(args)
        rest: list[str] = super().parse_args(ctx, args)
        return rest

    def invoke(self, ctx: Any) -> Any:
        if ctx.obj is None:
            return super().invoke(ctx)
        with console.failures(ctx.params["debug"]):
            if ctx.info_name in HERE:
                raise console.WrongUsage(
                    f"{ctx.info_name} runs on this machine only; leave out --address and unset LAWDNET_ADDRESS"
                )
            console.check_locations(ctx.params)
            words = shlex.join(["python", "-m", self.callback.__module__, *ctx.meta[__name__]])
            # exec replaces the shell: when a node's Ray is killed, the shell would leave the command running
            code = submit(ctx.obj, f"exec {words}", _resources(ctx.info_name, ctx.params))
        raise typer.Exit(code)


def _resources(name: str, params: dict[str, Any]) -> dict[str, Any]:
    """Return the resources of the job's own process, as arguments of `JobSubmissionClient.submit_job`."""
    if name not in ALONE:
        return {}
    if str(params.get("device", "")).startswith("cuda"):
        return {"entrypoint_num_cpus": 1, "entrypoint_num_gpus": 1}
    from pipelines.cluster.resources import TRAIN, away_from

    return {"entrypoint_num_cpus": 1, "entrypoint_label_selector": away_from(TRAIN)}


def submit(cluster: Cluster, entrypoint: str, resources: Mapping[str, Any] | None = None) -> int:
    """Submit a command line as a job and follow its log; if the same command line is already running, follow that job.

    The result goes to stdout, everything else to stderr.

    Args:
        resources: further arguments of `JobSubmissionClient.submit_job`.

    Returns:
        The exit code of the job; 0 if it was only submitted, 130 if the user stopped it or stopped following it.

    Raises:
        ValueError: the cluster cannot be reached, wants another token, or lost the job.
    """
    _set_environment()
    env = _runtime_env(cluster.runtime_env)
    with _plain_errors(cluster.address):
        client = _client(cluster.address)
        job = next((j.submission_id for j in client.list_jobs() if j.entrypoint == entrypoint and _lives(j)), None)
        state = "already runs as" if job else "submitted as"
        if job is None:
            with _code() as folder:
                env["working_dir"] = folder
                job = client.submit_job(entrypoint=entrypoint, runtime_env=env, **(resources or {}))
        stop = f"ray job stop {job} --address {cluster.address}"
        console.say(f"{state} job {job}; to stop it: {stop}")
        if cluster.detach:
            print(job, flush=True)
            return 0
        try:
            return _exit_code(_follow(client, job, cluster.address))
        except KeyboardInterrupt:
            console.say(f"the job keeps running; run the same command again to follow it, or stop it: {stop}")
            return 130


def _set_environment() -> None:
    """Set the environment variables that Ray reads when it is first imported."""
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # they would override --address
        os.environ.pop(name, None)
    # in this mode the client sends a token if it finds one
    os.environ.setdefault("RAY_AUTH_MODE", "token")


def _client(address: str) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    for name in QUIET:
        logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)
    return JobSubmissionClient(address)


@contextmanager
def _plain_errors(address: str) -> Iterator[None]:
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        says = "refuses the token" if "failed" in str(error) else "asks for a token"
        raise ValueError(
            f"{address}: {says}; put the cluster's token into ~/.ray/auth_token or RAY_AUTH_TOKEN, and do not set "
            "RAY_AUTH_MODE=disabled"
        ) from None
    except (ConnectionError, requests.RequestException) as error:
        raise ValueError(
            f"{address}: no job server answers; check that the head and the tunnel to it are up"
        ) from error


def _runtime_env(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    import yaml
    from ray.runtime_env import RuntimeEnv

    try:
        read = yaml.safe_load(file.read_text(encoding="utf8"))
        if not isinstance(read, dict):
            raise ValueError("must be KEY: VALUE lines")
        if unknown := {*map(str, read)} - RuntimeEnv.known_fields:
            raise ValueError(f"unknown key {', '.join(sorted(unknown))}")
        content: dict[str, Any] = dict(RuntimeEnv(**read))
    except (TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: not a valid Ray runtime environment: {error}") from None
    if "working_dir" in content:
        raise ValueError(f"{file}: remove working_dir; lawdnet sends its own code there")
    return content


@contextmanager
def _code() -> Iterator[str]:
    """Yield a temporary folder with a copy of this installation's code, without anything that lies beside it."""
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory(prefix="lawdnet-") as folder:
        for part in (root / name for name in PARTS):
            if part.is_dir():
                # other processes write there while we read
                shutil.copytree(part, Path(folder, part.name), ignore=shutil.ignore_patterns("__pycache__"))
            elif part.exists():
                shutil.copy(part, folder)
        yield folder


def _lives(job: JobDetails) -> bool:
    return not job.status.is_terminal()


def _follow(client: JobSubmissionClient, job: str, address: str) -> JobDetails:
    """Show the job's log until it ends.

    Raises:
        ValueError: the cluster stopped answering, or no longer knows the job.
    """
    import aiohttp

    log = Log()
    lost = 0.0
    while True:
        with suppress(OSError, RuntimeError, aiohttp.ClientError):  # get_job_info below gives the better error
            asyncio.run(_tail(client, job, log))
        try:
            details = client.get_job_info(job)
        except (OSError, RuntimeError) as error:
            if "status code 404" in str(error):
                raise ValueError(
                    f"{address}: no longer knows job {job}, because its head was restarted; run the same command again "
                    "to resume"
                ) from None
            lost = lost or time.monotonic()
            if time.monotonic() - lost > PATIENCE_SECONDS:
                again = f"run the same command again to follow job {job}"
                raise ValueError(f"{address}: stopped answering; {again}") from error
        else:
            if not _lives(details):
                log.end()
                return details
            lost = 0.0
        time.sleep(PAUSE_SECONDS)


async def _tail(client: JobSubmissionClient, job: str, log: Log) -> None:
    clock = asyncio.get_running_loop().time
    log.begin()
    async with asyncio.timeout(SILENCE_SECONDS) as limit:
        async for text in client.tail_job_logs(job):
            limit.reschedule(clock() + SILENCE_SECONDS)
            log.feed(text)


class Log:
    """Shows a job's log: the result on stdout, the other lines on stderr, each line once."""

    def __init__(self) -> None:
        self.shown = 0
        self.line = 0
        self.rest = ""
        self.is_result = False

    def begin(self) -> None:
        """Start again at the first line of the log; lines that were shown are skipped."""
        self.line = 0
        self.rest = ""

    def feed(self, text: str) -> None:
        """Take the next piece of the log, which may end within a line."""
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.line += 1
            if self.line > self.shown:
                self.shown = self.line
                self._show(line)

    def end(self) -> None:
        """Show the last line, even if it has no line break."""
        if self.rest:
            self.feed("\n")

    def _show(self, line: str) -> None:
        if line in (console.RESULT_BEGINS, console.RESULT_ENDS):
            self.is_result = line == console.RESULT_BEGINS
        elif self.is_result:
            print(line, flush=True)
        else:
            console.say(line.replace("\t", " "))


def _exit_code(job: JobDetails) -> int:
    """Return the command's exit code as a shell would.

    Raises:
        ValueError: the command did not end by itself.
    """
    code = job.driver_exit_code
    if code is not None:
        return int(code if code >= 0 else 128 - code)
    if job.status == "STOPPED":
        console.say("the job was stopped; run the same command again to resume")
        return 130
    raise ValueError(f"job {job.submission_id}: {job.message}")
