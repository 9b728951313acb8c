"""A local S3 server for the tests, and the environment that directs every client in the session to it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upath import UPath

# bound before anything starts, so that workers and commands inherit the address; no test ever reaches a real bucket
SOCKET = socket.socket()
SOCKET.bind(("127.0.0.1", 0))
os.environ |= {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{SOCKET.getsockname()[1]}",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
    os.environ.pop(name, None)


FAULTS = {"broken": ("500 Internal Server Error", "InternalError"), "gone": ("404 Not Found", "NoSuchUpload")}


@dataclass
class S3Server:
    """moto's S3 as a WSGI application that records requests and fails on demand."""

    app: Callable[..., Iterable[bytes]]
    root: UPath | None = None
    """A bucket for this test only."""
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    """Method, path with query, and number of bytes in the response body."""
    fault: Callable[[str, str], str] = lambda method, path: ""
    """Method and path → "broken" (500), "gone" (404), "cut" (half of the body is missing) or "" (no fault)."""

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        method = environ["REQUEST_METHOD"]
        path = f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        fault = self.fault(method, path)
        if fault in FAULTS:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            self.requests.append((method, path, 0))
            status, code = FAULTS[fault]
            start_response(status, [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>no such upload</Message></Error>".encode()]
        body = b"".join(self.app(environ, start_response))
        if fault == "cut":
            body = body[: len(body) // 2]
        self.requests.append((method, path, len(body)))
        return [body]
