"""Files as answers: ranges, HEAD, and names that a browser may show."""

from __future__ import annotations

import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from lawdnet.serving.problems import Problem

RANGES = re.compile(r"bytes=\d{0,18}-\d{0,18}(\s*,\s*\d{0,18}-\d{0,18}){0,15}", re.IGNORECASE)


def file_response(request: Request, path: Path, *, name: str, attach: bool = False) -> Response:
    """Send an MP4, or the part of it that is asked for; a `Range` that cannot be read is ignored, as RFC 9110 wants.

    Raises:
        Problem: 404 there is no such file, 416 the range begins beyond its end.
    """
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise Problem(404, "gone", "the file was deleted") from error
    if (wanted := request.headers.get("range")) is not None:
        found = _satisfiable(wanted, status.st_size)
        if found and not any(found):
            detail = f"the file has {status.st_size} bytes; the range begins beyond its end"
            raise Problem(416, "bad_range", detail, headers={"content-range": f"bytes */{status.st_size}"})
        if not all(found) or not found:  # the whole file is always a right answer
            request.scope["headers"] = [item for item in request.scope["headers"] if item[0] != b"range"]
    return FileResponse(
        path,
        media_type="video/mp4",
        filename=name,
        content_disposition_type="attachment" if attach else "inline",
        stat_result=status,
        headers={"cache-control": "private, no-cache"},
    )


def _satisfiable(wanted: str, size: int) -> list[bool]:
    """Whether each range of a header is in the file; [] if the header cannot be read."""
    if not RANGES.fullmatch(wanted.strip()):
        return []
    found = []
    for part in wanted.partition("=")[2].split(","):
        first, _, last = part.strip().partition("-")
        if (not first and not last) or (first and last and int(first) > int(last)):
            return []
        found.append(int(first) < size if first else int(last) > 0)
    return found
