"""The server against what schemathesis makes of its own OpenAPI: no error of ours, and every answer as described."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis: pip install -e '.[dev]'")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from schemathesis import checks  # noqa: E402

from lawdnet.inference.engine import Engine  # noqa: E402
from pipelines.serve.api import make_app  # noqa: E402
from tests.support.serving import make_service, make_worker  # noqa: E402

EXAMPLES = 12
WAITS = {"/generate_video", "/generate-video"}
"""Like /upload-audio, but for the name of the field."""
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
    checks.allow_header_conformance,
]


def test_every_operation(tmp_path: Path, drawn: Path, engine: Engine) -> None:
    service = make_service(tmp_path / "data", posts_per_minute=1e6)
    service.pin_template(drawn, name="anna")
    make_worker(service, engine).run_once()
    schema = schemathesis.openapi.from_asgi("/openapi.json", make_app(service))
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {f"{operation.method.upper()} {operation.path}" for operation in operations} >= {
        "POST /v1/videos",
        "GET /v1/videos/{video_id}/content",
        "DELETE /v1/templates/{name}",
        "POST /upload-audio",
    }
    for operation in operations:
        if operation.path not in WAITS:
            fuzz(operation)


def fuzz(operation: Any) -> None:
    """Send what schemathesis makes of one operation."""

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def check(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    check()
