"""How much a live client may ask for, and who may ask. Every limit has one place here, and an error that names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Protocol
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from lawdnet.inference.engine import Engine
from lawdnet.inference.template import Template
from lawdnet.serving.problems import Problem


class LiveHost(Protocol):
    """What live routes need of the server."""

    def check(self, connection: HTTPConnection) -> None:
        """Refuse a client whose headers do not show a key (`X-API-Key` or `Authorization`), if the server has one.

        Raises:
            Problem: 401.
        """
        ...

    def open(self, template: str) -> tuple[Engine, Template]:
        """Return a network and a template prepared for it; may take a while. "" is the server's first template.

        Raises:
            Problem: 422 or 503, there is no such template, or it is not ready.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class LiveLimits:
    """Limits of live routes.

    Raises:
        ValueError: a limit is not a positive number.
    """

    sessions: int = 4
    """Live sessions at the same time, over WebSocket and WebRTC."""
    streams: int = 4
    """Videos that are streamed at the same time."""
    start_seconds: float = 10.0
    """Longest wait for a client's first message, or until WebRTC is connected."""
    idle_seconds: float = 120.0
    """Longest time without a message, or without WebRTC's audio."""
    session_seconds: float = 4 * 3600.0
    stalled_seconds: float = 20.0
    """Longest time in which a client takes nothing."""
    message_bytes: int = 1 << 20
    messages_per_second: int = 500
    waiting_seconds: float = 120.0
    """Most audio that waits to be spoken."""
    microphone_lag: float = 0.5
    """A microphone's audio that waits longer is dropped, in seconds."""
    audio_bytes: int = 64 << 20
    """Size of an uploaded audio file."""
    audio_seconds: float = 600.0
    upload_seconds: float = 600.0
    """Longest time from the first to the last byte of an upload."""
    upload_idle_seconds: float = 20.0
    """Longest pause in it."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name}: {getattr(self, field.name)} must be more than 0")


class Slots:
    """Places for those who are served at the same time; used from one event loop."""

    def __init__(self, count: int, what: str) -> None:
        self.count, self.what = count, what
        self.used = 0

    def take(self) -> None:
        """Take a place.

        Raises:
            Problem: 503, all are taken.
        """
        if self.used >= self.count:
            detail = f"all {self.count} {self.what} are in use; try again later"
            raise Problem(503, "busy", detail, retry_after=5)
        self.used += 1

    def give_back(self) -> None:
        """Free a place."""
        self.used -= 1

    @contextmanager
    def place(self) -> Iterator[None]:
        """One place.

        Raises:
            Problem: 503, all are taken.
        """
        self.take()
        try:
            yield
        finally:
            self.give_back()


def check_origin(connection: HTTPConnection) -> None:
    """Refuse a page of another site, which a browser would let connect with the rights of whoever looks at it.

    Raises:
        Problem: 403.
    """
    origin = connection.headers.get("origin")
    if origin and urlsplit(origin).netloc.lower() != connection.headers.get("host", "").lower():
        raise Problem(403, "other_origin", "pages of other sites may not use this server")


def with_key(connection: HTTPConnection, key: str) -> HTTPConnection:
    """The same connection as if it had sent a key; browsers cannot give a WebSocket a header."""
    headers = [(name, value) for name, value in connection.scope["headers"] if name != b"x-api-key"]
    headers.append((b"x-api-key", key.encode("utf8", "surrogateescape")))
    return HTTPConnection({**connection.scope, "headers": headers})
