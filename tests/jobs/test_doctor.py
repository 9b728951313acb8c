"""The doctor's table and its exit code."""

from __future__ import annotations

import importlib.metadata
import json

import pytest
from typer.testing import CliRunner

from jobs import doctor
from jobs.cli import app

runner = CliRunner()


def test_a_working_machine() -> None:
    answer = runner.invoke(app, ["doctor", "--json"])
    assert answer.exit_code == 0, answer.output
    checks = {check["name"]: check for check in json.loads(answer.stdout)}
    for name in ("Python", "torch", "ray", "h264 encoder", "aac encoder", "CPUs", "memory", "RAY_ADDRESS"):
        assert name in checks
    assert all(check["is_ok"] for check in checks.values() if check["is_required"])


def test_only_what_is_required_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.0.1" if name == old else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    missing, old = {"ruff"}, ""
    optional = runner.invoke(app, ["doctor"])
    assert optional.exit_code == 0
    assert "pip install -c constraints.txt -e '.[dev]'" in optional.stdout
    missing, old = set(), "torch"
    required = runner.invoke(app, ["doctor"])
    assert required.exit_code == 1
    assert "✗ torch" in required.stdout
    assert "broken: torch" in required.stdout


def test_a_missing_codec_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CODECS", (("h264", "r"), ("h264", "w"), ("no_such_codec", "w")))
    answer = runner.invoke(app, ["doctor"])
    assert answer.exit_code == 1
    assert "broken: no_such_codec encoder" in answer.stdout
