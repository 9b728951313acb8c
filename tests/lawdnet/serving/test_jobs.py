"""The job store: order, leases, retries, a limit to the queue, and what is left after a restart."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from lawdnet.serving.jobs import Job, JobStore, State, TemplateRow
from lawdnet.serving.problems import Problem


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> JobStore:
    return JobStore(tmp_path / "jobs.sqlite", lease_seconds=10, clock=clock)


def add(store: JobStore, model: str = "m", max_queue: int = 99) -> str:
    job = Job(id="", kind="video", model=model, template="t", keep_seconds=100, total=5)
    return store.submit(job, max_queue).id


def state(store: JobStore, job_id: str) -> State:
    job = store.get(job_id)
    assert job
    return job.state


def test_jobs_are_taken_in_order_and_each_by_one_worker(store: JobStore) -> None:
    ids = [add(store) for _ in range(3)]
    assert [store.place(job) for job in ids] == [1, 2, 3]
    first, second = store.claim("a", ["m"]), store.claim("b", ["m"])
    assert first
    assert second
    assert [first.id, second.id] == ids[:2]
    assert [store.place(job) for job in ids] == [0, 0, 1]
    assert store.claim("c", ["other"]) is None


def test_two_workers_at_the_same_moment_never_get_the_same_job(store: JobStore) -> None:
    ids = {add(store) for _ in range(60)}
    taken: list[str] = []

    def work(name: str) -> None:
        while job := store.claim(name, ["m"]):
            taken.append(job.id)

    threads = [threading.Thread(target=work, args=(str(n),)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 60
    assert set(taken) == ids


def test_ids_cannot_be_guessed(store: JobStore) -> None:
    ids = [add(store) for _ in range(50)]
    assert len(set(ids)) == 50
    assert all(len(bytes.fromhex(job)) == 16 for job in ids)


def test_a_full_queue_refuses_and_says_when_to_come_back(store: JobStore) -> None:
    add(store, max_queue=1)
    with pytest.raises(Problem, match="1 jobs are waiting") as caught:
        add(store, max_queue=1)
    assert (caught.value.status, caught.value.retry_after) == (503, 10)


def test_a_lost_worker_costs_one_retry_and_then_the_job(store: JobStore, clock: Clock) -> None:
    job = add(store)
    later = add(store)
    assert store.claim("a", ["m"])
    clock.now += 8
    assert store.beat(job, "a", 2, 5)
    clock.now += 8
    assert store.retry_lost() == 0  # the heartbeat had extended the lease
    clock.now += 3
    assert store.retry_lost() == 1
    assert [store.place(job), store.place(later)] == [1, 2]  # back to where it was
    assert not store.beat(job, "a", 3, 5)
    again = store.claim("b", ["m"])
    assert again
    assert (again.id, again.attempts) == (job, 2)
    assert not store.finish(job, "a", State.SUCCEEDED)  # whoever lost the lease changes nothing
    assert state(store, job) is State.RUNNING
    clock.now += 11
    store.retry_lost()
    failed = store.get(job)
    assert failed
    assert failed.state is State.FAILED
    assert failed.problem
    assert failed.problem["kind"] == "worker_lost"


def test_a_worker_that_is_asked_to_end_costs_no_attempt(store: JobStore) -> None:
    job = add(store)
    for _ in range(5):
        assert store.claim("a", ["m"])
        store.release(job, "a")
    found = store.get(job)
    assert found
    assert (found.state, found.attempts) == (State.QUEUED, 0)


def test_cancelling(store: JobStore) -> None:
    waiting, running, done = add(store), add(store), add(store)
    store.cancel(waiting)
    assert store.claim("a", ["m"]).id == running  # type: ignore[union-attr]
    store.cancel(running)
    assert not store.beat(running, "a", 1, 5)
    assert not store.finish(running, "a", State.SUCCEEDED)
    store.claim("a", ["m"])
    assert store.finish(done, "a", State.SUCCEEDED, frames=5)
    assert not store.cancel(done)
    assert [state(store, job) for job in (waiting, running, done)] == ["cancelled", "cancelled", "succeeded"]


def test_results_expire(store: JobStore, clock: Clock) -> None:
    done, waiting = add(store), add(store)
    store.claim("a", ["m"])
    store.finish(done, "a", State.SUCCEEDED)
    clock.now += 99
    assert store.expired() == []
    clock.now += 2
    assert store.expired() == [done]
    store.remove(done)
    assert store.get(done) is None
    assert store.job_ids() == [waiting]


def test_everything_is_there_after_a_restart(store: JobStore, clock: Clock, tmp_path: Path) -> None:
    done, running, waiting = add(store), add(store), add(store)
    store.claim("a", ["m"])
    store.finish(done, "a", State.SUCCEEDED, summary={"frames": 5})
    store.claim("a", ["m"])
    store.close()
    again = JobStore(tmp_path / "jobs.sqlite", clock=clock)
    assert again.retry_lost(everything=True) == 1
    assert [state(again, job) for job in (done, running, waiting)] == ["succeeded", "queued", "queued"]
    assert again.get(done).summary == {"frames": 5}  # type: ignore[union-attr]
    assert again.totals() == {"video:succeeded": 1, "frames": 5, "seconds": 0}
    assert again.counts()["queued:m"] == 2


def test_a_second_server_in_the_folder_is_refused(store: JobStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="another server uses this folder"):
        JobStore(tmp_path / "jobs.sqlite")


def test_files_of_later_versions_and_damaged_ones_are_refused(store: JobStore, tmp_path: Path) -> None:
    store.close()
    db = sqlite3.connect(tmp_path / "jobs.sqlite")
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(ValueError, match="a later version"):
        JobStore(tmp_path / "jobs.sqlite")
    (tmp_path / "bad.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(ValueError, match="damaged"):
        JobStore(tmp_path / "bad.sqlite")


def test_template_names_are_unique(store: JobStore) -> None:
    def row(content: str, name: str = "anna", pinned: bool = False) -> TemplateRow:
        size = {"height": 1, "width": 1, "frames": 1}
        return TemplateRow(name=name, content=content, job="", pinned=pinned, created=0, face="largest", **size)

    store.add_template(row("x"), 2)
    store.add_template(row("x"), 1)
    with pytest.raises(Problem, match="another content"):
        store.add_template(row("y"), 2)
    with pytest.raises(Problem, match="there are 1 templates"):
        store.add_template(row("x", "bert"), 1)
    store.add_template(row("y", pinned=True), 2)  # the owner may
    add(store)
    assert sorted(store.contents_in_use()) == ["t", "y"]
