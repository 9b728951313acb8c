"""A dataset whose small segment files are packed into shards has the same rows, whatever happens to it then."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.inspect_dataset import describe
from lawdnet.data import shards
from lawdnet.data.config import BuildConfig
from lawdnet.data.ledger import SCHEMA, ledger_row
from lawdnet.data.manifest import SEGMENTS, Dataset
from lawdnet.data.merge import merge
from lawdnet.data.records import VideoRecord
from lawdnet.data.rules import parse_rule
from lawdnet.data.sampling import SampleSpec, draw_batches, plan_epoch
from lawdnet.data.schema import read_segment
from lawdnet.data.selection import check_files, choose, write_selection
from lawdnet.storage import Location, locate
from pipelines.build.build import build
from pipelines.build.pack import ShardTask
from pipelines.build.task import VideoTask
from pipelines.build.upgrade import upgrade
from pipelines.executor import map_items
from tests.support.drawn_clip import copies, copy
from tests.support.format_2 import as_format_2
from tests.support.fragile import FragileShardTask
from tests.support.in_process import map_in_process
from tests.support.stored import read_records

NAMES = [f"{letter}.mp4" for letter in "abcdef"]
PLAIN = BuildConfig(crop_width=80, near_duplicates="keep", val_fraction=0.0)
PACKED = dataclasses.replace(PLAIN, pack_files=2)
FEWER = {"mel": {"hops": "mean"}}


@pytest.fixture(scope="module")
def source(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copies(drawn, tmp_path_factory.mktemp("source"), NAMES)


@pytest.fixture(scope="module")
def plain(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return in_process(source, tmp_path_factory.mktemp("plain") / "dataset", PLAIN)


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """In one shard; tests must leave it as it is."""
    return in_process(source, tmp_path_factory.mktemp("packed") / "dataset", PACKED)


@pytest.fixture
def packed(whole: Dataset, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(whole.root, tmp_path / "packed")
    return tmp_path / "packed"


def in_process(source: Location, root: Location, config: BuildConfig) -> Dataset:
    return build(source, root, config, execute=map_in_process)


def idle(*_: Any, **__: Any) -> Any:
    pytest.fail("nothing is to be done")


def stored(dataset: Dataset) -> list[pa.Table]:
    """What readers get of each segment."""
    return [read_segment(locate(ref.path), ref.row_group) for ref in dataset.segments()]


def rows(dataset: Dataset) -> tuple[pa.Table, list[pa.Table], pa.Table]:
    """Everything that readers see, but for the seconds and for the files that segments lie in."""
    videos = dataset.videos()
    timeless = [name for name in videos.column_names if not name.startswith("seconds")]
    check_files(dataset)
    return dataset.index().drop_columns(["path", "row_group"]), stored(dataset), videos.select(timeless)


def names(root: Path) -> list[str]:
    """Its segment files: a shard is called so."""
    found = (path.name for path in (root / SEGMENTS).iterdir())
    return sorted("shard" if name.startswith("shard-") else name.partition("-")[0] for name in found)


def files_of(root: Path) -> set[str]:
    return set().union(*(record.files for record in read_records(root).values()))


def test_a_packed_dataset_has_the_same_rows(plain: Dataset, whole: Dataset, source: Path) -> None:
    assert names(Path(str(plain.root))) == ["a", "b", "c", "d", "e", "f"]
    assert names(Path(str(whole.root))) == ["shard"]
    assert rows(whole) == rows(plain)
    assert whole.info == plain.info
    assert whole.index()["row_group"].to_pylist() == list(range(len(whole.index())))
    before = {path: path.stat().st_mtime_ns for path in (whole.root / SEGMENTS).iterdir()}
    build(source, whole.root, PACKED, execute=idle)
    assert {path: path.stat().st_mtime_ns for path in (whole.root / SEGMENTS).iterdir()} == before


def test_few_files_stay_as_they_are(plain: Dataset, source: Path) -> None:
    most = dataclasses.replace(PLAIN, pack_files=len(NAMES))
    assert build(source, plain.root, most, execute=idle).index()["row_group"].to_pylist() == [0] * len(NAMES)


def test_the_same_build_gives_the_same_shards(
    whole: Dataset, plain: Dataset, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = in_process(source, tmp_path / "again", PACKED)
    (one,), (two,) = ([*(dataset.root / SEGMENTS).iterdir()] for dataset in (whole, again))
    assert (one.name, one.read_bytes()) == (two.name, two.read_bytes())
    size = max(path.stat().st_size for path in (plain.root / SEGMENTS).iterdir())
    monkeypatch.setattr(shards, "SHARD_BYTES", 3 * size // 2)
    monkeypatch.setattr(shards, "SMALL_BYTES", size + 1)
    several = in_process(source, tmp_path / "several", PACKED)
    assert rows(several) == rows(plain)
    assert several.index()["row_group"].to_pylist() == [0, 1, 0, 1, 0, 1]
    assert len(set(several.index()["path"].to_pylist())) == 3


def test_a_driver_is_stopped_between_shard_and_records(
    plain: Dataset, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "dataset"
    in_process(source, root, PLAIN)
    place = VideoRecord.place
    placed: list[str] = []

    def stop(record: VideoRecord, *rest: Any) -> None:
        if len(placed) == 2:
            raise KeyboardInterrupt
        placed.append(record.video_id)
        place(record, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(VideoRecord, "place", stop)
        with pytest.raises(KeyboardInterrupt):
            in_process(source, root, PACKED)
    assert rows(Dataset(root)) == rows(plain), "the index of before is still true"
    assert names(root) == ["a", "b", "c", "d", "e", "f", "shard"]
    assert len(files_of(root)) == 5
    again = in_process(source, root, PACKED)
    assert rows(again) == rows(plain)
    assert names(root) == ["shard", "shard"], "the first one is half used"
    build(source, root, PACKED, execute=idle)


def test_a_worker_dies_between_shard_and_records(
    plain: Dataset, source: Path, tmp_path: Path, ray_session: None
) -> None:
    def fragile(task: type, *rest: Any, **options: Any) -> Iterator[Any]:
        return map_items(FragileShardTask if task is ShardTask else task, *rest, **options)

    root = tmp_path / "dataset"
    in_process(source, root, PLAIN)
    again = build(source, root, PACKED, execute=fragile)
    assert (root / "died").exists()
    assert rows(again) == rows(plain)
    assert names(root) == ["shard"]


def test_a_shard_that_cannot_be_written_costs_nothing(
    plain: Dataset, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_tables", lambda *_: 1 / 0)
        failed = in_process(source, tmp_path / "dataset", PACKED)
    assert rows(failed) == rows(plain)
    assert "could not be packed (ZeroDivisionError: division by zero); its videos keep their files" in caplog.text
    assert names(tmp_path / "dataset") == ["a", "b", "c", "d", "e", "f"]
    in_process(source, tmp_path / "dataset", PACKED)
    assert names(tmp_path / "dataset") == ["shard"]


@pytest.mark.parametrize("pack_files", [2, 1000])
def test_a_feature_is_added_to_a_packed_dataset(
    packed: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack_files: int
) -> None:
    averaged = dataclasses.replace(PLAIN, options=FEWER)
    monkeypatch.setattr("lawdnet.data.segments.decode_ticks", lambda *_, **__: pytest.fail("a frame was decoded"))
    old = set((packed / SEGMENTS).iterdir())
    added = in_process(source, packed, dataclasses.replace(averaged, pack_files=pack_files))
    monkeypatch.undo()
    at_once = in_process(source, tmp_path / "at_once", averaged)
    assert rows(added) == rows(at_once)
    assert added.hash == at_once.hash
    assert names(packed) == (["shard"] if pack_files == 2 else ["a", "b", "c", "d", "e", "f"])
    assert not old & set((packed / SEGMENTS).iterdir()), "a shard is never changed"


def test_what_could_not_be_added_stays_in_its_shard(
    packed: Path, source: Path, plain: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One video of a shard is like before; the others, with other columns, make a shard of their own."""
    run = VideoTask._sound

    def refuse(self: VideoTask, item: Any, path: Path) -> Any:
        if item.name == "b.mp4":
            raise RuntimeError("no memory")
        return run(self, item, path)

    with monkeypatch.context() as patch:
        patch.setattr(VideoTask, "_sound", refuse)
        dataset = in_process(source, packed, dataclasses.replace(PACKED, options=FEWER))
    assert [row.lacks for row in dataset.video_rows()] == ["", "mel", "", "", "", ""]
    assert names(packed) == ["shard", "shard"]
    assert [len(table["features_mel"][0].values[0].as_py()) for table in stored(dataset)] == [80, 320, 80, 80, 80, 80]
    assert stored(dataset)[1] == stored(plain)[1]


@pytest.mark.parametrize("pack_files", [2, 1000])
def test_a_packed_video_changes_sides(packed: Path, source: Path, tmp_path: Path, pack_files: int) -> None:
    half = dataclasses.replace(PLAIN, val_fraction=0.5)
    changed = in_process(source, packed, dataclasses.replace(half, pack_files=pack_files))
    at_once = in_process(source, tmp_path / "at_once", half)
    assert rows(changed) == rows(at_once)
    sides = changed.index()["split"].to_pylist()
    assert set(sides) == {"train", "val"}
    assert [table["split"][0].as_py() for table in stored(changed)] == sides
    assert in_process(source, packed, half).info == at_once.info


def test_a_packed_video_becomes_a_duplicate_or_another(drawn: Path, source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "source")
    root = tmp_path / "dataset"
    in_process(tmp_path / "source", root, PACKED)
    shutil.copy(tmp_path / "source" / "c.mp4", tmp_path / "source" / "0.mp4")
    shutil.copy(tmp_path / "source" / "c.csv", tmp_path / "source" / "0.csv")
    copy(drawn, tmp_path / "e.mp4").rename(tmp_path / "source" / "e.mp4")
    copy(drawn, tmp_path / "other.mp4").rename(tmp_path / "source" / "d.mp4")
    changed = in_process(tmp_path / "source", root, dataclasses.replace(PLAIN, pack_files=3))
    assert {row.path: row.reason for row in changed.video_rows() if row.reason} == {"c.mp4": "duplicate"}
    assert rows(changed) == rows(in_process(tmp_path / "source", tmp_path / "at_once", PLAIN))
    assert names(root) == ["0", "d", "e", "shard"], "half of the shard is in use, and three files are not many"


def test_a_shard_that_is_mostly_dead_is_packed_again(drawn: Path, source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "source")
    root = tmp_path / "dataset"
    in_process(tmp_path / "source", root, PACKED)
    (old,) = (root / SEGMENTS).iterdir()
    for name in "abcd":
        copy(drawn, tmp_path / f"{name}{name}.mp4").rename(tmp_path / "source" / f"{name}.mp4")
    most = dataclasses.replace(PLAIN, pack_files=100)
    changed = in_process(tmp_path / "source", root, most)
    assert names(root) == ["shard"]
    assert not old.exists()
    assert rows(changed) == rows(in_process(tmp_path / "source", tmp_path / "at_once", PLAIN))
    assert [path.stem for path in (root / ".build" / "shards").iterdir()] == [f.stem for f in root.glob("segments/*")]
    build(tmp_path / "source", root, most, execute=idle)


def test_a_lost_shard_is_built_again(packed: Path, source: Path, plain: Dataset) -> None:
    for path in (packed / SEGMENTS).iterdir():
        path.unlink()
    assert rows(in_process(source, packed, PACKED)) == rows(plain)


def test_selections_of_a_packed_dataset(whole: Dataset, plain: Dataset, tmp_path: Path) -> None:
    first, *_, fifth, last = (ref.video_id for ref in whole.segments())
    rule = parse_rule(" and ".join(f"video_id!='{name}'" for name in (first, fifth, last)), ())
    view = write_selection(choose(whole, [rule]), tmp_path / "view")
    own = write_selection(choose(whole, [rule]), tmp_path / "own", copy=True)
    like = write_selection(choose(plain, [rule]), tmp_path / "like", copy=True)
    assert len(like.segments()) == 3
    assert stored(view) == stored(own) == stored(like)
    check_files(view)
    assert own.index().drop_columns(["path", "row_group"]) == like.index().drop_columns(["path", "row_group"])
    assert own.index()["row_group"].to_pylist() == [0, 1, 2]
    assert (names(tmp_path / "own"), names(tmp_path / "like")) == (["shard"], ["b", "c", "d"])


def test_a_packed_dataset_is_merged(whole: Dataset, plain: Dataset, drawn: Path, tmp_path: Path) -> None:
    for name in ("f.mp4", "g.mp4", "h.mp4"):
        copy(drawn, tmp_path / "more" / name)
    results = []
    for first, config in ((plain, PLAIN), (whole, PACKED)):
        kind = str(config.pack_files)
        more = in_process(tmp_path / "more", tmp_path / f"more-{kind}", config)
        merged = merge([first.root, more.root], tmp_path / kind)
        assert merged.videos == 8
        results.append(Dataset(tmp_path / kind))
    assert stored(results[1]) == stored(results[0])
    assert names(tmp_path / "2") == ["shard", "shard"]
    assert all(path.stat().st_nlink == 2 for path in (tmp_path / "2" / SEGMENTS).iterdir())
    check_files(results[1])


def test_a_merge_moves_packed_videos_to_the_side_of_their_group(whole: Dataset, drawn: Path, tmp_path: Path) -> None:
    """The first dataset has some videos of either group, all for training; one group was for validation."""
    for folder, letters in (("anna", "abgh"), ("bert", "cdij")):
        for letter in letters:
            copy(drawn, tmp_path / "people" / folder / f"{letter}.mp4")
    grouped = dataclasses.replace(PACKED, group_by="folder", val_fraction=0.5)
    people = in_process(tmp_path / "people", tmp_path / "grouped", grouped)
    assert set(people.index()["split"].to_pylist()) == {"train", "val"}
    merged = merge([whole.root, people.root], tmp_path / "merged")
    assert (merged.videos, len(merged.changed_sides)) == (10, 4)
    result = Dataset(tmp_path / "merged")
    assert names(tmp_path / "merged") == ["shard", "shard"]
    for ref, table in zip(result.segments(), stored(result), strict=True):
        assert (table["segment_id"][0].as_py(), table["split"][0].as_py()) == (ref.segment_id, "train")
    check_files(people)
    assert [table["split"][0].as_py() for table in stored(people)] == people.index()["split"].to_pylist()


def test_a_packed_dataset_is_upgraded(packed: Path, whole: Dataset, source: Path) -> None:
    as_format_2(packed)
    assert upgrade(packed, execute=map_in_process).files == 1
    columns = [name for name in stored(whole)[0].column_names if not name.startswith("frames_jpeg_")]
    upgraded = Dataset(packed)
    assert [table.select(columns) for table in stored(upgraded)] == [table.select(columns) for table in stored(whole)]
    assert "frames_jpeg_2" in stored(upgraded)[0].column_names
    assert build(source, packed, PACKED, execute=idle).info == whole.info


def test_what_readers_make_of_it(whole: Dataset, plain: Dataset) -> None:
    spec = SampleSpec(mouth_px=32, num_frames=1, batch_size=3, samples_per_segment=2, audio="mel", sync=None)
    batches = []
    for dataset in (plain, whole):
        work = next(plan_epoch(dataset.segments(), spec, seed=1, epoch=0, rank=0, world=1))
        batches.append(list(draw_batches(work, spec, seed=1, stored_width=80)))
    for one, two in zip(*batches, strict=True):
        assert one.keys() == two.keys()
        assert all((one[name] == two[name]).all() for name in one)
    described = [describe(dataset) for dataset in (plain, whole)]
    for content in described:
        del content["dataset"], content["stages"]
    assert described[0] == described[1]


def test_an_object_store_holds_shards(source: Path, plain: Dataset, tmp_path: Path, s3: Any) -> None:
    root = s3.root / "out"
    assert rows(in_process(source, root, PACKED))[:2] == rows(plain)[:2]
    assert [path.name[:6] for path in (root / SEGMENTS).glob("*")] == ["shard-"]
    half = dataclasses.replace(PLAIN, val_fraction=0.5, options=FEWER)
    changed = in_process(source, root, half)
    assert rows(changed)[:2] == rows(in_process(source, tmp_path / "at_once", half))[:2]
    assert len(list((root / SEGMENTS).glob("*"))) == len(NAMES)


def record(name: str, *, part: str = "", mark: str = "") -> VideoRecord:
    return VideoRecord(
        inputs=[], path=name, status="accepted", video_id=name, segments=2, parts=[part] if part else [],
        features={"mel": mark},
    )  # fmt: skip


def planned(records: Sequence[VideoRecord], sizes: dict[str, int], **options: Any) -> list[list[str]]:
    given = {"totals": {}, "most_loose": 2} | options
    videos = pa.Table.from_pylist([ledger_row(r.path, r) for r in records], SCHEMA)
    return sorted(shards.plan_shards(videos, sizes, **given).values())


def test_shards_are_planned_by_size_and_kind() -> None:
    megabytes = {"a": 60, "b": 64, "c": 50, "d": 63, "e": 60, "f": 60, "g": 60, "h": 30, "i": 63}
    sizes = {f"{name}.parquet": size << 20 for name, size in megabytes.items()}
    records = [record(name, mark="other" if name in "di" else "") for name in reversed(megabytes)]
    assert planned(records, sizes) == [["a", "c", "e", "f", "g", "h"], ["d", "i"]], (
        "b is large enough, h would be alone"
    )
    sizes["h.parquet"] = 63 << 20
    records += [record(name) for name in "jklm"]
    sizes |= {f"{name}.parquet": 63 << 20 for name in "jklm"}
    assert planned(records, sizes) == [["a", "c", "e", "f", "g"], ["d", "i"], ["h", "j", "k", "l", "m"]]
    assert planned(records, sizes, most_loose=0) == []
    assert planned(records[:2], sizes) == []


def test_a_shard_is_planned_again_when_most_of_it_is_dead() -> None:
    records = [record("a", part="s"), record("b", part="s"), record("c"), record("d", part="t")]
    sizes = {"s.parquet": 1000, "t.parquet": 1000, "c.parquet": 10}
    assert planned(records, sizes, totals={"s": 8, "t": 4}) == []
    assert planned(records, sizes, totals={"s": 9, "t": 4}) == [["a", "b", "c"]]
