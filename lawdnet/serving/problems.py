"""Errors that a client is told about, as RFC 9457 problem documents (application/problem+json)."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from lawdnet.tasks.disk import is_full_disk
from lawdnet.types import Rejected


class Problem(Exception):
    """Something that the client is told.

    Args:
        status: of HTTP.
        kind: a short word for programs, such as `queue_full`; the document's `type` is `/problems#KIND`.
        detail: one sentence for a person: what, where, what to do.
        retry_after: seconds after which it is worth trying again.
        headers: other headers of the answer.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.retry_after = retry_after
        self.headers = dict(headers or {})

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (self.status, self.kind, self.detail, self.retry_after)

    @property
    def document(self) -> dict[str, Any]:
        """The problem document."""
        return {
            "type": f"/problems#{self.kind}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "kind": self.kind,
            "detail": printable(self.detail),
        }

    @classmethod
    def of(cls, error: BaseException) -> Problem:
        """The problem that an exception is; one that nobody foresaw says nothing of its inside."""
        if isinstance(error, Problem):
            return error
        if isinstance(error, Rejected):
            return cls(422, str(error.reason), error.detail)
        if is_full_disk(error) or (isinstance(error, sqlite3.OperationalError) and "full" in str(error)):
            return cls(507, "disk_full", "the server's disk is full; try again later", retry_after=60)
        return cls(500, "internal_error", "the server failed; its log says why")


def _made(status: int, kind: str, detail: str, retry_after: float | None) -> Problem:
    return Problem(status, kind, detail, retry_after=retry_after)


def printable(text: str) -> str:
    """The text on one line, without control characters; lone surrogates of file names are escaped."""
    text = " ".join(text.encode("utf8", "backslashreplace").decode("utf8").split())
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:1000]
