"""A build can be stopped anywhere, by anything, and ends with the rows of an undisturbed one."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lawdnet.data.config import BuildConfig
from lawdnet.data.manifest import Dataset
from lawdnet.tasks import batches
from lawdnet.tasks.attempts import MAX_ATTEMPTS, Attempt, Attempts
from lawdnet.tasks.disk import DiskFull
from lawdnet.tasks.inputs import list_inputs
from lawdnet.tasks.task import TaskRunner
from pipelines.build.build import build
from pipelines.build.task import BuildJob, VideoItem, VideoTask
from tests.support.drawn_clip import copies, copy
from tests.support.fragile import fragile
from tests.support.in_process import map_in_process
from tests.support.stored import read_records

CONFIG = BuildConfig(crop_width=80)
NAMES = [f"{letter}.mp4" for letter in "abcdef"]
ROOT = Path(__file__).resolve().parents[3]

BUILD = """
import sys
from pathlib import Path
from lawdnet.data.config import BuildConfig
from pipelines.build.build import build
build(Path(sys.argv[1]), Path(sys.argv[2]), BuildConfig(crop_width=80))
"""


def content(dataset: Dataset) -> tuple[dict[str, str], pa.Table, pa.Table, str]:
    """Everything that readers see, but for the seconds."""
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (dataset.root / "segments").iterdir()}
    videos = dataset.videos()
    timeless = [name for name in videos.column_names if not name.startswith("seconds")]
    return files, dataset.index(), videos.select(timeless), dataset.hash


@pytest.fixture(scope="module")
def source(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copies(drawn, tmp_path_factory.mktemp("source"), NAMES)


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Dataset:
    return build(source, tmp_path_factory.mktemp("undisturbed") / "dataset", CONFIG)


def outcomes(root: Path) -> dict[str, int]:
    """Finished inputs, with the time each was written at."""
    return {p.name: p.stat().st_mtime_ns for p in (root / ".build").glob("*.json") if p.name != "build.json"}


def test_a_killed_driver(source: Path, undisturbed: Dataset, tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    command = [sys.executable, "-c", BUILD, str(source), str(root)]
    first = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(outcomes(root)) < 2 and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    time.sleep(3)  # its workers notice, and end
    before = outcomes(root)
    assert 2 <= len(before) < len(NAMES), "killed in the middle"
    again = build(source, root, CONFIG)
    after = outcomes(root)
    assert {name: after[name] for name in before} == before, "what was finished is left alone"
    assert content(again) == content(undisturbed)
    assert not list((root / ".build").glob("*.attempts"))
    assert not list(root.rglob("*.tmp"))


def test_poison_and_hangs_are_quarantined(
    source: Path, drawn: Path, undisturbed: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_bad = tmp_path / "source"
    for name in [*NAMES, "poison.mp4", "hangs.mp4"]:
        copy(drawn, with_bad / name)
    dataset = build(with_bad, tmp_path / "dataset", CONFIG, stall_seconds=8.0, execute=fragile)
    rows = {row["path"]: row for row in dataset.videos().to_pylist()}
    assert (rows["poison.mp4"]["status"], rows["poison.mp4"]["reason"]) == ("rejected", "crash")
    assert f"{MAX_ATTEMPTS} times" in rows["poison.mp4"]["detail"]
    assert (rows["hangs.mp4"]["status"], rows["hangs.mp4"]["reason"]) == ("rejected", "timeout")
    assert content(dataset)[:2] == content(undisturbed)[:2]
    # a crash is tried again, as another worker may have more memory, and nothing else
    again: list[str] = []

    def told(task: Any, job: Any, items: list[VideoItem], **options: Any) -> Any:
        again.extend(item.name for item in items)
        return map_in_process(task, job, items, **options)

    dataset = build(with_bad, tmp_path / "dataset", CONFIG, execute=told)
    assert [Path(name).name for name in again] == ["poison.mp4"]
    rows = {row["path"]: row for row in dataset.videos().to_pylist()}
    assert (rows["poison.mp4"]["status"], rows["hangs.mp4"]["status"]) == ("accepted", "rejected")


def test_one_of_a_batch_takes_its_worker_with_it(
    source: Path, drawn: Path, undisturbed: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others of its batch are built once each, and their records are told."""
    with_bad = tmp_path / "source"
    for name in [*NAMES, "poison.mp4"]:
        copy(drawn, with_bad / name)
    monkeypatch.setattr(batches, "MOST_BATCHES", 2)
    monkeypatch.setattr(batches, "BATCHES_PER_WORKER", 1)
    seen: list[str] = []
    sizes: list[int] = []

    def grouped(task: Any, job: Any, items: list[VideoItem], **options: Any) -> Any:
        sizes.extend(len(batch) for batch in task.batches(items, 2))
        return fragile(task, job, items, **options)

    dataset = build(
        with_bad, tmp_path / "dataset", CONFIG, execute=grouped, on_progress=lambda p: seen.append(p.record.path)
    )
    assert max(sizes) > 2, "several share a batch"
    rows = {row["path"]: row for row in dataset.videos().to_pylist()}
    assert (rows["poison.mp4"]["status"], rows["poison.mp4"]["reason"]) == ("rejected", "crash")
    assert content(dataset)[:2] == content(undisturbed)[:2]
    assert sorted(seen) == sorted([*NAMES, "poison.mp4"])


def test_a_full_disk_stops_the_build(
    source: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_more = tmp_path / "source"
    for name in ["a.mp4", "full.mp4", "z.mp4"]:
        copy(drawn, with_more / name)
    with pytest.raises(OSError, match=r"/the/disk: No space left on device; make room and run the same command"):
        build(with_more, tmp_path / "dataset", CONFIG, execute=fragile)
    assert "full.mp4" not in [row["path"] for row in read_rows(tmp_path / "dataset")], "it is no fault of the video"
    dataset = build(with_more, tmp_path / "dataset", CONFIG)
    assert [row["status"] for row in dataset.videos().to_pylist()] == ["accepted"] * 3


def read_rows(root: Path) -> list[dict[str, Any]]:
    return [record.row().columns() for record in read_records(root).values()]


def test_a_full_disk_while_an_outcome_is_written(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("lawdnet.tasks.records.write_json", refuse)
    runner = TaskRunner(VideoTask, BuildJob(config=CONFIG, root=str(tmp_path)))
    with pytest.raises(DiskFull, match=f"^{tmp_path}: No space left on device; make room"):
        list(runner([VideoItem.of(list_inputs(source)[0])]))


def test_attempts_of_another_run_count_for_nothing(tmp_path: Path) -> None:
    first, second = Attempts(tmp_path, "first"), Attempts(tmp_path, "second")
    counts = [first.begin("key").count for _ in range(3)]
    assert counts == [0, 1, 2]
    assert second.begin("key").count == 0
    second.give_up("key", "timeout", "slow")
    assert second.begin("key") == Attempt("second", count=MAX_ATTEMPTS, reason="timeout", detail="slow")
    second.end("key")
    assert second.begin("key").count == 0


@contextmanager
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr("lawdnet.data.segments.decode_ticks", lambda *a, **k: pytest.fail("a picture was decoded"))
        yield


def in_process(source: Path, root: Path, config: BuildConfig) -> Dataset:
    """A build without Ray: completing must not decode a frame, which only this process can watch."""
    return build(source, root, config, execute=map_in_process)


def test_another_feature_is_added_without_decoding(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacked = BuildConfig(crop_width=80)
    averaged = BuildConfig(crop_width=80, options={"mel": {"hops": "mean"}})
    whole = in_process(source, tmp_path / "whole", averaged)
    root = tmp_path / "added"
    in_process(source, root, stacked)
    with no_pictures(monkeypatch):
        added = in_process(source, root, averaged)
    assert added.feature_dim("mel") == whole.feature_dim("mel") == 80
    assert content(added) == content(whole)
    assert added.info == whole.info


def test_two_features_side_by_side(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.tiny_networks import need, write_hubert

    need("transformers")
    write_hubert(tmp_path / "weights" / "tiny")
    monkeypatch.setenv("LAWDNET_WEIGHTS", str(tmp_path / "weights"))
    options = {"hubert": {"model": "tiny"}}
    both = BuildConfig(crop_width=80, features=("mel", "hubert"), options=options)
    whole = in_process(source, tmp_path / "whole", both)
    root = tmp_path / "added"
    in_process(source, root, CONFIG)
    with no_pictures(monkeypatch):
        added = in_process(source, root, both)
        asked_for_less = in_process(source, root, CONFIG)
    assert content(added) == content(whole)
    assert added.info["extractors"]["hubert"]["model_sha256"]
    assert asked_for_less.info == added.info, "a feature is never taken away"


def test_rules_and_split_change_without_work(
    undisturbed: Dataset, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    root = tmp_path / "dataset"
    shutil.copytree(undisturbed.root, root)

    def nothing(*_: Any, **__: Any) -> Any:
        pytest.fail("nothing is to be computed")

    strict = build(source, root, BuildConfig(crop_width=80, where=("face_px>=100000",)), execute=nothing)
    assert not strict.segments()
    assert {row["reason"] for row in strict.videos().to_pylist()} == {"threshold"}
    assert "fell at face_px>=100000" in strict.videos()["detail"][0].as_py()
    assert strict.info["funnel"][-1] | {} == {
        "rule": "face_px>=100000", "dropped": len(NAMES), "left": 0, "not_measured": 0,
    }  # fmt: skip
    half = BuildConfig(crop_width=80, val_fraction=0.5, near_duplicates="keep")
    halved = build(source, root, half, execute=nothing)
    sides = {row["video_id"]: row["split"] for row in halved.videos().to_pylist()}
    assert set(sides.values()) == {"train", "val"}
    assert {ref.video_id: ref.split for ref in halved.segments()} == sides
    assert content(build(source, root, CONFIG, execute=nothing)) == content(undisturbed)


def test_a_dataset_keeps_its_pictures(undisturbed: Dataset, source: Path) -> None:
    with pytest.raises(ValueError, match=r"other settings \(smoothing 0\.5 → 0\.0\); choose another"):
        build(source, undisturbed.root, BuildConfig(crop_width=80, smoothing=0.0))


def test_a_feature_cannot_be_added_to_what_is_gone(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    for name in ("a.mp4", "b.mp4"):
        copy(drawn, source / name)
    in_process(source, tmp_path / "dataset", CONFIG)
    (source / "a.mp4").unlink()
    with pytest.raises(ValueError, match=r"1 videos, a\.mp4 the first, lack a feature"):
        in_process(source, tmp_path / "dataset", BuildConfig(crop_width=80, options={"mel": {"hops": "mean"}}))


def test_object_storage_holds_source_and_dataset(
    source: Path, undisturbed: Dataset, s3: Any, ray_session: None
) -> None:
    """The S3 is one of this machine; workers find it by the environment they inherit."""
    for path in source.iterdir():
        s3.root.fs.put_file(str(path), f"{s3.root.path.strip('/')}/in/{path.name}")
    built = build(s3.root / "in", s3.root / "out", CONFIG)
    assert built.index().equals(undisturbed.index())
    assert built.info["counts"] == undisturbed.info["counts"]
    assert [r["sha256"] for r in built.videos().to_pylist()] == [r["sha256"] for r in undisturbed.videos().to_pylist()]
    before = len(s3.requests)
    again = build(s3.root / "in", s3.root / "out", CONFIG)
    assert again.info == built.info
    assert not any(method == "GET" and "/in/" in path and ".mp4" in path for method, path, _ in s3.requests[before:])


def test_segments_are_read_from_object_storage(undisturbed: Dataset, s3: Any) -> None:
    from lawdnet.data.sampling import SampleSpec, draw_batches, plan_epoch

    s3.root.fs.put(f"{undisturbed.root}/", f"{s3.root.path.strip('/')}/dataset/", recursive=True)
    spec = SampleSpec(mouth_px=32, num_frames=1, batch_size=2, samples_per_segment=1, audio="mel", sync=None)

    def first_batch(dataset: Dataset) -> Any:
        work = next(plan_epoch(dataset.segments(), spec, seed=1, epoch=0, rank=0, world=1))
        return next(draw_batches(work, spec, seed=1, stored_width=80))

    there, here = first_batch(Dataset(s3.root / "dataset")), first_batch(undisturbed)
    assert (there["source"] == here["source"]).all()
    assert (there["audio"] == here["audio"]).all()
