"""Our own client, and `lawdnet infer --url`."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from lawdnet.inference.engine import Engine
from lawdnet.serving.client import Client
from lawdnet.video import probe
from pipelines.serve.state import Access
from tests.support.serving import Running, running, speech

KEY = "0123456789abcdef"
runner = CliRunner()


def test_a_video_of_our_own(server: Running, drawn: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with Client(server.url) as client:
        name = client.add_template(drawn)
        assert client.add_template(drawn) == name  # sent again, kept once
        made = client.render(name, speech(tmp_path / "a.wav", 1.0), tmp_path / "o.mp4", lambda *n: seen.append(n))
    assert made["frames"] == probe(tmp_path / "o.mp4").num_frames == 25
    assert seen[-1] == (25, 25)
    assert not list((server.service.data / "jobs").iterdir())  # the server keeps nothing of it


def test_infer_with_url(server: Running, drawn: Path, tmp_path: Path) -> None:
    out, audio = tmp_path / "o.mp4", speech(tmp_path / "a.wav", 0.4)
    words = ["infer", "--url", server.url, "--audio", str(audio), "--out", str(out)]
    answer = runner.invoke(app, [*words, "--template", "anna", "--json"])
    assert answer.exit_code == 0, answer.output
    assert (json.loads(answer.stdout)["frames"], probe(out).num_frames) == (10, 10)
    answer = runner.invoke(app, [*words, "--video", str(drawn)])
    assert answer.exit_code == 0, answer.output
    assert f"wrote {out}: 10 frames" in answer.stdout


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["run", "--url", "http://x", "--template", "a"], "the server of --url has its own checkpoint"),
        (["--url", "http://x"], "give either --video, which is sent there, or --template"),
        (["--template", "a"], "give a checkpoint and --video"),
        ([], "give a checkpoint and --video"),
    ],
)
def test_wrong_usage(words: list[str], text: str, tmp_path: Path) -> None:
    answer = runner.invoke(app, ["infer", *words, "--audio", "a.wav", "--out", "o.mp4"])
    assert answer.exit_code == 2, answer.output
    assert text in answer.stderr


def test_errors_are_one_line(server: Running, tmp_path: Path) -> None:
    audio = speech(tmp_path / "a.wav")
    (tmp_path / "text.wav").write_text("no audio")
    with Client(server.url) as client:
        with pytest.raises(ValueError, match="template: no template has this name"):
            client.render("nobody", audio, tmp_path / "o.mp4")
        with pytest.raises(ValueError, match="audio: not a known video or audio format"):
            client.render("anna", tmp_path / "text.wav", tmp_path / "o.mp4")
        with pytest.raises(ValueError, match="video: the file holds audio but no video"):
            client.add_template(audio)
    with pytest.raises(ValueError, match="not an http:// or https:// URL"):
        Client("127.0.0.1:8000")
    with Client("http://127.0.0.1:9") as client, pytest.raises(ValueError, match="the server does not answer"):
        client.render("anna", audio, tmp_path / "o.mp4")
    assert not (tmp_path / "o.mp4").exists()


def test_the_key_comes_from_the_environment(tmp_path: Path, engine: Engine, drawn: Path) -> None:
    with running(tmp_path / "data", engine, access=Access(api_keys=(KEY,))) as server:
        server.service.pin_template(drawn, name="anna")
        words = ["infer", "--url", server.url, "--template", "anna", "--audio", str(speech(tmp_path / "a.wav"))]
        words += ["--out", str(tmp_path / "o.mp4")]
        refused = runner.invoke(app, words, env={"LAWDNET_API_KEY": ""})
        assert (refused.exit_code, "give the server's key" in refused.stderr) == (1, True)
        assert runner.invoke(app, words, env={"LAWDNET_API_KEY": KEY}).exit_code == 0


def test_a_busy_server_is_asked_again(
    tmp_path: Path, engine: Engine, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lawdnet.serving.client.MOST_WAIT_SECONDS", 0.3)
    with running(tmp_path / "data", engine, queue=1) as server:
        server.service.pin_template(drawn, name="anna")
        audio = speech(tmp_path / "a.wav", 2.0)

        def work(number: int) -> None:
            with Client(server.url) as client:
                client.render("anna", audio, tmp_path / f"{number}.mp4")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.service.store.totals()["video:succeeded"] == 4
        assert server.service.store.counts()["succeeded"] == 1  # the template's
