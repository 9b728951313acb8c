"""A real Ray cluster on this machine, started as an operator starts it: a head without CPUs, and a node that works."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import requests

RAY = Path(sys.executable).with_name("ray")
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "LAWDNET_ADDRESS")},
    "RAY_AUTH_MODE": "disabled",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # Ray Data leaves an actor behind that a SIGTERM waits for
    "PATH": f"{RAY.parent}:{os.environ['PATH']}",
}
SECONDS = 150


def free_port() -> int:
    """A free port outside 10002 … 19999, which Ray gives to its workers."""
    while True:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = int(listener.getsockname()[1])
        if not 10002 <= port <= 19999:
            return port


@dataclass(frozen=True)
class Head:
    """A running cluster; `start` again after `kill` is a head that knows nothing of the one before."""

    folder: str
    environment: Mapping[str, str]
    port: int = field(default_factory=free_port)
    dashboard_port: int = field(default_factory=free_port)

    @property
    def address(self) -> str:
        """Of the job server."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    def start(self, node_cpus: int) -> None:
        self._ray("--head", f"--port={self.port}", f"--dashboard-port={self.dashboard_port}", "--num-cpus=0",
                  f"--ray-client-server-port={free_port()}", "--dashboard-host=127.0.0.1",
                  f"--temp-dir={self.folder}")  # fmt: skip
        self._wait(nodes=1)
        # a folder of its own, as on a machine of its own: a node unpacks a job's code anew even where the head has
        # already unpacked it, and a job that runs there meanwhile would find half of its modules gone
        self._ray(f"--address=127.0.0.1:{self.port}", f"--num-cpus={node_cpus}", f"--temp-dir={self.folder}/n")
        self._wait(nodes=2)

    def _ray(self, *options: str) -> None:
        command = [str(RAY), "start", "--block", f"--dashboard-agent-listen-port={free_port()}",
                   "--object-store-memory=100000000", "--disable-usage-stats", *options]  # fmt: skip
        with (Path(self.folder) / "start.log").open("a") as log:
            subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, cwd=self.folder)

    def _wait(self, nodes: int) -> None:
        token = self.environment.get("RAY_AUTH_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            try:
                answer = requests.get(f"{self.address}/api/v0/nodes", headers=headers, timeout=10).json()
                if len([n for n in answer["data"]["result"]["result"] if n["state"] == "ALIVE"]) >= nodes:
                    return
            except (requests.RequestException, KeyError, TypeError):
                pass
            time.sleep(0.3)
        pytest.fail(f"no cluster of {nodes} nodes within {SECONDS} s: {Path(self.folder, 'start.log').read_text()}")

    def processes(self) -> list[psutil.Process]:
        """Those of `ray start`, which name a port of ours, and those below, which name the folder."""
        marks = (self.folder, f"--port={self.port}", f"--address=127.0.0.1:{self.port}")
        return [
            p for p in psutil.process_iter() if p.pid != os.getpid() and any(m in w for w in _words(p) for m in marks)
        ]

    def kill(self) -> None:
        """As a power cut does."""
        found = self.processes()
        for process in found:
            with _gone():
                process.kill()
        psutil.wait_procs(found, timeout=10)

    def stop(self) -> None:
        for process in self.processes():
            if "start" in _words(process):
                with _gone():
                    process.send_signal(signal.SIGTERM)
        psutil.wait_procs(self.processes(), timeout=10)
        self.kill()


def _words(process: psutil.Process) -> Sequence[str]:
    with _gone():
        return list(process.cmdline())
    return []


def _gone() -> suppress:
    return suppress(psutil.Error)


@contextmanager
def ray_head(node_cpus: int = 2, **environment: str) -> Iterator[Head]:
    """A cluster that is gone when the block ends."""
    with ExitStack() as stack:
        # sockets lie below it, and their names must be short
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rj", dir="/tmp", ignore_cleanup_errors=True))
        head = Head(folder, {**ENVIRONMENT, **environment})
        stack.callback(head.stop)
        head.start(node_cpus)
        yield head
