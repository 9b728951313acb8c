"""The HTTP app: every route of the server, and how errors are told."""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from lawdnet import __version__
from lawdnet.serving.problems import Problem
from lawdnet.serving.service import Service
from pipelines.serve import operations, pages, published, schemas, templates, videos
from pipelines.serve.guard import Guard
from pipelines.serve.state import Access, ServerState
from pipelines.serve.upload import drain

log = logging.getLogger(__name__)

SWEEP_SECONDS = 2.0
"""How often lost jobs are looked for, and expired results deleted."""
TIDY_EVERY = 300
"""Sweeps between two searches for files that belong to nobody."""
DESCRIPTION = """Lip-synced videos: send audio, name a template, fetch an MP4.

Errors are problem documents (RFC 9457). With an API key: `Authorization: Bearer KEY` or `X-API-Key: KEY`."""


def make_app(service: Service, access: Access | None = None, *, sweep: bool = True) -> FastAPI:
    """Return the HTTP app of a service.

    Args:
        service: what it offers.
        access: who may use it.
        sweep: whether this process retries lost jobs and deletes expired results; one of several must.
    """
    state = ServerState(service=service, access=access or Access())
    app = FastAPI(
        title="lawdnet",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=_swept if sweep else None,
    )
    app.state.server = state
    for kind in (Problem, HTTPException, RequestValidationError, OSError, sqlite3.Error, Exception):
        app.add_exception_handler(kind, _tell)
    app.add_middleware(Guard, state=state)
    for part in (videos, templates, published, operations, pages):
        app.include_router(part.router)
    app.include_router(operations.OPEN)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _swept(app: FastAPI) -> AsyncIterator[None]:
    async def sweep() -> None:
        service = app.state.server.service
        turn = 0
        while True:
            try:
                await run_in_threadpool(service.sweep)
                if turn % TIDY_EVERY == 0:
                    await run_in_threadpool(service.tidy)
            except Exception:  # a full disk, or a store that is starting again: the next turn may do better
                log.exception("expired results could not be deleted")
            turn += 1
            await asyncio.sleep(SWEEP_SECONDS)

    task = asyncio.create_task(sweep())
    yield
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def _tell(request: Request, error: Exception) -> JSONResponse:
    problem = _problem(request, error)
    if problem.status == 500:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    if request.method in ("POST", "PUT", "PATCH"):
        await drain(request)
    headers = dict(problem.headers)
    if problem.retry_after is not None:
        headers["retry-after"] = str(math.ceil(problem.retry_after))
    if problem.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(problem.document, problem.status, headers=headers, media_type="application/problem+json")


def _problem(request: Request, error: Exception) -> Problem:
    if isinstance(error, HTTPException):
        known = {404: ("no_route", "there is nothing at this address"), 405: ("no_method", "not possible here")}
        kind, text = known.get(error.status_code, ("http", str(error.detail)))
        return Problem(error.status_code, kind, f"{request.method}: {text}; see /docs", headers=error.headers)
    if isinstance(error, RequestValidationError):
        found = error.errors()[0]
        return Problem(422, "invalid", f"{'.'.join(map(str, found['loc']))}: {found['msg']}")
    return Problem.of(error)


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        from fastapi.openapi.utils import get_openapi

        found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        components = found.setdefault("components", {})
        components.setdefault("schemas", {}).setdefault("Problem", schemas.Problem.model_json_schema())
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        for path in found["paths"].values():
            for operation in path.values():
                if operation.get("tags") != ["operations"] or "401" in operation["responses"]:
                    operation["security"] = [{}, {"bearer": []}, {"key": []}]
                unprocessable = operation["responses"].get("422", {}).get("content", {})
                if "application/json" in unprocessable:  # FastAPI's own format, which is never sent
                    reference = {"$ref": "#/components/schemas/Problem"}
                    operation["responses"]["422"]["content"] = {"application/problem+json": {"schema": reference}}
        app.openapi_schema = found
    return app.openapi_schema
