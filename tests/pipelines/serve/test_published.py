"""The requests of LawDNet 2024's clients, as `requests` sends them (client_LawDNet.py, http_client_for_server.py)."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from lawdnet.audio.io import load_audio
from lawdnet.inference.engine import Engine
from lawdnet.video import probe
from tests.support.serving import SlowEngine, running, speech, until


@pytest.mark.parametrize(
    ("route", "field", "attached"),
    [("/upload-audio", "file", True), ("/generate_video", "audio", False), ("/generate-video", "audio", False)],
)
def test_audio_gives_a_video_with_sound(
    client: httpx.Client, tmp_path: Path, route: str, field: str, attached: bool
) -> None:
    audio = speech(tmp_path / "青岛3.wav", 0.6)
    with audio.open("rb") as file:
        answer = client.post(route, files={field: file})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["content-disposition"].startswith("attachment") == attached
    (tmp_path / "out.mp4").write_bytes(answer.content)
    assert probe(tmp_path / "out.mp4").num_frames == 15
    assert len(load_audio(tmp_path / "out.mp4")) / 16_000 == pytest.approx(0.6, abs=0.1)


@pytest.mark.parametrize(
    ("route", "field", "missing", "unnamed"),
    [
        ("/upload-audio", "file", "No file part", "No selected file"),
        ("/generate_video", "audio", "没有上传音频文件", "没有上传音频文件"),
        ("/generate-video", "audio", "没有上传音频文件", "没有上传音频文件"),
    ],
)
def test_their_messages(client: httpx.Client, route: str, field: str, missing: str, unnamed: str) -> None:
    def form(disposition: str) -> dict[str, bytes]:
        return {"content": f"--x\r\nContent-Disposition: form-data; {disposition}\r\n\r\n\r\n--x--\r\n".encode()}

    multipart = {"content-type": "multipart/form-data; boundary=x"}
    nothing = client.post(route)
    empty = client.post(route, headers=multipart, content=b"--x--\r\n")
    text = client.post(route, headers=multipart, **form(f'name="{field}"'))  # type: ignore[arg-type]
    no_name = client.post(route, headers=multipart, **form(f'name="{field}"; filename=""'))  # type: ignore[arg-type]
    assert [(answer.status_code, answer.text) for answer in (nothing, empty, text)] == [(400, missing)] * 3
    assert (no_name.status_code, no_name.text) == (400, unnamed)


def test_without_a_template_there_is_no_video(tmp_path: Path, engine: Engine) -> None:
    with running(tmp_path / "data", engine) as server, server.client() as client:
        answer = client.post("/upload-audio", files={"file": speech(tmp_path / "a.wav").read_bytes()})
        assert (answer.status_code, answer.text) == (404, "Video not found")
        assert not list((server.service.data / "jobs").iterdir())


def test_what_is_no_audio_is_said(client: httpx.Client) -> None:
    answer = client.post("/upload-audio", files={"file": b"not audio at all"})
    assert (answer.status_code, answer.json()["kind"]) == (422, "not_a_video")


def test_a_client_that_goes_away_cancels_its_video(tmp_path: Path, network: Path, drawn: Path) -> None:
    slow = SlowEngine(network, device="cpu", batch_size=1)
    with running(tmp_path / "data", slow) as server:
        server.service.pin_template(drawn, name="anna")
        until(lambda: server.service.template("anna").state == "ready")
        audio = speech(tmp_path / "a.wav", 60).read_bytes()
        with pytest.raises(httpx.ReadTimeout), server.client() as client:
            client.post("/generate_video", files={"audio": audio}, timeout=2.0)
        until(lambda: server.service.store.counts()["running"] == 0)
        until(lambda: not list((server.service.data / "jobs").iterdir()))
        before = len(slow.calls)
        time.sleep(0.5)
        assert len(slow.calls) - before < 10  # the last batches of the heartbeat's period
