"""For who runs the server: is it alive, is it ready, how is it doing, and what can it be asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import lru_cache
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Depends, Request
from jinja2 import Environment
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from lawdnet import __version__
from lawdnet.serving.problems import Problem
from pipelines.serve.schemas import Info, problems
from pipelines.serve.state import ServerState, State, check_key

OPEN = APIRouter(tags=["operations"])
"""Routes that need no key."""
router = APIRouter(tags=["operations"], dependencies=[Depends(check_key)])
DOCS_POLICY = "default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'"


@OPEN.get("/healthz", response_class=PlainTextResponse)
def healthz() -> str:
    """The process answers."""
    return "ok\n"


@OPEN.get("/readyz", responses=problems())
def readyz(state: State) -> dict[str, Any]:
    """Videos can be asked for: the store answers, and the templates of the command line are prepared.

    Raises:
        Problem: 503, not yet.
    """
    waiting = [s.row.name for s in state.service.templates() if s.row.pinned and s.state == "preparing"]
    if waiting:
        raise Problem(503, "preparing", f"templates are being prepared: {', '.join(waiting)}", retry_after=2)
    return {"ready": True}


@router.get("/v1/info", response_model=Info, responses=problems())
def info(state: State) -> Info:
    """Version, checkpoints and limits."""
    service = state.service
    limits = {name: float(value) for name, value in vars(service.limits).items()}
    return Info(version=__version__, models=service.models, default_template=service.default_template, limits=limits)


@router.get("/metrics", response_class=PlainTextResponse, responses=problems())
def metrics(state: State) -> PlainTextResponse:
    """Figures for Prometheus."""
    text = "".join(f"{line}\n" for line in _metrics(state))
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


@OPEN.get("/docs", include_in_schema=False)
def docs(request: Request) -> HTMLResponse:
    """What can be asked, as a page without scripts."""
    page = _template().render(api=request.app.openapi())
    return HTMLResponse(page, headers={"content-security-policy": DOCS_POLICY})


@OPEN.get("/openapi.json", include_in_schema=False)
def openapi(request: Request) -> Response:
    """What can be asked, for programs."""
    return JSONResponse(request.app.openapi())


def _metrics(state: ServerState) -> Iterator[str]:
    figures = state.service.figures()
    now, totals = figures["now"], figures["totals"]
    yield "# TYPE lawdnet_serve_jobs gauge"
    for name in ("queued", "running"):
        yield f'lawdnet_serve_jobs{{state="{name}"}} {now[name]}'
    yield "# TYPE lawdnet_serve_finished_total counter"
    for name, value in sorted(totals.items()):
        if ":" in name:
            kind, end = name.split(":")
            yield f'lawdnet_serve_finished_total{{kind="{kind}",state="{end}"}} {value:g}'
    for name in ("frames", "seconds"):
        yield f"# TYPE lawdnet_serve_{name}_total counter"
        yield f"lawdnet_serve_{name}_total {totals.get(name, 0):.10g}"
    yield "# TYPE lawdnet_serve_requests_total counter"
    for (method, status), value in sorted(state.requests.items()):
        yield f'lawdnet_serve_requests_total{{method="{method}",status="{status}"}} {value}'
    yield "# TYPE lawdnet_serve_uptime_seconds gauge"
    yield f"lawdnet_serve_uptime_seconds {time.time() - state.began:.0f}"


@lru_cache
def _template() -> Any:
    source = (files("pipelines.serve") / "page" / "docs.html.j2").read_text(encoding="utf8")
    return Environment(autoescape=True).from_string(source)
