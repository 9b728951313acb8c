"""Reads a multipart form as it comes in: files go to disk at once, under names of ours, within size and time limits."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from lawdnet.serving.limits import Limits
from lawdnet.serving.problems import Problem
from pipelines.serve.state import ServerState

MAX_FIELDS = 16
MAX_TEXT_BYTES = 4096
DRAIN_BYTES = 8 << 20
DRAIN_SECONDS = 2.0
OVERHEAD_BYTES = 64 << 10
"""Room for the other fields and the boundaries, beside the files."""


class Form:
    """The fields of one form.

    Args:
        boundary: between the parts.
        files: field with a file → where it is written.
        texts: names of the other fields.
        max_bytes: of the whole form.
    """

    def __init__(self, boundary: bytes, files: Mapping[str, Path], texts: frozenset[str], max_bytes: int) -> None:
        self.fields: dict[str, str] = {}
        """The fields without a file."""
        self.names: dict[str, str | None] = {}
        """Field with a file → the client's name of it, which is only ever looked at; None if it has none."""
        self.is_complete = False
        self._paths, self._texts, self._max_bytes = files, texts, max_bytes
        self._bytes = 0
        self._header: list[bytes] = [b"", b""]
        self._disposition = b""
        self._name = ""
        self._text = bytearray()
        self._file: IO[bytes] | None = None
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begin,
                "on_header_begin": self._header_begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._part_data,
                "on_part_end": self._part_end,
                "on_end": self._end,
            },
        )

    def write(self, chunk: bytes) -> None:
        """Read the next bytes of the form.

        Raises:
            Problem: 400 it is malformed, 413 it is too large, 422 a field is wrong.
        """
        self._bytes += len(chunk)
        if self._bytes > self._max_bytes:
            raise too_large(self._max_bytes)
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise Problem(400, "malformed_form", f"the multipart form is malformed: {error}") from error

    def close(self) -> None:
        """Close what is open."""
        if self._file:
            self._file.close()

    def _part_begin(self) -> None:
        self._disposition = b""
        self._text = bytearray()

    def _header_begin(self) -> None:
        self._header = [b"", b""]

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0] += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1] += data[start:end]

    def _header_end(self) -> None:
        if self._header[0].lower() == b"content-disposition":
            self._disposition = self._header[1]

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf8", "replace")
        if len(self.fields) + len(self.names) >= MAX_FIELDS:
            raise Problem(422, "too_many_fields", f"the form has more than {MAX_FIELDS} fields")
        if self._name in self.fields or self._name in self.names:
            raise Problem(422, "repeated_field", f"{_shown(self._name)}: given twice")
        if self._name in self._paths:
            name = options.get(b"filename")
            self.names[self._name] = None if name is None else name.decode("utf8", "replace")
            self._file = self._paths[self._name].open("xb")
        elif self._name not in self._texts:
            known = ", ".join(sorted([*self._paths, *self._texts]))
            raise Problem(422, "unknown_field", f"{_shown(self._name)}: no such field; there are {known}")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file:
            self._file.write(data[start:end])
        else:
            self._text += data[start:end]
            if len(self._text) > MAX_TEXT_BYTES:
                raise Problem(413, "field_too_long", f"{_shown(self._name)}: more than {MAX_TEXT_BYTES} bytes")

    def _part_end(self) -> None:
        if self._file:
            self._file.close()
            self._file = None
            return
        try:
            self.fields[self._name] = self._text.decode()
        except UnicodeDecodeError as error:
            raise Problem(422, "not_utf8", f"{_shown(self._name)}: not UTF-8") from error

    def _end(self) -> None:
        self.is_complete = True


async def read_form(
    request: Request, *, files: Mapping[str, Path], texts: frozenset[str], max_bytes: int, limits: Limits
) -> Form:
    """Read the form of a request.

    Args:
        files: field with a file → where it is written, in a folder of this request alone.
        texts: names of the other fields.
        max_bytes: of all files together.
        limits: how long it may take.

    Raises:
        Problem: 400 malformed or cut off, 408 too slow, 413 too large, 415 no form, 422 a field is wrong, 507 the disk
            is full.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise Problem(415, "not_a_form", "send multipart/form-data with a boundary, as `curl -F field=@file` does")
    max_bytes += OVERHEAD_BYTES
    with suppress(ValueError):
        if int(request.headers.get("content-length", "0")) > max_bytes:
            raise too_large(max_bytes)
    try:
        form = Form(boundary, files, texts, max_bytes)
    except FormParserError as error:
        raise Problem(400, "malformed_form", f"the multipart form is malformed: {error}") from error
    chunks = request.stream()
    request.state.received = 0
    end = time.monotonic() + limits.upload_seconds
    try:
        while True:
            left = min(limits.idle_seconds, end - time.monotonic())
            chunk = await asyncio.wait_for(anext(chunks, None), max(0.0, left))
            if chunk is None:
                request.state.received = math.inf
                break
            request.state.received += len(chunk)
            if chunk:
                await run_in_threadpool(form.write, chunk)
    except TimeoutError as error:
        detail = f"the upload stood still for {limits.idle_seconds:g} s, or took more than {limits.upload_seconds:g} s"
        raise Problem(408, "too_slow", detail) from error
    except ClientDisconnect as error:
        raise Problem(400, "cut_off", "the connection was closed in the middle of the upload") from error
    finally:
        form.close()
    if not form.is_complete:
        raise Problem(400, "cut_off", "the form ends before its last boundary")
    return form


@asynccontextmanager
async def received(
    request: Request, state: ServerState, *, files: Mapping[str, str], texts: frozenset[str], max_bytes: int
) -> AsyncIterator[tuple[str, Path, Form]]:
    """Receive a form into the folder of a new job, which is deleted again if the block fails.

    Args:
        files: field with a file → its name in the folder.
        texts, max_bytes: see `read_form`.

    Yields:
        The job's id, its folder, the form.

    Raises:
        Problem: see `read_form`, `ServerState` and `Service.begin`.
    """
    state.check_rate(request)
    service = state.service
    async with state.upload_slot():
        job_id, folder = await run_in_threadpool(service.begin)
        try:
            paths = {field: folder / name for field, name in files.items()}
            form = await read_form(request, files=paths, texts=texts, max_bytes=max_bytes, limits=service.limits)
            yield job_id, folder, form
        except BaseException:
            service.discard(job_id)
            raise


async def drain(request: Request) -> None:
    """Read a little more of a request that is refused: a client that still sends would miss the answer."""
    end = time.monotonic() + DRAIN_SECONDS
    length = request.headers.get("content-length", "")
    left = min(DRAIN_BYTES, int(length) if length.isdecimal() else DRAIN_BYTES) - getattr(request.state, "received", 0)
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):
        while left > 0:
            message = await asyncio.wait_for(request.receive(), max(0.0, end - time.monotonic()))
            left -= len(message.get("body", b""))
            if not message.get("more_body"):
                return


def too_large(max_bytes: int) -> Problem:
    """The problem of a body that is too large."""
    return Problem(413, "too_large", f"the request is larger than {max_bytes >> 20} MiB")


def _shown(name: str) -> str:
    return repr(name[:40])
