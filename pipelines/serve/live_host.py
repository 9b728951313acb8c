"""The live routes' view of a server whose own process has the networks."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import HTTPConnection

from lawdnet.inference.engine import Engine
from lawdnet.inference.template import Template
from lawdnet.serving.problems import Problem
from lawdnet.serving.service import Service
from lawdnet.types import no_beat
from pipelines.serve.state import check_key, server_state


class EngineHost:
    """See `LiveHost`.

    Args:
        service: knows the templates.
        engines: checkpoint's name → its engine; the service's first model draws.
    """

    def __init__(self, service: Service, engines: Mapping[str, Engine]) -> None:
        self.service, self.engines = service, engines

    def check(self, connection: HTTPConnection) -> None:
        """Ask for the server's key."""
        check_key(connection, server_state(connection))

    def open(self, template: str) -> tuple[Engine, Template]:
        """Return the engine, and the template as it is prepared for it."""
        status = self.service.template(template or self.service.default_template)
        if status.state != "ready":
            raise Problem(503, "not_ready", f"template: {status.state}; see GET /v1/templates", retry_after=2)
        engine = self.engines[self.service.models[0]]
        return engine, self.service.files.load(status.row.content, engine, status.row.face, no_beat)
