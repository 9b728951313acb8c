"""The live routes of `lawdnet serve`: its templates, its key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from lawdnet.serving.limits import Limits
from lawdnet.synthetic import write_talking_head
from pipelines.serve.config import ServeConfig
from pipelines.serve.local import running_app
from pipelines.serve.state import Access
from tests.support.live_host import eventually
from tests.support.serving import small_generator, speech


@pytest.mark.usefixtures("frees_everything")
def test_a_server_streams_and_speaks_with_its_own_templates_and_key(tmp_path: Path) -> None:
    write_talking_head(tmp_path / "anna.mp4", identity=1, motion=2, speech=3, seconds=1, size=(160, 128))
    config = ServeConfig(
        models={"default": str(small_generator(tmp_path / "run" / "frame_64" / "epoch_0001"))},
        data=str(tmp_path / "data"),
        templates={"anna": str(tmp_path / "anna.mp4")},
        limits=Limits(free_bytes=1),
    )
    form = {"files": {"audio": speech(tmp_path / "a.wav").read_bytes()}}
    key = {"x-api-key": "secret"}
    with running_app(config, Access(api_keys=("secret",))) as app, TestClient(app) as http:
        assert http.post("/v1/videos/stream", **form).status_code == 401
        assert eventually(lambda: http.get("/v1/templates/anna", headers=key).json()["state"] == "ready", 30)
        answer = http.post("/v1/videos/stream", **form, headers=key)
        assert (answer.status_code, answer.content[4:8]) == (200, b"ftyp")
        unknown = http.post("/v1/videos/stream", **form, data={"template": "bob"}, headers=key)
        assert unknown.json()["kind"] == "unknown_template"
        with http.websocket_connect("/v1/live") as socket:
            socket.send_text(json.dumps({"type": "start", "template": "anna", "key": "secret"}))
            assert socket.receive_json()["type"] == "ready"
