"""The server on this machine, without a cluster: one process, with threads that render."""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from lawdnet.serving.jobs import JobStore
from lawdnet.serving.service import Service
from lawdnet.serving.worker import Worker, WorkerThreads
from pipelines.serve.api import make_app
from pipelines.serve.config import DATABASE, ServeConfig
from pipelines.serve.live import live_router
from pipelines.serve.live_host import EngineHost
from pipelines.serve.state import Access

log = logging.getLogger(__name__)

CONNECTIONS = 512
"""Open at the same time; more are answered with 503."""
KEEP_ALIVE_SECONDS = 15
FOREVER_SECONDS = 1e9
"""The lease of workers that live and die with the job store: a machine that slept has lost nobody."""
GRACE_SECONDS = 3
"""How long open requests may take when the server ends."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def access_for(host: str, api_keys: tuple[str, ...], names: tuple[str, ...] = ()) -> Access:
    """Who may use a server that listens at `host`.

    Args:
        names: other names that it is called by, such as that of a proxy.

    Raises:
        ValueError: others could reach it, and there is no key.
    """
    if not is_loopback(host) and not api_keys:
        raise ValueError(
            f"--host {host}: other machines could use this server; give a key with --api-key-file or LAWDNET_API_KEY"
        )
    return Access(api_keys=api_keys, hosts=(*LOOPBACK, host, *names) if is_loopback(host) else ())


@contextmanager
def running_app(config: ServeConfig, access: Access) -> Iterator[FastAPI]:
    """The HTTP app with its workers, which end with the block.

    Raises:
        ValueError: a checkpoint, a template or the folder cannot be used.
    """
    data = Path(config.data).absolute()
    store = JobStore(data / DATABASE, lease_seconds=FOREVER_SECONDS)
    threads: WorkerThreads | None = None
    try:
        engines, files = config.engines(), config.files
        threads = WorkerThreads([Worker(store, data, files, engines) for _ in range(config.workers)])
        service = Service(store, data, files, list(config.models), limits=config.limits, wake=threads.wake)
        store.retry_lost(everything=True)
        config.pin_templates(service)
        threads.start()
        app = make_app(service, access)
        app.include_router(live_router(EngineHost(service, engines)))
        yield app
    finally:
        if threads:
            threads.stop()
        store.close()


def serve(
    config: ServeConfig,
    access: Access,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    on_ready: Callable[[str], None] = log.info,
) -> None:
    """Serve until the process is asked to end.

    Args:
        host, port: where to listen; port 0 takes a free one.
        on_ready: called with the server's URL.

    Raises:
        ValueError: see `running_app`.
        OSError: the port is in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise ValueError(f"{host}:{port}: cannot listen there ({error.strerror}); choose another --port") from error
        with running_app(config, access) as app:
            listener.listen(CONNECTIONS)  # whoever comes now waits until uvicorn takes it
            shown = f"[{host}]" if ":" in host else host
            on_ready(f"http://{shown}:{listener.getsockname()[1]}")
            uvicorn.Server(uvicorn_config(app)).run(sockets=[listener])


def uvicorn_config(app: FastAPI) -> uvicorn.Config:
    """How uvicorn runs the app: with bounds, and silent."""
    return uvicorn.Config(
        app,
        http="h11",  # httptools has no bound for headers
        ws="websockets-sansio",
        ws_max_size=1 << 20,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        h11_max_incomplete_event_size=64 << 10,
    )
