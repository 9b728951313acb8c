"""What the routes share: the service, who may use it, and how many do at the moment.

A module with routes takes it as `state: State`, and is mounted by one `app.include_router(router)` in `api.make_app`.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from lawdnet.serving.limits import RateLimit
from lawdnet.serving.problems import Problem
from lawdnet.serving.service import Service


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may use the server."""

    api_keys: tuple[str, ...] = ()
    """Any of them opens it; without one it is open, and must be reachable from this machine only."""
    hosts: tuple[str, ...] = ()
    """Names that the server is called by in the `Host` header; none: any. They keep strange web pages out, whose name
    may be made to point to this machine."""

    def key_of(self, connection: HTTPConnection) -> str | None:
        """The key that a request has, `Authorization: Bearer KEY` or `X-API-Key: KEY`, if it is right."""
        given = connection.headers.get("x-api-key") or ""
        scheme, _, token = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            given = token.strip()
        found = None
        for key in self.api_keys:  # all of them, so that the time says nothing
            if hmac.compare_digest(given.encode("utf8", "surrogateescape"), key.encode()):
                found = key
        return found

    def check(self, connection: HTTPConnection) -> None:
        """Let whoever has a key pass, or everybody if there is none.

        Raises:
            Problem: 401, the key is missing or wrong.
        """
        if self.api_keys and self.key_of(connection) is None:
            raise Problem(401, "no_key", "give the server's key: Authorization: Bearer KEY, or X-API-Key: KEY")


@dataclass(kw_only=True)
class ServerState:
    """Shared by all requests of one process."""

    service: Service
    access: Access = field(default_factory=Access)
    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    """How many requests there were, by method and status."""
    began: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        limits = self.service.limits
        self._rate = RateLimit(limits.posts_per_minute)
        self._uploads = asyncio.Semaphore(limits.uploads)
        self.listeners = asyncio.Semaphore(limits.listeners)
        """One for each client that listens to events."""

    def check_rate(self, connection: HTTPConnection) -> None:
        """Count an upload of this client.

        Raises:
            Problem: 429, it has too many.
        """
        client = self.access.key_of(connection) or (connection.client.host if connection.client else "")
        if wait := self._rate.wait(client, time.monotonic()):
            raise Problem(429, "too_many_requests", "too many uploads from this client; slow down", retry_after=wait)

    @asynccontextmanager
    async def upload_slot(self) -> AsyncIterator[None]:
        """One of the uploads at the same time.

        Raises:
            Problem: 503, all are in use.
        """
        if self._uploads.locked():
            raise Problem(
                503, "too_many_uploads", "there are too many uploads at the moment; try again later", retry_after=2
            )
        async with self._uploads:
            yield

    def check_listeners(self) -> None:
        """Refuse one more client that listens to events, if there are too many.

        Raises:
            Problem: 503, there are.
        """
        if self.listeners.locked():
            raise Problem(
                503, "too_many_listeners", "too many clients listen to events; ask for the state", retry_after=2
            )


def server_state(connection: HTTPConnection) -> ServerState:
    """The state of the app that a request belongs to."""
    state: ServerState = connection.app.state.server
    return state


State = Annotated[ServerState, Depends(server_state)]


def check_key(connection: HTTPConnection, state: State) -> None:
    """A dependency of every route that is not open to all.

    Raises:
        Problem: 401, the key is missing or wrong.
    """
    state.access.check(connection)
