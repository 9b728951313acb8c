"""Whatever a client sends: a clear problem document, and the next request works."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lawdnet.inference.engine import Engine
from tests.support.bad_requests import ACCEPTED, FORMS, GOOD, MULTIPART, POST, RAW, Form, audio, wav
from tests.support.malformed import CORPUS, NAMES, PLACES, Maker
from tests.support.serving import Running, finished, running, until

MEDIA = {name: maker for name, (_, maker) in CORPUS.items() if name not in {**NAMES, **PLACES}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, engine: Engine, drawn: Path) -> Iterator[Running]:
    """A server that takes little."""
    limits = {"posts_per_minute": 1e6, "audio_bytes": 2 << 20, "video_bytes": 2 << 20, "audio_seconds": 60}
    with running(tmp_path_factory.mktemp("server"), engine, queue=500, **limits) as found:
        found.service.pin_template(drawn, name="anna")
        until(lambda: found.service.template("anna").state == "ready")
        yield found
        known = set(found.service.store.job_ids())
        assert {path.name for path in uploads(found)} <= known  # nothing refused is kept


def works(client: httpx.Client) -> None:
    """The next request works."""
    answer = client.post("/v1/videos", files={"audio": wav(0.08)})
    assert answer.status_code == 202, answer.text
    assert finished(client, answer.json())["state"] == "succeeded"


def check_problem(answer: httpx.Response, data: Path) -> None:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    document = answer.json()
    assert set(document) == {"type", "title", "status", "kind", "detail"}
    assert document["status"] == answer.status_code
    assert 400 <= answer.status_code < 500
    assert len(document["detail"]) > 10
    assert document["detail"].isprintable()
    assert str(data) not in answer.text  # nothing of our inside
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("case", FORMS.values(), ids=list(FORMS))
def test_forms(client: httpx.Client, server: Running, case: Form) -> None:
    status, kind, route, request = case
    answer = client.post(route, **request)
    check_problem(answer, server.service.data)
    assert answer.status_code == status, answer.text
    assert kind in ("any", answer.json()["kind"]), answer.text
    works(client)


@pytest.mark.parametrize("request_", ACCEPTED.values(), ids=list(ACCEPTED))
def test_odd_audio_is_rendered(client: httpx.Client, request_: dict[str, object]) -> None:
    answer = client.post("/v1/videos", **request_)  # type: ignore[arg-type]
    assert answer.status_code == 202, answer.text
    assert finished(client, answer.json())["state"] == "succeeded"


@pytest.mark.parametrize(("statuses", "sent"), RAW.values(), ids=list(RAW))
def test_raw_bytes(client: httpx.Client, server: Running, statuses: set[int], sent: bytes) -> None:
    answer = raw(server, sent)
    assert answer.startswith(b"HTTP/1.1 ")
    status = int(answer[9:12])
    assert status in statuses, answer[:300]
    works(client)


def uploads(server: Running) -> list[Path]:
    """The folders of jobs."""
    folder = server.service.data / "jobs"
    return list(folder.iterdir()) if folder.is_dir() else []


def raw(server: Running, sent: bytes) -> bytes:
    """What the server answers to these bytes, up to its headers."""
    port = int(server.url.rpartition(":")[2])
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        try:
            connection.sendall(sent)
            while b"\r\n\r\n" not in received and (chunk := connection.recv(65536)):
                received += chunk
        except ConnectionError:  # it was told enough
            pass
    return received


def test_slow_uploads_end_and_free_their_slot(engine: Engine, tmp_path: Path, drawn: Path) -> None:
    limits = {"idle_seconds": 0.5, "upload_seconds": 1.5, "uploads": 1}
    with running(tmp_path / "data", engine, **limits) as server, server.client() as client:
        server.service.pin_template(drawn, name="anna")
        port = int(server.url.rpartition(":")[2])
        for pause, most in ((5.0, 4), (0.2, 5)):  # one that stands still, and one that trickles
            with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
                connection.sendall(POST + MULTIPART + b"Content-Length: 9999\r\n\r\n" + GOOD[:50])
                until(lambda: bool(uploads(server)))
                busy = client.post("/v1/videos", **audio(wav()))
                assert (busy.status_code, busy.json()["kind"]) == (503, "too_many_uploads")
                began = time.monotonic()
                connection.settimeout(pause)
                answer = b""
                while not answer and time.monotonic() - began < 15:
                    try:
                        answer = connection.recv(65536)
                    except TimeoutError:
                        connection.sendall(b"y")
                assert answer.startswith(b"HTTP/1.1 408 "), answer
                assert time.monotonic() - began < most + 5  # the machine may be busy
            until(lambda: not uploads(server))
        works(client)


def test_a_client_that_goes_away_in_an_upload_frees_its_slot(engine: Engine, tmp_path: Path, drawn: Path) -> None:
    with running(tmp_path / "data", engine, uploads=1) as server, server.client() as client:
        server.service.pin_template(drawn, name="anna")
        for _ in range(3):
            port = int(server.url.rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
                connection.sendall(POST + MULTIPART + b"Content-Length: 9999\r\n\r\n" + GOOD[:50])
                until(lambda: bool(uploads(server)))
            until(lambda: not uploads(server))
        works(client)


def test_a_full_disk_is_507_and_the_server_lives(
    client: httpx.Client, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.serve.upload import Form as Parser

    def full(self: Parser, chunk: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Parser, "write", full)
        answer = client.post("/v1/videos", **audio(wav()))
    assert (answer.status_code, answer.json()["kind"]) == (507, "disk_full")
    assert int(answer.headers["retry-after"]) > 0
    works(client)


def test_ids_of_others_are_unknown(client: httpx.Client, server: Running) -> None:
    template_job = server.service.template("anna").row.job
    for video_id in ("0" * 32, "x", "..%2f..", template_job, "A" * 32, "0" * 5000, "%00"):
        for suffix in ("", "/content", "/events"):
            answer = client.get(f"/v1/videos/{video_id}{suffix}")
            check_problem(answer, server.service.data)
            assert answer.status_code == 404
        assert client.delete(f"/v1/videos/{video_id}").status_code == 404
    for method, path in (("PUT", "/v1/videos"), ("GET", "/v1/nothing"), ("PATCH", "/v1/templates/anna")):
        answer = client.request(method, path)
        check_problem(answer, server.service.data)
        assert answer.status_code in (404, 405)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "maker"), MEDIA.items(), ids=list(MEDIA))
def test_malformed_media_as_audio(
    client: httpx.Client, server: Running, drawn: Path, media: Path, name: str, maker: Maker
) -> None:
    maker(drawn, media / name)
    answer = client.post("/v1/videos", files={"audio": (media / name).read_bytes()})
    if answer.status_code == 202:
        ended = finished(client, answer.json())
        assert ended["state"] == "succeeded", ended["problem"]
    else:
        check_problem(answer, server.service.data)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "maker"), MEDIA.items(), ids=list(MEDIA))
def test_malformed_media_as_templates(
    client: httpx.Client, server: Running, drawn: Path, media: Path, name: str, maker: Maker
) -> None:
    path = media / name
    if not path.exists():
        maker(drawn, path)
    files = {"video": path.read_bytes()}
    csv = path.with_suffix(".csv") if path.with_suffix(".csv").is_file() else drawn.with_suffix(".csv")
    files["landmarks"] = csv.read_bytes()
    answer = client.post("/v1/templates", files=files, data={"name": "odd"})
    if answer.status_code != 202:
        check_problem(answer, server.service.data)
        return
    until(lambda: client.get("/v1/templates/odd").json()["state"] != "preparing")
    found = client.get("/v1/templates/odd").json()
    if found["state"] == "ready":
        works(client)
    else:
        assert found["problem"]["status"] == 422, found["problem"]
        assert str(server.service.data) not in found["problem"]["detail"]
    assert client.delete("/v1/templates/odd").status_code == 204
