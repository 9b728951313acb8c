"""The page at `/`: three files of ours, no build step, nothing from elsewhere."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
KINDS = {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}

router = APIRouter(include_in_schema=False)


@router.get("/")
def page() -> Response:
    """The page."""
    return _file("index.html")


@router.get("/page.js")
def script() -> Response:
    """Its script."""
    return _file("page.js")


@router.get("/page.css")
def style() -> Response:
    """Its style, and that of `/docs`."""
    return _file("page.css")


def _file(name: str) -> Response:
    headers = {"content-security-policy": POLICY, "cache-control": "no-cache"}
    headers["permissions-policy"] = "microphone=(self), camera=()"
    return Response(_content(name), media_type=KINDS[name.rpartition(".")[2]], headers=headers)


@cache
def _content(name: str) -> bytes:
    return (files("pipelines.serve") / "page" / name).read_bytes()
