"""Rendering a report as a single HTML file that opens from disk: images are inside, curves are SVG."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from lawdnet import __version__
from lawdnet.storage import Location, atomic
from lawdnet.types import FPS


def image_uri(path: Location) -> str:
    """Return a PNG or JPEG file as a `data:` URI.

    Raises:
        ValueError: there is no such file, or it is neither PNG nor JPEG.
    """
    kind = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}.get(path.suffix.lower())
    if kind is None or not path.is_file():
        raise ValueError(f"{path}: {'no such file' if kind else 'not a PNG or JPEG file'}")
    return data_uri(path.read_bytes(), kind)


def data_uri(data: bytes, kind: str) -> str:
    """Return the bytes of an image of this kind (png, jpeg) as a `data:` URI."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def link(path: Path, folder: Path) -> str:
    """Return a relative URL that works from disk, whatever the name of the file."""
    return quote(os.path.relpath(path.resolve(), folder.resolve()).replace(os.sep, "/"))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def write_page(out: Location, template: str, **content: Any) -> None:
    """Render a template into `out`, which appears whole or not at all."""
    environment = Environment(
        loader=PackageLoader("lawdnet", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = _duration
    html = environment.get_template(template).render(version=__version__, fps=FPS, **content)
    with atomic(out) as temporary:
        temporary.write_text(html, encoding="utf8")
