"""Two drivers on one folder."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lawdnet.storage import read_json, write_json
from lawdnet.tasks import lock
from lawdnet.tasks.background import repeated


def other(**values: Any) -> dict[str, Any]:
    """A driver on another machine."""
    return {"host": "elsewhere", "boot": "x", "pid": 7, "started": 1.0, "id": "a", "beat": 1, **values}


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lock, "SILENT_SECONDS", 0.4)
    return tmp_path / "driver"


def test_the_mark_is_there_while_the_work_lasts(mark: Path) -> None:
    with lock.held(mark):
        assert read_json(mark)["pid"] == os.getpid()
    assert not mark.exists()
    with pytest.raises(KeyError), lock.held(mark):
        raise KeyError
    assert not mark.exists()


def test_folders_that_were_made_for_nothing_go(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for name in ("old/.build/driver", "new/.build/driver"):
        with pytest.raises(KeyError), lock.held(tmp_path / name):
            raise KeyError
    assert [path.name for path in tmp_path.rglob("*")] == ["old"]
    with lock.held(tmp_path / "new" / ".build" / "driver"):
        (tmp_path / "new" / "result").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["result"]


def test_a_second_driver_on_this_machine_is_refused_at_once(mark: Path) -> None:
    with lock.held(mark):
        with pytest.raises(ValueError, match=f"process {os.getpid()} on .* is working on it"), lock.held(mark):
            pass
        assert mark.exists()


def test_a_driver_that_died_here_holds_nothing(mark: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from lawdnet.tasks.lock import held\n"
        "with held(Path(sys.argv[1])): os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(mark)], check=False, cwd=Path(__file__).parents[3])
    assert mark.exists()
    with lock.held(mark):
        pass


def test_a_silent_driver_elsewhere_is_gone(mark: Path) -> None:
    write_json(mark, other())
    began = time.monotonic()
    with lock.held(mark):
        assert time.monotonic() - began >= 0.4, "it was given time to speak"
        assert read_json(mark)["pid"] == os.getpid()


def test_a_driver_elsewhere_that_speaks_is_left_alone(mark: Path) -> None:
    write_json(mark, other())
    beats = iter(range(2, 1000))
    with (
        repeated(lambda: write_json(mark, other(beat=next(beats))), 0.05),
        pytest.raises(ValueError, match="process 7 on elsewhere is working on it"),
        lock.held(mark),
    ):
        pass


def test_one_that_ends_while_it_is_looked_for_has_changed_the_folder(mark: Path) -> None:
    write_json(mark, other())
    threading.Timer(0.1, mark.unlink).start()
    with pytest.raises(ValueError, match="has just finished here; run the same command again"), lock.held(mark):
        pass
    with lock.held(mark):
        assert read_json(mark)["pid"] == os.getpid()


def test_a_clock_that_is_set_right_kills_nobody(mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lock.held(mark):
        write_json(mark, read_json(mark) | {"started": read_json(mark)["started"] + 1.5})
        with pytest.raises(ValueError, match="is working on it"), lock.held(mark):
            pass


def test_trouble_with_the_mark_is_not_trouble_with_the_work(mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no answer")

    monkeypatch.setattr(lock, "write_json", refuse)
    done = False
    with lock.held(mark):
        done = True
    assert done
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"{", b"{}", bytes(101)])
def test_damaged_marks_are_written_anew(mark: Path, content: bytes) -> None:
    mark.write_bytes(content)
    with lock.held(mark):
        assert read_json(mark)["pid"] == os.getpid()


def test_a_driver_that_was_suspended_leaves_the_lock_to_the_next(mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.02)
    with lock.held(mark):
        write_json(mark, other())  # it took over meanwhile
        time.sleep(0.2)
        assert read_json(mark)["pid"] == other()["pid"]
    assert read_json(mark)["pid"] == other()["pid"], "it is not ours to remove"
