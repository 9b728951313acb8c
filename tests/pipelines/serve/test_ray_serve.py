"""The server on Ray Serve: gateways, one job store, renderers that may be killed."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from websockets.sync.client import connect

from tests.support.serving import finished, speech, until

serve = pytest.importorskip("ray.serve", reason="needs ray[serve]: pip install -e '.[serve]'")

from pipelines.serve.app import JOBS, AppConfig, RemoteStore, build_app  # noqa: E402

KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def url(ray_session: None, network: Path, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "keys").write_text(KEY)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    args = {
        "models": {"first": str(network), "second": str(network)},
        "data": str(folder / "data"),
        "templates": {"anna": str(drawn)},
        "device": "cpu",
        "num_cpus": 0.25,
        "min_replicas": 1,
        "max_replicas": 2,
        "live": True,
        "lease_seconds": 2,
        "api_key_file": str(folder / "keys"),
        "limits": {"free_bytes": 1, "posts_per_minute": 100_000},
    }
    serve.run(build_app(args), name="lawdnet")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60, headers={"x-api-key": KEY}) as found:
        until(lambda: found.get("/readyz").status_code == 200, 60)
        yield found


def ask(client: httpx.Client, audio: Path, **data: str) -> dict[str, Any]:
    answer = client.post("/v1/videos", files={"audio": audio.read_bytes()}, data=data)
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


def store() -> Any:
    return RemoteStore(serve.get_deployment_handle(JOBS, app_name="lawdnet"))


def test_it_answers_like_the_local_one(client: httpx.Client, url: str, tmp_path: Path) -> None:
    assert httpx.get(f"{url}/v1/templates").status_code == 401
    audio = speech(tmp_path / "a.wav", 0.5)
    videos = [ask(client, audio, options=f'{{"model": "{model}"}}') for model in ("first", "second")]
    for video in videos:
        ended = finished(client, video)
        assert (ended["state"], ended["frames"]) == ("succeeded", 13)
        content = client.get(video["urls"]["content"], headers={"range": "bytes=0-9"})
        assert (content.status_code, len(content.content)) == (206, 10)
    with client.stream("GET", videos[0]["urls"]["events"]) as stream:
        assert '"state":"succeeded"' in "".join(stream.iter_text())
    assert client.post("/v1/videos", files={"audio": b"text"}).json()["kind"] == "not_a_video"
    assert client.get(f"/v1/videos/{'0' * 32}").json()["kind"] == "unknown_video"
    assert client.delete(videos[0]["urls"]["self"]).status_code == 204
    assert client.post("/generate_video", files={"audio": audio.read_bytes()}).headers["content-type"] == "video/mp4"
    assert 'lawdnet_serve_finished_total{kind="video",state="succeeded"}' in client.get("/metrics").text


def test_it_speaks_live(client: httpx.Client, url: str, tmp_path: Path) -> None:
    files = {"audio": speech(tmp_path / "a.wav", 0.5).read_bytes()}
    assert httpx.post(f"{url}/v1/videos/stream", files=files).status_code == 401
    until(lambda: client.get("/v1/templates/anna").json()["state"] == "ready", 30)
    film = client.post("/v1/videos/stream", files=files)
    assert (film.status_code, film.content[4:8]) == (200, b"ftyp"), film.text
    with connect(f"{url.replace('http', 'ws')}/v1/live") as socket:
        socket.send(json.dumps({"type": "start", "template": "anna", "key": KEY}))
        assert json.loads(socket.recv(timeout=30))["type"] == "ready"
        socket.send((3000 * np.random.default_rng(0).standard_normal(8000)).astype("<i2").tobytes())
        frames = [message for message in (socket.recv(timeout=30) for _ in range(10)) if isinstance(message, bytes)]
    assert any(b"\xff\xd8\xff" in frame for frame in frames)


@pytest.mark.slow
def test_a_killed_renderer_costs_no_video(client: httpx.Client, tmp_path: Path) -> None:
    videos = [ask(client, speech(tmp_path / f"{n}.wav", 30, n)) for n in range(2)]
    jobs = store()
    until(lambda: any(jobs.get(video["id"]).frames > 5 for video in videos), 60)
    running = next(job for job in (jobs.get(video["id"]) for video in videos) if job.frames > 5)
    os.kill(int(running.worker.split(":")[1]), signal.SIGKILL)
    for video in videos:
        ended = finished(client, video)
        assert (ended["state"], ended["frames"]) == ("succeeded", 750), ended["problem"]
    again = jobs.get(running.id)
    assert again.attempts == 2
    assert again.worker != running.worker


@pytest.mark.slow
def test_a_killed_job_store_comes_back_with_its_jobs(client: httpx.Client, tmp_path: Path) -> None:
    done = finished(client, ask(client, speech(tmp_path / "a.wav")))
    video = ask(client, speech(tmp_path / "b.wav", 10))
    children = psutil.Process().children(recursive=True)
    (owner,) = (child for child in children if f"ServeReplica:lawdnet:{JOBS}" in " ".join(child.cmdline()))
    owner.kill()
    assert finished_through_restarts(client, video)["frames"] == 250
    assert client.get(done["urls"]["content"]).status_code == 200


def finished_through_restarts(client: httpx.Client, video: dict[str, Any]) -> dict[str, Any]:
    """Like `finished`, but 503 is no error."""
    found: dict[str, Any] = {}

    def has_ended() -> bool:
        answer = client.get(video["urls"]["self"])
        assert answer.status_code in (200, 503), answer.text
        found.update(answer.json() if answer.status_code == 200 else {})
        return bool(found.get("finished"))

    until(has_ended, 90)
    return found


def test_arguments() -> None:
    config = AppConfig.parse({"models": "run", "data": "d", "limits": {"queue": 3}, "num_gpus": 0.25})
    assert (config.models, config.limits.queue, config.num_gpus) == ({"default": "run"}, 3, 0.25)
    with pytest.raises(ValueError, match="unknown argument gpus; valid are api_key_file"):
        AppConfig.parse({"models": "run", "data": "d", "gpus": 1})
    with pytest.raises(ValueError, match="min_replicas, max_replicas: 3 to 2"):
        AppConfig.parse({"models": "run", "data": "d", "min_replicas": 3})
