"""Many videos with many speeches: each pair for itself, whatever happens to the others or to the job."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lawdnet.audio.io import write_wav
from lawdnet.inference.engine import Engine
from lawdnet.landmarks.openface import OpenFace
from lawdnet.models.generator import Generator, GeneratorConfig
from lawdnet.storage import Location
from lawdnet.synthetic import make_speech, write_talking_head
from lawdnet.tasks import lock
from lawdnet.tasks.attempts import MAX_ATTEMPTS
from lawdnet.tasks.task import Progress
from lawdnet.video import decode, write_video
from pipelines.render.pairs import RECORDS, PairRecord, RenderPair, all_pairs
from pipelines.render.render import LEDGER, render
from pipelines.render.task import RenderTask
from tests.support.fragile import fragile
from tests.support.in_process import map_in_process
from tests.support.tiny_checkpoints import checkpoint

ROOT = Path(__file__).resolve().parents[3]

RENDER = """
import sys
from pathlib import Path
from pipelines.render.pairs import all_pairs
from pipelines.render.render import render
run, videos, speeches, out = map(Path, sys.argv[1:])
render(run, all_pairs(videos, speeches, out), out)
"""

Rows = dict[str, dict[str, Any]]


def nothing(*_: Any, **__: Any) -> Any:
    pytest.fail("nothing is left to do")


def network(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    generator = Generator(GeneratorConfig(audio_dim=320, base_channels=4, warp_grid=8))
    meta = {"mouth_px": 32, "crop_width": 80, "features": {"mel": {"dim": 320}}}
    checkpoint(folder / "clip_96" / "epoch_0012", generator=generator, meta=meta)
    return folder


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people and a broken video, two sounds and a film without one, and a run that has learnt nothing."""
    root: Path = tmp_path_factory.mktemp("given")
    for seed, name in enumerate(("ann", "bob")):
        head = root / "videos" / f"{name}.mp4"
        write_talking_head(head, identity=seed, motion=2, speech=3, seconds=1.2, size=(160, 128))
    (root / "videos" / "broken.mp4").write_bytes(b"no video" * 100)
    shutil.copy(head.with_suffix(".csv"), root / "videos" / "broken.csv")
    for seed, name in enumerate(("hello", "bye")):
        (root / "speeches").mkdir(exist_ok=True)
        write_wav(root / "speeches" / f"{name}.wav", make_speech(0.8, seed).audio_S)
    write_video(root / "speeches" / "mute.mp4", [np.zeros((32, 32, 3), np.uint8)] * 5)
    network(root / "run", 0)
    return root


def job(given: Path, out: Location, **options: Any) -> Rows:
    pairs = all_pairs(given / "videos", given / "speeches", out)
    return {record.out: record.columns() for record in render(given / "run", pairs, out, **options)}


@pytest.fixture(scope="module")
def undisturbed(given: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> tuple[Path, Rows]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    return out, job(given, out)


def in_process(given: Path, out: Path, **options: Any) -> tuple[Rows, list[str]]:
    """A job without Ray, and the results that it made new."""
    new: list[str] = []

    def execute(*work: Any, **rest: Any) -> Any:
        for key, record in map_in_process(*work, **rest):
            new.append(record.out)
            yield key, record

    return job(given, out, execute=execute, **options), new


def pictures(path: Path) -> Any:
    return np.stack([picture for _, picture in decode(path)])


def mp4s(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("[!.]*.mp4")}


def test_what_cannot_be_rendered_is_left_out_with_a_reason(undisturbed: tuple[Path, Rows]) -> None:
    out, rows = undisturbed
    good = {f"{person}--{word}.mp4" for person in ("ann", "bob") for word in ("hello", "bye")}
    assert {name for name, row in rows.items() if row["status"] == "rendered"} == good
    assert {path.name for path in out.iterdir()} == {*good, RECORDS, LEDGER}
    refused = Counter(row["reason"] for row in rows.values() if row["status"] == "rejected")
    assert refused == {"not_a_video": 3, "no_audio": 2}
    assert "mute.mp4" in rows["ann--mute.mp4"]["detail"]
    assert all(rows[name]["frames"] == 20 and rows[name]["passed_through"] == 0 for name in good)
    assert json.loads((out / LEDGER).read_text())["pairs"] == list(rows.values())
    assert {path.suffix for path in (out / RECORDS).iterdir()} == {".json"}


def test_a_pair_is_what_infer_makes_of_it(given: Path, undisturbed: tuple[Path, Rows], tmp_path: Path) -> None:
    engine = Engine(given / "run", device="cpu")
    template = engine.prepare(given / "videos" / "bob.mp4", OpenFace())
    engine.render(template, given / "speeches" / "bye.wav", tmp_path / "alone.mp4")
    alone, among_others = pictures(tmp_path / "alone.mp4"), pictures(undisturbed[0] / "bob--bye.mp4")
    assert (alone == among_others).all()
    assert not (pictures(undisturbed[0] / "ann--bye.mp4") == among_others).all()


def test_again_there_is_nothing_to_do(
    given: Path, undisturbed: tuple[Path, Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rows = undisturbed
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.mp4")}
    seen: list[tuple[bool, int, int]] = []

    def note(progress: Progress[PairRecord]) -> None:
        seen.append((progress.is_stored, progress.done, progress.total))

    assert job(given, out, on_progress=note, execute=nothing) == rows
    assert seen == [(True, number, 9) for number in range(1, 10)]
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.mp4")} == before


def test_what_changed_is_rendered_again(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, out = tmp_path / "given", tmp_path / "out"
    shutil.copytree(given, mine)
    rows, new = in_process(mine, out)
    assert sorted(new) == sorted(rows)
    assert in_process(mine, out) == (rows, [])

    write_wav(mine / "speeches" / "hello.wav", make_speech(0.4, 7).audio_S)
    changed, new = in_process(mine, out)
    assert sorted(new) == ["ann--hello.mp4", "bob--hello.mp4", "broken--hello.mp4"]
    assert changed["ann--hello.mp4"]["frames"] == 10 == len(pictures(out / "ann--hello.mp4"))
    (out / "bob--bye.mp4").unlink()
    assert in_process(mine, out)[1] == ["bob--bye.mp4"]
    (mine / "videos" / "ann.csv").touch()
    assert sorted(in_process(mine, out)[1]) == ["ann--bye.mp4", "ann--hello.mp4", "ann--mute.mp4"]
    assert len(in_process(mine, out, face="0")[1]) == 9
    shutil.rmtree(mine / "run")
    network(mine / "run", 1)
    before = mp4s(out)
    assert len(in_process(mine, out, face="0")[1]) == 9
    assert all(before[name] != content for name, content in mp4s(out).items())


def test_a_video_without_landmarks_waits_for_something_that_finds_them(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, out = tmp_path / "given", tmp_path / "out"
    shutil.copytree(given, mine)
    (mine / "videos" / "bob.csv").unlink()
    rows, _ = in_process(mine, out)
    assert rows["bob--bye.mp4"]["reason"] == "no_landmarks"
    assert in_process(mine, out)[1] == []
    monkeypatch.setattr("pipelines.render.render.prepare_landmarks", lambda name, have_csv, make: True)
    assert sorted(in_process(mine, out)[1]) == ["bob--bye.mp4", "bob--hello.mp4", "bob--mute.mp4"]


def test_a_killed_driver(given: Path, undisturbed: tuple[Path, Rows], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", RENDER, *(str(given / n) for n in ("run", "videos", "speeches")), str(out)]
    first = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(mp4s(out)) < 2 and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.005)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    time.sleep(3)  # its workers notice, and end
    before = {path: path.stat().st_mtime_ns for path in (out / RECORDS).glob("*.json")}
    assert 1 <= len(before) < 9, "killed in the middle"
    rows = job(given, out)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was finished is left alone"
    names = ("status", "reason", "detail", "frames")
    assert [[row[n] for n in names] for row in rows.values()] == [
        [row[n] for n in names] for row in undisturbed[1].values()
    ]
    assert mp4s(out) == mp4s(undisturbed[0])
    assert not list(out.rglob("*.tmp"))
    assert {path.suffix for path in (out / RECORDS).iterdir()} == {".json"}


@pytest.mark.slow
def test_poison_and_hangs_are_left_alone(
    given: Path, undisturbed: tuple[Path, Rows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, out = tmp_path / "given", tmp_path / "out"
    shutil.copytree(given, mine)
    (mine / "videos" / "bob.mp4").rename(mine / "videos" / "deadly.mp4")
    for name in ("poison", "hangs", "chance"):
        shutil.copy(mine / "speeches" / "bye.wav", mine / "speeches" / f"{name}.wav")
    rows = job(mine, out, stall_seconds=2.0, execute=fragile)
    assert (rows["ann--poison.mp4"]["status"], rows["ann--poison.mp4"]["reason"]) == ("rejected", "crash")
    assert f"{MAX_ATTEMPTS} times" in rows["ann--poison.mp4"]["detail"]
    assert (rows["ann--hangs.mp4"]["status"], rows["ann--hangs.mp4"]["reason"]) == ("rejected", "timeout")
    assert {row["reason"] for row in rows.values() if row["video"] == "deadly.mp4"} == {"crash"}
    assert {row["reason"] for row in rows.values() if row["video"] == "broken.mp4"} == {"not_a_video"}
    assert len((out / "died" / "prepared").read_text()) <= 2 * MAX_ATTEMPTS, "a video is tried as a whole"
    assert mp4s(out)["ann--chance.mp4"] == mp4s(out)["ann--bye.mp4"] == mp4s(undisturbed[0])["ann--bye.mp4"]
    assert job(mine, out, execute=nothing) == rows, "neither is tried again"


def test_a_bug_costs_one_pair_and_is_tried_again(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = RenderTask.run

    def buggy(self: RenderTask, item: RenderPair, record: PairRecord) -> None:
        if item.out == "ann--bye.mp4":
            raise RuntimeError("a bug")
        whole(self, item, record)

    with monkeypatch.context() as patch:
        patch.setattr(RenderTask, "run", buggy)
        rows, _ = in_process(given, tmp_path / "out")
    assert (rows["ann--bye.mp4"]["status"], rows["ann--bye.mp4"]["detail"]) == ("failed", "RuntimeError: a bug")
    assert rows["ann--hello.mp4"]["status"] == "rendered"
    rows, new = in_process(given, tmp_path / "out")
    assert (new, rows["ann--bye.mp4"]["status"]) == (["ann--bye.mp4"], "rendered")


def test_a_full_disk_stops_the_job(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def full(self: RenderTask, item: RenderPair, record: PairRecord) -> None:
        tried.append(item.out)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(RenderTask, "run", full)
        with pytest.raises(OSError, match=r"/out: No space left on device; make room and run the same command again"):
            in_process(given, tmp_path / "out")
    assert len(tried) == 1
    rows, _ = in_process(given, tmp_path / "out")
    assert rows[tried[0]]["status"] == "rendered"


def test_a_result_of_another_job_under_the_same_name_is_not_ours(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, out = tmp_path / "given", tmp_path / "out"
    shutil.copytree(given, mine)
    in_process(mine, out)
    ours = mp4s(out)["ann--hello.mp4"]
    time.sleep(0.01)  # files are told apart by size and time
    shutil.copy(out / "bob--hello.mp4", out / "ann--hello.mp4")
    assert in_process(mine, out)[1] == ["ann--hello.mp4"]
    assert mp4s(out)["ann--hello.mp4"] == ours


def test_what_killed_workers_left_is_swept(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    left = [out / ".ann--hello.mp4.0123abcd.mp4", out / ".ann--hello.mp4.0123abcd.tmp"]
    foreign = out / ".holiday.mp4.0123abcd.mp4"
    for path in (*left, foreign):
        path.touch()
    in_process(given, out)
    assert [path.exists() for path in (*left, foreign)] == [False, False, True]


def test_a_result_never_replaces_an_input_by_another_name(given: Path, tmp_path: Path) -> None:
    (tmp_path / "people").symlink_to(given / "videos")
    first = all_pairs(given / "videos", given / "speeches", tmp_path / "out")[0]
    pairs = [replace(first, out="ann.mp4")]
    for root in (tmp_path / "people", given / "speeches" / ".." / "videos"):
        with pytest.raises(ValueError, match=r"is an input, and would be replaced by a result; choose another --out"):
            render(given / "run", pairs, root)


def test_a_link_to_nowhere_is_tried_again(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, out = tmp_path / "given", tmp_path / "out"
    shutil.copytree(given, mine)
    (mine / "videos" / "bob.mp4").rename(mine / "bob.mp4")
    (mine / "videos" / "bob.mp4").symlink_to("gone.mp4")
    rows, _ = in_process(mine, out)
    assert rows["bob--bye.mp4"]["reason"] == "unreadable"
    assert "leads to gone.mp4" in rows["bob--bye.mp4"]["detail"]
    (mine / "bob.mp4").rename(mine / "videos" / "gone.mp4")
    rows, _ = in_process(mine, out)
    assert rows["bob--bye.mp4"]["status"] == "rendered"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"landmarks": "eyes"}, "unknown source 'eyes'"), ({"landmarks": "face-alignment"}, "2DFAN4|not installed")],
)
def test_what_is_missing_is_said_at_once(
    given: Path, tmp_path: Path, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAWDNET_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        job(given, tmp_path / "out", execute=nothing, **options)
    assert not (tmp_path / "out").exists()


def test_one_job_at_a_time(given: Path, tmp_path: Path) -> None:
    with (
        lock.held(tmp_path / "out" / RECORDS / lock.DRIVER),
        pytest.raises(ValueError, match="is working on it"),
    ):
        job(given, tmp_path / "out")


def test_a_gpu_that_is_not_there(given: Path, tmp_path: Path, ray_session: None) -> None:
    with pytest.raises(ValueError, match="no GPU on this machine"):
        job(given, tmp_path / "out", gpu=0.5)


def test_everything_in_object_storage(given: Path, undisturbed: tuple[Path, Rows], tmp_path: Path, s3: Any) -> None:
    for name in ("run", "videos", "speeches"):
        s3.root.fs.put(f"{given / name}/", f"{s3.root.path.strip('/')}/{name}/", recursive=True)
    out = s3.root / "out"
    rows = job(s3.root, out)
    assert {name: row["status"] for name, row in rows.items()} == {
        name: row["status"] for name, row in undisturbed[1].items()
    }
    s3.root.fs.get(f"{out.path.strip('/')}/", f"{tmp_path}/", recursive=True)
    assert mp4s(tmp_path) == mp4s(undisturbed[0])
    before = len(s3.requests)
    assert job(s3.root, out) == rows
    assert not any(method == "GET" and ".mp4" in path for method, path, _ in s3.requests[before:])
