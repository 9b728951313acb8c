"""`lawdnet upgrade`: what it changes, what it leaves alone, and how it may be stopped."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from jobs.cli import app
from lawdnet.data.config import BuildConfig
from lawdnet.data.levels import small_of_jpeg
from lawdnet.data.manifest import BUILD, MANIFEST, SEGMENTS, Dataset
from lawdnet.data.merge import merge
from lawdnet.data.rules import parse_rule
from lawdnet.data.sampling import decode_jpeg
from lawdnet.data.schema import read_segment, rewrite_segments, table_to_segment, with_columns
from lawdnet.data.selection import check_files, choose, write_selection
from lawdnet.tasks import lock
from lawdnet.types import Segment
from pipelines.build.build import build
from pipelines.build.upgrade import Upgraded, upgrade
from tests.support.drawn_clip import copies, copy
from tests.support.format_2 import COLUMNS, as_format_2
from tests.support.in_process import map_in_process
from tests.support.s3_server import S3Server
from tests.support.small_datasets import files

CONFIG = BuildConfig(crop_width=160, val_fraction=0.0, near_duplicates="keep")
NAMES = ("a.mp4", "b.mp4", "c.mp4")


@pytest.fixture(scope="module")
def source(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copies(drawn, tmp_path_factory.mktemp("source"), NAMES)


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(str(build(source, tmp_path_factory.mktemp("built") / "dataset", CONFIG, execute=map_in_process).root))


@pytest.fixture
def old(built: Path, tmp_path: Path) -> Path:
    """A dataset of format 2, which is really one."""
    shutil.copytree(built, tmp_path / "old")
    as_format_2(tmp_path / "old")
    dataset = Dataset(tmp_path / "old")
    assert dataset.format_version == 2
    for path in (tmp_path / "old" / SEGMENTS).iterdir():
        assert [name for name in pq.read_schema(path).names if not name.startswith("score_")] == COLUMNS
    return tmp_path / "old"


def segments(root: Path) -> list[Segment]:
    return [table_to_segment(read_segment(Path(ref.path), ref.row_group)) for ref in Dataset(root).segments()]


class Stopping:
    """Works in this process, and is stopped after some files."""

    def __init__(self, after: int = 99) -> None:
        self.after = after
        self.names: list[str] = []

    def __call__(self, task: Any, job: Any, items: Sequence[Any], **options: Any) -> Generator[Any, None, None]:
        for item in items:
            if len(self.names) == self.after:
                raise KeyboardInterrupt
            self.names.append(item.name)
            yield from map_in_process(task, job, [item], **options)


def test_it_adds_the_levels_and_changes_nothing_else(old: Path, source: Path) -> None:
    before, stored, whole = Dataset(old), files(old), segments(old)
    index, videos = before.index(), before.videos()
    done = upgrade(old, execute=map_in_process)
    assert (done.files, done.ready) == (3, 0)
    assert done.bytes_after > 1.2 * done.bytes_before
    after = Dataset(old)
    assert after.info == before.info | {"format_version": 3}
    assert after.index().equals(index)
    assert after.videos().equals(videos)
    assert files(old).keys() == stored.keys(), "no record, lock or temporary file stays"
    changed = {name for name, data in files(old).items() if data != stored[name]}
    assert changed == {MANIFEST, f"{BUILD}/build.json", *(name for name in stored if name.startswith(SEGMENTS))}
    for one, two in zip(segments(old), whole, strict=True):
        assert (one.segment_id, one.frames_jpeg, one.scores) == (two.segment_id, two.frames_jpeg, two.scores)
        assert (one.landmarks_T68x2 == two.landmarks_T68x2).all()
        assert (one.features["mel"] == two.features["mel"]).all()
        small = [small_of_jpeg(jpeg, 95) for jpeg in two.frames_jpeg]
        assert one.small_jpeg == {level: tuple(row[level] for row in small) for level in (2, 4)}
    work = Stopping()
    again = build(source, old, CONFIG, execute=work)
    assert (again.info, work.names) == (after.info, [])


def test_it_has_the_columns_of_a_new_build_and_almost_its_pixels(old: Path, built: Path) -> None:
    upgrade(old, execute=map_in_process)
    for one, two in zip(segments(built), segments(old), strict=True):
        for level, width in ((2, 80), (4, 40)):
            pairs = zip(one.small_jpeg[level], two.small_jpeg[level], strict=True)
            images = [
                [decode_jpeg(jpeg, width * 13 // 10, width, stored_width=width) for jpeg in pair] for pair in pairs
            ]
            difference = np.subtract(*np.array(images, int).swapaxes(0, 1))
            assert 0 < np.sqrt((difference**2).mean()) < 2, "a build makes them of the crop, not of its JPEG"
    for path in (old / SEGMENTS).iterdir():
        assert pq.read_schema(path).equals(pq.read_schema(built / SEGMENTS / path.name))


def test_what_is_upgraded_is_left_alone(old: Path) -> None:
    upgrade(old, execute=map_in_process)
    stored, work = files(old), Stopping()
    assert upgrade(old, execute=work) == Upgraded(files=0, ready=3, bytes_before=0, bytes_after=0)
    assert work.names == []
    assert files(old) == stored


def test_a_stopped_upgrade_is_resumed(old: Path) -> None:
    whole = [segment.frames_jpeg for segment in segments(old)]
    first, second = Stopping(after=1), Stopping()
    with pytest.raises(KeyboardInterrupt):
        upgrade(old, execute=first)
    (old / SEGMENTS / f".{first.names[0]}.0123abcd.tmp").write_bytes(b"half of a file")
    assert Dataset(old).format_version == 2
    assert [segment.frames_jpeg for segment in segments(old)] == whole, "it can be read at any time"
    assert [bool(segment.small_jpeg) for segment in segments(old)] == [True, False, False]
    done = upgrade(old, execute=second)
    assert (done.files, done.ready, len(second.names)) == (2, 1, 2)
    assert first.names[0] not in second.names
    assert Dataset(old).format_version == 3
    assert all(segment.small_jpeg for segment in segments(old))
    assert not list(old.rglob("*.tmp"))


def test_a_file_that_cannot_be_upgraded_is_named_and_costs_no_other(old: Path) -> None:
    good = sorted((old / SEGMENTS).iterdir())
    shutil.copy(good[1], old / "kept")
    no_jpeg = {"frames_jpeg": pa.array([[b"no jpeg"] * segments(old)[1].num_frames])}
    rewrite_segments(old / "kept", good[1], lambda table: with_columns(table, no_jpeg))
    with pytest.raises(ValueError, match=r"1 of 3 segment files could not be upgraded, the first is b-.*not a JPEG"):
        upgrade(old, execute=map_in_process)
    assert Dataset(old).format_version == 2
    os.replace(old / "kept", good[1])
    assert upgrade(old, execute=map_in_process).files == 1
    assert Dataset(old).format_version == 3


def test_errors_come_before_work(old: Path, tmp_path: Path) -> None:
    path = min((old / SEGMENTS).iterdir())
    path.rename(tmp_path / "away")
    stored = files(old)
    with pytest.raises(ValueError, match=r"1 of 3 segment files are missing, the first is segments/a-"):
        upgrade(old, execute=map_in_process)
    path.write_bytes((tmp_path / "away").read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        upgrade(old, execute=map_in_process)
    path.unlink()
    assert files(old) == stored
    with pytest.raises(ValueError, match="no dataset here"):
        upgrade(tmp_path / "nothing", execute=map_in_process)
    assert not (tmp_path / "nothing").exists()


def test_not_two_at_once_nor_beside_a_build(old: Path, source: Path) -> None:
    def beside(task: Any, job: Any, items: Any, **options: Any) -> Generator[Any, None, None]:
        with pytest.raises(ValueError, match="is working on it"):
            upgrade(old, execute=map_in_process)
        yield from map_in_process(task, job, items, **options)

    assert upgrade(old, execute=beside).files == 3
    with lock.held(old / BUILD / lock.DRIVER), pytest.raises(ValueError, match="is working on it"):
        upgrade(old, execute=map_in_process)


def test_a_build_asks_for_the_upgrade_first(old: Path, source: Path) -> None:
    with pytest.raises(ValueError, match=rf"begun in dataset format 2, .* builds 3; run: lawdnet upgrade {old}$"):
        build(source, old, CONFIG, execute=map_in_process)
    (old / MANIFEST).unlink()  # a build that was stopped, and was never a dataset
    lost = min((old / SEGMENTS).iterdir())
    lost.unlink()
    upgrade(old, execute=map_in_process)
    work = Stopping()
    assert build(source, old, CONFIG, execute=work).format_version == 3
    assert work.names == ["a.mp4"]
    assert all(segment.small_jpeg for segment in segments(old))


def test_a_copy_leaves_the_old_one_as_it_is(old: Path, source: Path, tmp_path: Path) -> None:
    stored = files(old)
    with pytest.raises(KeyboardInterrupt):
        upgrade(old, tmp_path / "new", execute=Stopping(after=2))
    assert not (tmp_path / "new" / MANIFEST).exists()
    assert upgrade(old, tmp_path / "new", execute=map_in_process).ready == 2
    assert files(old) == stored
    upgrade(old, execute=map_in_process)
    made = files(tmp_path / "new")
    assert made.pop(f"{BUILD}/upgrade.job")
    assert made == files(old)
    work = Stopping()
    assert build(source, tmp_path / "new", CONFIG, execute=work).hash == Dataset(old).hash
    assert work.names == []
    with pytest.raises(ValueError, match="lies inside the source"):
        upgrade(old, old / "new", execute=map_in_process)
    (tmp_path / "other" / SEGMENTS).mkdir(parents=True)
    with pytest.raises(ValueError, match="was not made by upgrade"):
        upgrade(old, tmp_path / "other", execute=map_in_process)


def test_a_selection_follows_the_files_that_it_points_to(old: Path, tmp_path: Path) -> None:
    view = write_selection(choose(Dataset(old), [parse_rule("num_frames>=54")], max_per_video=1), tmp_path / "view")
    assert view.format_version == 2
    with pytest.raises(ValueError, match=rf"its files are those of {old}; first run: lawdnet upgrade {old}$"):
        upgrade(view.root, execute=map_in_process)
    upgrade(old, execute=map_in_process)
    with pytest.raises(ValueError, match="without files of its own; leave --out out"):
        upgrade(view.root, tmp_path / "new", execute=map_in_process)
    check_files(view)
    assert upgrade(view.root, execute=map_in_process).files == 0
    assert Dataset(tmp_path / "view").format_version == 3
    assert all(segment.small_jpeg for segment in segments(tmp_path / "view"))


def test_copies_and_merges_keep_the_levels(built: Path, old: Path, drawn: Path, tmp_path: Path) -> None:
    write_selection(choose(Dataset(built), [], max_per_video=1, is_fresh=True), tmp_path / "copy", copy=True)
    assert [s.small_jpeg for s in segments(tmp_path / "copy")] == [s.small_jpeg for s in segments(built)]
    copy(drawn, tmp_path / "more" / "d.mp4")
    more = build(tmp_path / "more", tmp_path / "d", CONFIG, execute=map_in_process).root
    merge([built, more], tmp_path / "new")
    assert Dataset(tmp_path / "new").format_version == 3
    assert len(segments(tmp_path / "new")) == 4
    assert all(segment.small_jpeg for segment in segments(tmp_path / "new"))
    merge([more, old], tmp_path / "mixed")
    assert Dataset(tmp_path / "mixed").format_version == 2, "some of its files lack the levels"
    assert upgrade(tmp_path / "mixed", execute=map_in_process).files == 3
    assert [s.small_jpeg for s in segments(tmp_path / "mixed")][3] == segments(tmp_path / "d")[0].small_jpeg
    assert not segments(old)[0].small_jpeg, "the merge links its files, and none of them was written to"


def test_features_are_added_beside_the_levels(built: Path, source: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "more")
    averaged = BuildConfig(crop_width=160, val_fraction=0.5, near_duplicates="keep", options={"mel": {"hops": "mean"}})
    dataset = build(source, tmp_path / "more", averaged, execute=map_in_process)
    assert {ref.split for ref in dataset.segments()} == {"train", "val"}
    assert [s.features["mel"].shape[1] for s in segments(tmp_path / "more")] == [80] * 3
    assert [s.small_jpeg for s in segments(tmp_path / "more")] == [s.small_jpeg for s in segments(built)]


def test_object_storage(old: Path, s3: S3Server) -> None:
    assert s3.root is not None
    s3.root.fs.put(f"{old}/", f"{s3.root.path.strip('/')}/dataset/", recursive=True)
    assert upgrade(s3.root / "dataset", execute=map_in_process).files == 3
    upgrade(old, execute=map_in_process)
    there = Dataset(s3.root / "dataset")
    assert there.info == Dataset(old).info
    for ref, segment in zip(there.segments(), segments(old), strict=True):
        stored = table_to_segment(read_segment(there.root / SEGMENTS / Path(ref.path).name, ref.row_group))
        assert stored.small_jpeg == segment.small_jpeg
    names = {path.removeprefix(f"{s3.root.path.strip('/')}/dataset/") for path in s3.root.fs.find(s3.root.path)}
    assert names == files(old).keys()


def test_the_command_on_ray(old: Path, tmp_path: Path, ray_session: None) -> None:
    answer = CliRunner().invoke(app, ["upgrade", str(old), "--json"])
    assert answer.exit_code == 0, answer.output
    content = json.loads(answer.stdout)
    assert (content["dataset"], content["files"], content["ready"]) == (str(old), 3, 0)
    assert Dataset(old).format_version == 3
    again = CliRunner().invoke(app, ["upgrade", str(old)])
    assert "0 files upgraded, 3 had nothing to do" in again.stdout
    failed = CliRunner().invoke(app, ["upgrade", str(tmp_path / "nothing")])
    assert failed.exit_code == 1
    assert failed.stderr.startswith("error: ")
    assert failed.stderr.count("\n") == 1
