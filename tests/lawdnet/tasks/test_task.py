"""What happens to the items of a task in one process: each has its record, and only its own trouble."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from lawdnet.storage import Beat, locate
from lawdnet.tasks.attempts import MAX_ATTEMPTS, MAX_EXCUSED, Attempt, Attempts
from lawdnet.tasks.disk import DiskFull, is_scratch_full
from lawdnet.tasks.records import RecordStore, TaskRecord
from lawdnet.tasks.task import Job, Progress, Task, TaskRunner, batch_key
from lawdnet.types import Rejected, RejectReason
from pipelines.executor import complete
from tests.support.in_process import map_in_process


@dataclass(frozen=True)
class Word:
    key: str
    inputs: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"the word {self.key}"

    def record(self) -> TaskRecord:
        return TaskRecord(inputs=self.inputs)


def refuse(error: Exception) -> Callable[[], None]:
    def raise_it() -> None:
        raise error

    return raise_it


ODD: dict[str, Callable[[], None]] = {
    "rejected": refuse(Rejected(RejectReason.NO_AUDIO, "it is silent")),
    "bug": refuse(RuntimeError("a bug")),
    "full": refuse(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/the/disk")),
    "other": refuse(PermissionError(13, "Permission denied")),
}


class Say(Task[Word, TaskRecord]):
    item_type = Word
    record_type = TaskRecord
    said: ClassVar[list[str]] = []

    def __init__(self, job: Job, beat: Beat) -> None:
        self.store = RecordStore(Path(job.root) / ".say", TaskRecord)

    def run(self, item: Word, record: TaskRecord) -> None:
        self.said.append(item.key)
        ODD.get(item.key, lambda: None)()
        record.status = "said"


class SayTogether(Say):
    @staticmethod
    def batches(items: Sequence[Word], workers: int) -> Iterator[Sequence[Word]]:
        yield items

    def prepare(self, items: Sequence[Word]) -> Any:
        return self._breathe(items)

    @contextmanager
    def _breathe(self, items: Sequence[Word]) -> Iterator[None]:
        self.said.append("(breathe)")
        ODD.get(f"{items[0].key}!", lambda: None)()
        yield
        self.said.append("(rest)")


@pytest.fixture(autouse=True)
def said() -> list[str]:
    Say.said.clear()
    return Say.said


def records(runner: TaskRunner[Word, TaskRecord], *keys: str) -> list[tuple[str, str, str]]:
    found = [record for _, record in runner([Word(key) for key in keys])]
    return [(record.status, record.reason, record.detail) for record in found]


def test_each_item_has_its_record(tmp_path: Path) -> None:
    runner = TaskRunner(Say, Job(root=str(tmp_path), run="one"))
    assert records(runner, "a", "rejected", "bug", "other", "b") == [
        ("said", "", ""),
        ("rejected", "no_audio", "it is silent"),
        ("failed", "internal_error", "RuntimeError: a bug"),
        ("failed", "internal_error", "PermissionError: [Errno 13] Permission denied"),
        ("said", "", ""),
    ]
    stored = runner.store.read("a")
    assert stored is not None
    assert (stored.status, stored.run) == ("said", "one")
    assert sorted(path.suffix for path in runner.store.folder.iterdir()) == [".json"] * 5, "attempts are forgotten"


def test_a_full_disk_ends_the_job_and_is_no_fault_of_the_item(tmp_path: Path) -> None:
    runner = TaskRunner(Say, Job(root=str(tmp_path)))
    with pytest.raises(DiskFull, match=r"^/the/disk: No space left on device; make room and run the same command"):
        records(runner, "a", "full", "b")
    assert runner.store.loose_keys() == ["a"]


def test_a_full_temporary_folder_costs_the_item_that_met_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch, root = tmp_path / "scratch", tmp_path / "results"
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(scratch))
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{scratch}/copy.mp4")
    monkeypatch.setitem(ODD, "full", refuse(error))
    runner = TaskRunner(Say, Job(root=str(root)))
    ((_, _, _), (status, reason, detail), (last, _, _)) = records(runner, "a", "full", "b")
    assert (status, reason, last) == ("failed", "internal_error", "said")
    assert detail == f"{scratch} is full; make room there or set TMPDIR, and run the same command again"


def test_a_full_disk_without_a_name_is_the_one_with_less_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not is_scratch_full(error, tmp_path), "one disk for both: the job cannot go on"
    assert is_scratch_full(error, locate("memory://bucket/dataset")), "nothing but the temporary folder is a disk"
    shared = Path("/dev/shm")
    if shared.exists() and shared.stat().st_dev != tmp_path.stat().st_dev:
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(shared))
        free = {str(shared): 1, str(tmp_path): 1000}
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free[str(path)]))
        assert is_scratch_full(error, tmp_path)
        free[str(shared)] = 2000
        assert not is_scratch_full(error, tmp_path)


def test_an_attempt_whose_machine_went_does_not_count(tmp_path: Path) -> None:
    def begin_on(machine: int) -> Attempt:
        """All machines before it have gone."""
        return Attempts(tmp_path, "run", f"m{machine}", lambda node: True).begin("a")

    assert [begin_on(machine).count for machine in range(MAX_EXCUSED + 1)] == [0] * (MAX_EXCUSED + 1)
    later = [begin_on(MAX_EXCUSED + 1 + machine) for machine in range(MAX_ATTEMPTS)]
    assert [attempt.count for attempt in later] == [1, 2, 3]
    assert later[-1].is_quarantined, "what takes machine after machine with it is given up in the end"


def test_an_attempt_on_a_machine_that_lives_counts(tmp_path: Path) -> None:
    for _ in range(MAX_ATTEMPTS):
        Attempts(tmp_path, "run", "there", lambda node: False).begin("a")
    assert Attempts(tmp_path, "run", "here", lambda node: False).begin("a").is_quarantined
    assert Attempts(tmp_path, "run", "there", lambda node: True).begin("a").is_quarantined, "the machine is this one"


def test_an_item_that_kills_its_process_is_quarantined(tmp_path: Path, said: list[str]) -> None:
    runner = TaskRunner(Say, Job(root=str(tmp_path)))
    for _ in range(MAX_ATTEMPTS):
        runner.attempts.begin("a")
    ((status, reason, detail),) = records(runner, "a")
    assert (status, reason) == ("rejected", "crash")
    assert f"ended its worker process {MAX_ATTEMPTS} times" in detail
    runner.attempts.give_up("b", "timeout", "too slow")
    assert records(runner, "b", "c") == [("rejected", "timeout", "too slow"), ("said", "", "")]
    assert said == ["c"]


def test_what_a_dead_worker_had_done_is_told_again_and_not_done_again(tmp_path: Path, said: list[str]) -> None:
    job = Job(root=str(tmp_path))
    records(TaskRunner(SayTogether, job), "a", "rejected")
    said.clear()
    assert [row[0] for row in records(TaskRunner(SayTogether, job), "a", "rejected", "c")] == [
        "said", "rejected", "said",
    ]  # fmt: skip
    assert said == ["(breathe)", "c", "(rest)"]
    said.clear()
    assert len(records(TaskRunner(SayTogether, Job(root=str(tmp_path))), "a")) == 1
    assert said == ["(breathe)", "a", "(rest)"], "another run decides for itself what is still valid"


def test_a_batch_fails_with_its_preparation(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ODD, "a!", refuse(Rejected(RejectReason.NOT_A_VIDEO, "it is text")))
    runner = TaskRunner(SayTogether, Job(root=str(tmp_path)))
    assert records(runner, "a", "b") == [("rejected", "not_a_video", "it is text")] * 2
    assert said == ["(breathe)"]
    for _ in range(MAX_ATTEMPTS):
        runner.attempts.begin(batch_key([Word("c"), Word("d")]))
    assert {reason for _, reason, _ in records(runner, "c", "d")} == {"crash"}
    assert said == ["(breathe)"]


def test_a_lost_record_is_a_failure_that_is_tried_again(tmp_path: Path, said: list[str]) -> None:
    store = RecordStore(tmp_path / ".say", TaskRecord)
    words = [Word("a"), Word("b"), Word("c")]
    seen: list[tuple[str, bool, int, int]] = []

    def note(progress: Progress[TaskRecord]) -> None:
        seen.append((progress.record.status, progress.is_stored, progress.done, progress.total))

    def forgetful(*work: Any, **options: Any) -> Any:
        for key, record in map_in_process(*work, **options):
            if key == "b":
                store.path(key).unlink()  # lost with its worker
            else:
                yield key, record
                yield key, record  # told twice, as Ray may

    job = Job(root=str(tmp_path))
    stored = {"a": TaskRecord(inputs=[], status="said")}
    done = dict(complete(Say, job, words, store, stored, name="say", on_progress=note, execute=forgetful))
    assert {key: record.status for key, record in done.items()} == {"a": "said", "b": "failed", "c": "said"}
    assert seen == [("said", True, 1, 3), ("said", False, 2, 3), ("failed", False, 3, 3)]
    assert said == ["b", "c"]
    lost = store.read("b")
    assert lost is not None
    assert lost.is_failed
    assert "record was lost" in lost.detail


def test_of_a_lost_answer_the_stored_record_counts_and_no_older_one_is_replaced(tmp_path: Path) -> None:
    store = RecordStore(tmp_path / ".say", TaskRecord)
    before = TaskRecord(inputs=["1"], run="before", status="said")
    store.write("b", before)

    def silent(task: Any, job: Any, items: Any, **options: Any) -> Any:
        list(map_in_process(task, job, [item for item in items if item.key == "a"], **options))
        yield from ()

    words = [Word("a"), Word("b", ["1"]), Word("c", ["2"])]
    done = dict(complete(Say, Job(root=str(tmp_path)), words, store, {}, name="say", execute=silent))
    assert {key: record.status for key, record in done.items()} == {"a": "said", "b": "failed", "c": "failed"}
    assert store.read("b") == before, "it is for the same files, and is completed by the next run"
    stored = store.read("c")
    assert stored is not None
    assert stored.is_failed
