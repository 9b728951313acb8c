"""The HTTP API as a client sees it, on a server at a real port."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lawdnet.audio.io import load_audio
from lawdnet.inference.engine import Engine
from lawdnet.serving.jobs import JobStore
from lawdnet.video import probe
from pipelines.serve.state import Access
from tests.support.serving import Running, SlowEngine, finished, make_service, running, speech, until

KEY = "0123456789abcdef"


def post(client: httpx.Client, audio: Path, **data: str) -> dict[str, Any]:
    with audio.open("rb") as file:
        answer = client.post("/v1/videos", files={"audio": file}, data=data)
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    assert answer.headers["location"] == found["urls"]["self"]
    return found


def is_problem(answer: httpx.Response, status: int, kind: str) -> bool:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    document = answer.json()
    assert (answer.status_code, document["status"], document["kind"]) == (status, status, kind), document
    assert document["detail"]
    return True


def test_ask_follow_fetch_delete(client: httpx.Client, tmp_path: Path) -> None:
    video = post(client, speech(tmp_path / "a.wav", 0.5), template="anna", options='{"keep_seconds": 90}')
    assert video["state"] in ("queued", "running")
    ended = finished(client, video)
    assert (ended["state"], ended["frames"], ended["total"], ended["progress"]) == ("succeeded", 13, 13, 1.0)
    assert ended["summary"]["frames"] == 13
    assert ended["expires"] - ended["finished"] == pytest.approx(90)
    answer = client.get(video["urls"]["content"])
    assert answer.headers["content-type"] == "video/mp4"
    (tmp_path / "made.mp4").write_bytes(answer.content)
    assert probe(tmp_path / "made.mp4").num_frames == 13
    true = load_audio(tmp_path / "a.wav")
    assert np.corrcoef(load_audio(tmp_path / "made.mp4")[: len(true)], true)[0, 1] > 0.9
    assert client.delete(video["urls"]["self"]).status_code == 204
    assert is_problem(client.get(video["urls"]["self"]), 404, "unknown_video")
    assert is_problem(client.get(video["urls"]["content"]), 404, "unknown_video")


def test_ranges_and_head(client: httpx.Client, tmp_path: Path) -> None:
    url = finished(client, post(client, speech(tmp_path / "a.wav")))["urls"]["content"]
    whole = client.get(url).content
    head = client.head(url)
    assert (head.status_code, int(head.headers["content-length"]), head.content) == (200, len(whole), b"")
    assert head.headers["accept-ranges"] == "bytes"
    for wanted, part in {"0-9": whole[:10], "5-": whole[5:], "-7": whole[-7:], "3-99999999": whole[3:]}.items():
        answer = client.get(url, headers={"range": f"bytes={wanted}"})
        assert (answer.status_code, answer.content) == (206, part)
    two = client.get(url, headers={"range": "bytes=0-1,5-6"})
    assert (two.status_code, two.headers["content-type"].partition(";")[0]) == (206, "multipart/byteranges")
    for strange in ("bytes=abc", "lines=0-3", "bytes=9-2", "bytes=-", "bytes=", f"bytes={'9' * 5000}-"):
        answer = client.get(url, headers={"range": strange})
        assert (answer.status_code, answer.content) == (200, whole), strange
    beyond = client.get(url, headers={"range": f"bytes={len(whole)}-"})
    assert is_problem(beyond, 416, "bad_range")
    assert beyond.headers["content-range"] == f"bytes */{len(whole)}"
    etag = {"if-range": head.headers["etag"]}
    assert client.get(url, headers=etag | {"range": "bytes=0-0"}).content == whole[:1]


def test_events_tell_every_step_and_end(engine: Engine, network: Path, drawn: Path, tmp_path: Path) -> None:
    slow = SlowEngine(network, device="cpu", batch_size=1)
    with running(tmp_path / "data", slow) as server, server.client() as client:
        server.service.pin_template(drawn, name="anna")
        video = post(client, speech(tmp_path / "a.wav", 1.0))
        with client.stream("GET", video["urls"]["events"]) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            lines = list(stream.iter_lines())
        events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        states = [event["state"] for event in events]
        assert list(dict.fromkeys(states)) == ["queued", "running", "succeeded"]
        progress = [event["progress"] for event in events]
        assert progress == sorted(progress)
        assert len({p for p in progress if 0 < p < 1}) >= 2
        places = [event["place"] for event in events]
        assert places[0] >= 1
        assert places[-1] == 0


def test_listeners_are_few_and_free_their_place(network: Path, drawn: Path, tmp_path: Path) -> None:
    slow = SlowEngine(network, device="cpu", batch_size=1)
    with running(tmp_path / "data", slow, listeners=1) as server, server.client() as client:
        server.service.pin_template(drawn, name="anna")
        events = post(client, speech(tmp_path / "a.wav", 60))["urls"]["events"]
        app: Any = server.server.config.app
        for _ in range(2):
            until(lambda: not app.state.server.listeners.locked())
            with server.client() as other, other.stream("GET", events) as stream:
                lines = stream.iter_lines()  # if nobody holds it, the connection ends
                assert next(lines) == "event: state"
                with client.stream("GET", events) as refused:
                    assert refused.status_code == 503
                del lines


def test_strange_methods_are_counted_together(client: httpx.Client) -> None:
    for number in range(5):
        assert client.request(f"BREW{number}", "/v1/videos").status_code == 405
    lines = [line for line in client.get("/metrics").text.splitlines() if 'status="405"' in line]
    assert lines == ['lawdnet_serve_requests_total{method="OTHER",status="405"} 5']


def test_delete_stops_a_running_video_and_frees_its_worker(network: Path, drawn: Path, tmp_path: Path) -> None:
    slow = SlowEngine(network, device="cpu", batch_size=1)
    with running(tmp_path / "data", slow) as server, server.client() as client:
        server.service.pin_template(drawn, name="anna")
        long = post(client, speech(tmp_path / "a.wav", 60))
        short = post(client, speech(tmp_path / "b.wav"))
        until(lambda: client.get(long["urls"]["self"]).json()["frames"] > 2)
        assert client.get(short["urls"]["self"]).json()["place"] == 1
        assert is_problem(client.get(long["urls"]["content"]), 409, "not_finished")
        before = len(slow.calls)
        assert client.delete(long["urls"]["self"]).status_code == 204
        assert client.get(long["urls"]["self"]).json()["state"] == "cancelled"
        assert is_problem(client.get(long["urls"]["content"]), 410, "cancelled")
        assert finished(client, short)["state"] == "succeeded"
        assert len(slow.calls) - before < 1 / slow.pause + 10  # its own ten frames, and less than a second of the other
        assert client.delete(long["urls"]["self"]).status_code == 204
        assert is_problem(client.delete(long["urls"]["self"]), 404, "unknown_video")


def test_a_full_queue_says_when_to_come_back(tmp_path: Path, drawn: Path, engine: Engine) -> None:
    with running(tmp_path / "data", engine, workers=0, queue=2) as server, server.client() as client:
        server.service.pin_template(drawn, name="anna")
        post(client, speech(tmp_path / "a.wav"))
        with (tmp_path / "a.wav").open("rb") as file:
            answer = client.post("/v1/videos", files={"audio": file})
        assert is_problem(answer, 503, "queue_full")
        assert int(answer.headers["retry-after"]) > 0
        assert len(list((server.service.data / "jobs").iterdir())) == 1


def test_a_restarted_server_has_its_videos_and_does_the_rest(tmp_path: Path, drawn: Path, engine: Engine) -> None:
    with running(tmp_path / "data", engine) as server, server.client() as client:
        server.service.pin_template(drawn, name="anna")
        done = finished(client, post(client, speech(tmp_path / "a.wav")))
        content = client.get(done["urls"]["content"]).content
    service = make_service(tmp_path / "data")
    job_id, folder = service.begin()
    speech(folder / "audio")
    service.submit_video(job_id, template="anna")
    assert service.store.claim("killed", ["default"])
    assert isinstance(service.store, JobStore)
    service.store.close()
    with running(tmp_path / "data", engine) as server, server.client() as client:
        assert client.get(done["urls"]["content"]).content == content
        assert finished(client, {"urls": {"self": f"/v1/videos/{job_id}"}})["state"] == "succeeded"


def test_templates(client: httpx.Client, drawn: Path, tmp_path: Path) -> None:
    files = {"video": drawn.read_bytes(), "landmarks": drawn.with_suffix(".csv").read_bytes()}
    answer = client.post("/v1/templates", files=files, data={"name": "bert"})
    assert answer.status_code == 202, answer.text
    url = answer.json()["urls"]["self"]
    assert answer.headers["location"] == url == "/v1/templates/bert"
    until(lambda: client.get(url).json()["state"] == "ready")
    found = client.get(url).json()
    assert (found["width"], found["height"], found["seconds"], found["pinned"]) == (128, 160, 3.0, False)
    assert [template["name"] for template in client.get("/v1/templates").json()] == ["anna", "bert"]
    assert client.get(f"{url}/content").content == files["video"]
    assert client.post("/v1/templates", files=files, data={"name": "bert"}).status_code == 202  # the same again
    changed = files | {"video": files["video"] + b"\0\0\0\x08free"}
    assert is_problem(client.post("/v1/templates", files=changed, data={"name": "bert"}), 409, "name_taken")
    assert finished(client, post(client, speech(tmp_path / "a.wav"), template="bert"))["state"] == "succeeded"
    assert client.delete(url).status_code == 204
    assert is_problem(client.get(url), 404, "unknown_template")
    assert is_problem(client.delete("/v1/templates/anna"), 409, "pinned")


def test_operations(client: httpx.Client, tmp_path: Path) -> None:
    finished(client, post(client, speech(tmp_path / "a.wav")))
    assert client.get("/healthz").text == "ok\n"
    assert client.get("/readyz").json() == {"ready": True}
    text = client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['lawdnet_serve_finished_total{kind="video",state="succeeded"}']) >= 1
    assert float(values["lawdnet_serve_frames_total"]) >= 10
    assert float(values['lawdnet_serve_requests_total{method="POST",status="202"}']) >= 1
    assert values['lawdnet_serve_jobs{state="queued"}'] == "0"
    info = client.get("/v1/info").json()
    assert (info["models"], info["default_template"]) == (["default"], "anna")
    docs = client.get("/docs")
    assert "POST /v1/videos" in docs.text
    assert "http" not in docs.text.replace("http_", "").lower().split("<main>")[0]  # nothing from elsewhere
    assert "/v1/videos/{video_id}/content" in client.get("/openapi.json").json()["paths"]


def test_the_key(tmp_path: Path, engine: Engine, drawn: Path) -> None:
    with running(tmp_path / "data", engine, workers=0, access=Access(api_keys=(KEY, "other-key-12345678"))) as server:
        server.service.pin_template(drawn, name="anna")
        with server.client() as client:
            for path in ("/v1/templates", "/metrics", "/v1/info", f"/v1/videos/{'0' * 32}"):
                answer = client.get(path)
                assert is_problem(answer, 401, "no_key")
                assert answer.headers["www-authenticate"] == "Bearer"
            for route in ("/v1/videos", "/v1/templates", "/upload-audio", "/generate_video"):
                assert is_problem(client.post(route, content=b"x" * 1000), 401, "no_key")
            assert client.get("/healthz").status_code == 200
            assert client.get("/").status_code == 200
        for headers in (
            {"authorization": f"Bearer {KEY}"},
            {"x-api-key": KEY},
            {"authorization": "bearer other-key-12345678"},
        ):
            with server.client(headers=headers) as client:
                assert client.get("/v1/templates").status_code == 200
        wrong: list[dict[str, Any]] = [{"authorization": KEY}, {"x-api-key": KEY[:-1]}, {"x-api-key": b"\xe9\xff"}]
        for headers in (*wrong, {"authorization": "Bearer"}):
            with server.client(headers=headers) as client:
                assert client.get("/v1/templates").status_code == 401


def test_pages_of_other_sites_are_kept_out(client: httpx.Client, server: Running) -> None:
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        assert is_problem(client.post("/v1/videos", headers={"origin": origin}), 403, "foreign_page")
    assert client.get("/v1/templates", headers={"origin": server.url}).status_code == 200
    assert is_problem(client.get("/v1/templates", headers={"host": "evil.example"}), 421, "wrong_host")
    answer = client.get("/v1/templates", headers={"origin": server.url})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_rate_of_one_client_is_limited(tmp_path: Path, engine: Engine) -> None:
    with running(tmp_path / "data", engine, workers=0, posts_per_minute=20) as server, server.client() as client:
        codes = [client.post("/v1/videos", files={"audio": b"x"}).status_code for _ in range(4)]
        assert codes == [422, 422, 429, 429]
        answer = client.post("/v1/videos", files={"audio": b"x"})
        assert is_problem(answer, 429, "too_many_requests")
        assert 0 < int(answer.headers["retry-after"]) <= 3
        assert client.get("/v1/templates").status_code == 200


def test_two_clients_never_get_each_others_video(client: httpx.Client, server: Running, tmp_path: Path) -> None:
    made: dict[int, bytes] = {}

    def work(seed: int) -> None:
        with server.client() as mine:
            video = finished(mine, post(mine, speech(tmp_path / f"{seed}.wav", 0.2 + seed / 25, seed)))
            made[seed] = mine.get(video["urls"]["content"]).content

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 6
    for seed, content in made.items():
        (tmp_path / "out.mp4").write_bytes(content)
        true = load_audio(tmp_path / f"{seed}.wav")
        assert np.corrcoef(load_audio(tmp_path / "out.mp4")[: len(true)], true)[0, 1] > 0.9
