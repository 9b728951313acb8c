"""A server of one template, with an optional key, for the live routes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.requests import HTTPConnection

from lawdnet.inference.engine import Engine
from lawdnet.inference.template import Template
from lawdnet.serving.problems import Problem
from pipelines.serve.live import live_router
from pipelines.serve.live_limits import LiveLimits


class OneTemplate:
    """See `LiveHost`."""

    def __init__(self, engine: Engine, template: Template, key: str = "") -> None:
        self.engine, self.template, self.key = engine, template, key

    def check(self, connection: HTTPConnection) -> None:
        """Ask for the key."""
        if self.key and connection.headers.get("x-api-key") != self.key:
            raise Problem(401, "no_key", "give the server's key")

    def open(self, template: str) -> tuple[Engine, Template]:
        """Give the template, which is called head."""
        if template not in ("", "head"):
            raise Problem(422, "unknown_template", "template: no template has this name")
        return self.engine, self.template


def make_app(host: OneTemplate, **limits: Any) -> FastAPI:
    """Return an app with the live routes only."""
    app = FastAPI()
    app.include_router(live_router(host, LiveLimits(**limits)))
    return app


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serve an app on a free port; yield HOST:PORT."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.02)
    try:
        yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def live_threads() -> list[str]:
    """Names of the threads of sessions."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("live-")]
