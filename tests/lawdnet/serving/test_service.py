"""The service with its worker, on a small untrained generator and a drawn person."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from lawdnet.audio.io import load_audio
from lawdnet.inference.engine import Engine
from lawdnet.serving.jobs import JobStore, State
from lawdnet.serving.problems import Problem
from lawdnet.serving.service import Service
from lawdnet.serving.worker import AUDIO, WorkerThreads
from lawdnet.video import probe
from tests.support.serving import SlowEngine, make_service, make_worker, small_generator, speech, until


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_generator(tmp_path_factory.mktemp("network") / "clip_96" / "epoch_0001")


@pytest.fixture(scope="module")
def engine(run: Path) -> Engine:
    return Engine(run, device="cpu")


@pytest.fixture
def service(tmp_path: Path, drawn: Path) -> Service:
    found = make_service(tmp_path / "data")
    found.pin_template(drawn, name="anna")
    return found


def ask(service: Service, seconds: float = 0.4, template: str = "anna", **more: float) -> str:
    job_id, folder = service.begin()
    speech(folder / AUDIO, seconds)
    return service.submit_video(job_id, template=template, **more).id  # type: ignore[arg-type]


def test_a_video_is_rendered_with_its_own_audio(service: Service, engine: Engine, tmp_path: Path) -> None:
    worker = make_worker(service, engine)
    job_id = ask(service)
    assert service.store.place(job_id) == 2  # after the template
    assert service.template("anna").state == "preparing"
    assert worker.run_once()
    assert service.template("anna").state == "ready"
    with pytest.raises(Problem, match="the video is queued") as caught:
        service.content(job_id)
    assert caught.value.status == 409
    assert worker.run_once()
    assert not worker.run_once()
    job = service.video(job_id)
    assert (job.state, job.frames, job.total) == (State.SUCCEEDED, 10, 10)
    assert job.summary
    assert job.summary["frames"] == 10
    made = service.content(job_id)
    assert (probe(made).num_frames, probe(made).sample_rate) == (10, 48_000)
    true = load_audio(speech(tmp_path / "true.wav"))
    assert np.corrcoef(load_audio(made)[: len(true)], true)[0, 1] > 0.9


def test_a_prepared_template_is_shared_through_its_file(
    service: Service, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_worker(service, engine).run_once()
    row = service.template("anna").row
    first = service.files.load(row.content, engine, row.face, lambda: None)
    other = type(service.files)(service.files.folder)  # as another process sees it
    monkeypatch.setattr("lawdnet.serving.templates.prepare", lambda *_, **__: pytest.fail("prepared twice"))
    second = other.load(row.content, engine, row.face, lambda: None)
    assert np.array_equal(first.matrix_T33, second.matrix_T33)
    assert np.array_equal(first.reference_5HW3, second.reference_5HW3)
    assert (first.height, first.reference_ticks) == (second.height, second.reference_ticks)


def test_a_damaged_prepared_file_is_made_again(service: Service, engine: Engine) -> None:
    make_worker(service, engine).run_once()
    row = service.template("anna").row
    (file,) = (service.files.folder / row.content).glob("*.npz")
    file.write_bytes(file.read_bytes()[:100])
    other = type(service.files)(service.files.folder)
    assert other.load(row.content, engine, row.face, lambda: None).usable_T.all()
    assert len(file.read_bytes()) > 100


def test_a_cancelled_job_stops_at_once_and_leaves_nothing(service: Service, run: Path) -> None:
    engine = SlowEngine(run, device="cpu", batch_size=1)
    threads = WorkerThreads([make_worker(service, engine)])
    threads.start()
    try:
        job_id = ask(service, seconds=60)
        other = ask(service)
        until(lambda: service.video(job_id).frames > 3)
        service.delete_video(job_id)
        before = len(engine.calls)
        assert service.video(job_id).state is State.CANCELLED
        until(lambda: service.video(other).state is not State.QUEUED)
        assert len(engine.calls) - before < 1 / engine.pause + 10  # the other's are among them
        assert not service.folder(job_id).exists()
        with pytest.raises(Problem, match="was cancelled"):
            service.content(job_id)
        until(lambda: service.video(other).state is State.SUCCEEDED)
        assert not service.folder(job_id).exists()
    finally:
        threads.stop()


def test_a_job_that_hangs_fails_and_its_worker_says_so(
    service: Service, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lawdnet.serving.worker.STALL_SECONDS", 0.3)
    worker = make_worker(service, engine)
    worker.run_once()
    assert not worker.is_stuck
    hangs = threading.Event()
    monkeypatch.setattr(Engine, "render", lambda *_, **__: hangs.wait(30))
    job_id = ask(service)
    thread = threading.Thread(target=worker.run_once)
    thread.start()
    until(lambda: service.video(job_id).state is State.FAILED)
    problem = service.video(job_id).problem
    assert problem
    assert problem["kind"] == "timeout"
    assert worker.is_stuck
    hangs.set()
    thread.join()
    assert service.video(job_id).state is State.FAILED


def test_a_server_that_stops_puts_its_job_back(service: Service, run: Path) -> None:
    threads = WorkerThreads([make_worker(service, SlowEngine(run, device="cpu", batch_size=1))])
    threads.start()
    job_id = ask(service, seconds=60)
    until(lambda: service.video(job_id).frames > 1)
    began = time.monotonic()
    threads.stop()
    assert time.monotonic() - began < 2
    assert (service.video(job_id).state, service.video(job_id).attempts) == (State.QUEUED, 0)


def test_a_restart_finishes_what_was_running(
    service: Service, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = ask(service)
    worker = make_worker(service, engine)
    assert worker.run_once()
    assert worker.run_once()
    running = ask(service)
    assert service.store.claim("killed", ["default"])
    assert isinstance(service.store, JobStore)
    service.store.close()
    again = make_service(tmp_path / "data")
    again.store.retry_lost(everything=True)
    assert again.content(done).is_file()
    assert make_worker(again, engine).run_once()
    assert again.video(running).state is State.SUCCEEDED


def test_a_template_without_a_face_fails_with_its_reason(service: Service, engine: Engine, drawn: Path) -> None:
    worker = make_worker(service, engine)
    worker.run_once()
    job_id, folder = service.begin()
    video = Path(shutil.copy(drawn, folder / "video"))
    lines = drawn.with_suffix(".csv").read_text().splitlines()
    video.with_suffix(".csv").write_text(lines[0] + "\n")
    service.submit_template(job_id, video, name="nobody")
    worker.run_once()
    status = service.template("nobody")
    assert status.state == "failed"
    assert status.job
    assert status.job.problem
    assert status.job.problem["status"] == 422
    assert str(service.data) not in status.job.problem["detail"]
    with pytest.raises(Problem, match="template nobody cannot be used"):
        ask(service, template="nobody")


def test_the_same_template_twice_is_one_content(service: Service, engine: Engine, drawn: Path) -> None:
    for name in ("bert", "carl", "bert"):
        job_id, folder = service.begin()
        video = Path(shutil.copy(drawn, folder / "video"))
        shutil.copy(drawn.with_suffix(".csv"), video.with_suffix(".csv"))
        service.submit_template(job_id, video, name=name)
        assert not service.folder(job_id).exists()
    rows = [status.row for status in service.templates()]
    assert [row.name for row in rows] == ["anna", "bert", "carl"]
    assert len({row.content for row in rows}) == 1
    assert len(list(service.files.folder.iterdir())) == 1
    service.delete_template("bert")
    assert service.files.video(rows[0].content).is_file()  # the others still have it
    with pytest.raises(Problem, match="command line"):
        service.delete_template("anna")


def test_deleting_the_last_name_deletes_the_files(tmp_path: Path, drawn: Path) -> None:
    service = make_service(tmp_path / "data")
    job_id, folder = service.begin()
    service.submit_template(job_id, Path(shutil.copy(drawn, folder / "video")), name="bert")
    (content,) = service.files.folder.iterdir()
    service.delete_template("bert")
    assert not content.exists()
    assert drawn.is_file()


def test_expired_results_and_orphans_are_deleted(service: Service, engine: Engine) -> None:
    job_id = ask(service, keep_seconds=60)
    worker = make_worker(service, engine)
    assert worker.run_once()
    assert worker.run_once()
    orphan = service.folder("0" * 32)
    orphan.mkdir()
    service.store._clock = lambda: time.time() + 61  # type: ignore[attr-defined]
    service.sweep()
    assert not service.folder(job_id).exists()
    with pytest.raises(Problem, match="no video has this id"):
        service.video(job_id)
    service.tidy()
    assert orphan.exists()  # it may be an upload
    service.tidy(older_than=-1)
    assert not orphan.exists()
    assert service.template("anna").state == "ready"


def test_a_full_disk_fails_the_job_and_not_the_worker(
    service: Service, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker(service, engine)
    worker.run_once()
    first, second = ask(service), ask(service)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "render", full)
        assert worker.run_once()
    assert service.video(first).problem
    assert service.video(first).problem["status"] == 507  # type: ignore[index]
    assert worker.run_once()
    assert service.video(second).state is State.SUCCEEDED


def test_no_room_is_said_before_the_upload(tmp_path: Path) -> None:
    service = make_service(tmp_path / "data", free_bytes=1 << 60)
    with pytest.raises(Problem, match="disk is nearly full") as caught:
        service.begin()
    assert caught.value.status == 507


def test_two_jobs_of_one_template_prepare_it_once(
    service: Service, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    from lawdnet.serving import templates

    real = templates.prepare
    monkeypatch.setattr(templates, "prepare", lambda *a, **k: (calls.append(1), real(*a, **k))[1])
    row = service.template("anna").row
    threads = [
        threading.Thread(target=service.files.load, args=(row.content, engine, row.face, lambda: None))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
