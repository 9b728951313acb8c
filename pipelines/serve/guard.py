"""What every request passes first: size of its headers, the name it calls us by, and the page that it comes from."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lawdnet.serving.problems import Problem
from pipelines.serve.state import ServerState

SAFE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
"""On every answer that does not set its own."""


METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""What is counted by name; a client could think of any number of others."""


class Guard:
    """ASGI middleware, for HTTP and WebSockets: a browser sends no preflight for either of the requests that matter.

    Args:
        app: what is guarded.
        state: limits and names of the server.
    """

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self.app = app
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        problem = self._refusal(scope)
        if scope["type"] == "websocket":
            if problem:
                await send({"type": "websocket.close", "code": 1008, "reason": problem.kind})
            else:
                await self.app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                method = scope["method"] if scope["method"] in METHODS else "OTHER"
                self.state.requests[method, message["status"]] += 1
                headers = MutableHeaders(scope=message)
                for name, value in SAFE.items():
                    headers.setdefault(name, value)
            await send(message)

        if problem:
            await _answer(counted, problem)
        else:
            await self.app(scope, receive, counted)

    def _refusal(self, scope: Scope) -> Problem | None:
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if (
            size + len(scope.get("raw_path") or b"") + len(scope["query_string"])
            > self.state.service.limits.header_bytes
        ):
            most = self.state.service.limits.header_bytes
            return Problem(431, "headers_too_large", f"the address and headers are larger than {most} bytes")
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.state.access.hosts and _name(host) not in self.state.access.hosts:
            return Problem(421, "wrong_host", "this server is not called by that name")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return Problem(403, "foreign_page", "a page of another site may not use this server")
        return None


def _name(host: str) -> str:
    """The name in a `Host` header, without the port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


async def _answer(send: Send, problem: Problem) -> None:
    body = json.dumps(problem.document, ensure_ascii=False).encode()
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
