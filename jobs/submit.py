"""Runs a command as a job of a Ray cluster and follows it, as if it ran here."""

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
"""What is sent, of what lies beside this package: the code, and in a checkout what it takes to install it."""

HERE = frozenset({"quickstart", "doctor"})
"""Commands about the machine they are typed on."""

ALONE = frozenset({"synth", "import-lawdnet", "export-segments", "infer", "evaluate", "compare"})
"""Commands that work hard without Ray's help: they get a CPU of a worker, as the head may have none to spare."""

PATIENCE_SECONDS = 300.0
"""How long a head that does not answer is asked again; a job that runs does not need us."""
SILENCE_SECONDS = 120.0
"""After a log has said nothing for so long it is asked for anew: a connection can die without a word."""
PAUSE_SECONDS = 2.0

QUIET = (
    "dashboard.modules.dashboard_sdk",
    "dashboard.modules.job.sdk",
    "_private.runtime_env.packaging",
    "_private.authentication.http_token_authentication",
)
"""Ray's modules that tell of every step of a submission."""


@dataclass(frozen=True)
class Cluster:
    """Where jobs go, and how."""

    address: str
    """Of the job server: `http://HEAD:8265`."""
    runtime_env: Path | None = None
    """A YAML file with a runtime environment of Ray; without it the cluster's machines have what the code needs."""
    detach: bool = False
    """Whether to leave when the job is submitted."""

    def __post_init__(self) -> None:
        if not self.address.startswith(("http://", "https://")):
            raise console.WrongUsage(f"--address {self.address}: give that of the job server, such as http://HEAD:8265")


class Command(TyperCommand):
    """A command that becomes a job, with the words it was given, where `ctx.obj` is a cluster."""

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
                    f"{ctx.info_name} is about this machine; leave out --address and LAWDNET_ADDRESS"
                )
            console.check_places(ctx.params)
            words = shlex.join(["python", "-m", self.callback.__module__, *ctx.meta[__name__]])
            # in the place of the shell, which would leave it behind when a machine's Ray is killed
            code = submit(ctx.obj, f"exec {words}", _resources(ctx.info_name, ctx.params))
        raise typer.Exit(code)


def _resources(name: str, params: dict[str, Any]) -> dict[str, Any]:
    """What the job's own process is given, as arguments of `JobSubmissionClient.submit_job`."""
    if name not in ALONE:
        return {}
    if str(params.get("device", "")).startswith("cuda"):
        return {"entrypoint_num_cpus": 1, "entrypoint_num_gpus": 1}
    from pipelines.cluster.resources import TRAIN, away_from

    return {"entrypoint_num_cpus": 1, "entrypoint_label_selector": away_from(TRAIN)}


def submit(cluster: Cluster, entrypoint: str, resources: Mapping[str, Any] | None = None) -> int:
    """Submits a command line and follows its log; where the very same is running already, that is followed instead.

    The result goes to stdout, all else to stderr.

    Args:
        resources: further arguments of `JobSubmissionClient.submit_job`.

    Returns:
        The exit code of the job; 0 where it was only submitted, 130 where it or the following was stopped.

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
            console.say(f"the job goes on; run the same command again to follow it, or stop it: {stop}")
            return 130


def _set_environment() -> None:
    """What Ray reads when it is imported: it must not have been."""
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # they would win over the address given
        os.environ.pop(name, None)
    # with it the client sends the token that it finds, if any
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
        raise ValueError(f"{address}: {says}; put the cluster's into ~/.ray/auth_token or RAY_AUTH_TOKEN, and do not "
                         "set RAY_AUTH_MODE=disabled") from None  # fmt: skip
    except (ConnectionError, requests.RequestException) as error:
        raise ValueError(f"{address}: no job server answers; is the head up, and the tunnel to it?") from error


def _runtime_env(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    import yaml
    from ray.runtime_env import RuntimeEnv

    try:
        read = yaml.safe_load(file.read_text(encoding="utf8"))
        if not isinstance(read, dict):
            raise ValueError("write KEY: VALUE lines")
        if unknown := {*map(str, read)} - RuntimeEnv.known_fields:
            raise ValueError(f"unknown {', '.join(sorted(unknown))}")
        content: dict[str, Any] = dict(RuntimeEnv(**read))
    except (TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: no runtime environment of Ray: {error}") from None
    if "working_dir" in content:
        raise ValueError(f"{file}: leave working_dir out; it becomes the code of lawdnet")
    return content


@contextmanager
def _code() -> Iterator[str]:
    """A folder with the code of this installation and nothing else, whatever lies around it."""
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory(prefix="lawdnet-") as folder:
        for part in (root / name for name in PARTS):
            if part.is_dir():
                shutil.copytree(part, Path(folder, part.name))  # Ray leaves out __pycache__
            elif part.exists():
                shutil.copy(part, folder)
        yield folder


def _lives(job: JobDetails) -> bool:
    return not job.status.is_terminal()


def _follow(client: JobSubmissionClient, job: str, address: str) -> JobDetails:
    """Shows the job's log until it ends.

    Raises:
        ValueError: the cluster is gone, or has forgotten the job.
    """
    import aiohttp

    log, lost = Log(), 0.0
    while True:
        with suppress(OSError, RuntimeError, aiohttp.ClientError):  # what is wrong, the next question says better
            asyncio.run(_tail(client, job, log))
        try:
            details = client.get_job_info(job)
        except (OSError, RuntimeError) as error:
            if "status code 404" in str(error):
                raise ValueError(f"{address}: does not know job {job} any more, as its head was started again; run the "
                                 "same command again, it goes on where the job was") from None  # fmt: skip
            lost = lost or time.monotonic()
            if time.monotonic() - lost > PATIENCE_SECONDS:
                again = f"the same command follows job {job} again"
                raise ValueError(f"{address}: does not answer any more; {again}") from error
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
    """A job's log, taken apart: the result to stdout, the other lines to stderr, each line once."""

    def __init__(self) -> None:
        self.shown = self.place = 0
        self.rest = ""
        self.is_result = False

    def begin(self) -> None:
        """What comes now is the log from its first line, though some of it may have been shown."""
        self.place, self.rest = 0, ""

    def feed(self, text: str) -> None:
        """The next piece, which may end within a line."""
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.place += 1
            if self.place > self.shown:
                self.shown = self.place
                self._show(line)

    def end(self) -> None:
        """Nothing more comes."""
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
    """That of the command, as a shell would give it.

    Raises:
        ValueError: the command did not come to an end of its own.
    """
    code = job.driver_exit_code
    if code is not None:
        return int(code if code >= 0 else 128 - code)
    if job.status == "STOPPED":
        console.say("the job was stopped; run the same command again to go on")
        return 130
    raise ValueError(f"job {job.submission_id}: {job.message}")
