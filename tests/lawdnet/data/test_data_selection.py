import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lawdnet.data.manifest import Dataset
from lawdnet.data.rules import FunnelStep, parse_rules
from lawdnet.data.schema import read_segment, table_to_segment
from lawdnet.data.selection import advice, check_files, choose, write_selection
from lawdnet.storage import locate, parquet_file
from tests.support.small_datasets import Scores, files, info, make_dataset

VIDEOS: dict[str, list[Scores]] = {
    "anna": [{"yaw": 0, "face_px": 100}, {"yaw": -40, "face_px": 100}, {"yaw": 10, "face_px": 100}],
    "bob": [{"yaw": 50, "face_px": 100}, {"yaw": 60, "face_px": 100}],
    "val_eve": [{"yaw": 5, "face_px": 100}, {"yaw": 5, "face_px": 20}, {"yaw": None, "face_px": 100}],
}
RULES = parse_rules(["face_px>=50", "abs(yaw)<30"])
KEPT = ["anna-0000", "anna-0002", "val_eve-0000"]


@pytest.fixture
def source(tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path / "sets" / "base", VIDEOS)


def ids(dataset: Dataset) -> list[str]:
    return [ref.segment_id for ref in dataset.segments()]


def test_the_funnel_of_a_choice(source: Dataset) -> None:
    chosen = choose(source, RULES)
    assert chosen.funnel == (FunnelStep("", 0, 8), FunnelStep("face_px>=50", 1, 7), FunnelStep("abs(yaw)<30", 4, 3, 1))
    assert chosen.kept["segment_id"].to_pylist() == KEPT


@pytest.mark.parametrize("copy", [False, True])
def test_a_selection_is_a_dataset_with_the_same_segments(source: Dataset, tmp_path: Path, copy: bool) -> None:
    before = files(source.root)
    made = write_selection(choose(source, RULES), tmp_path / "sets" / "good", copy=copy)
    assert files(source.root) == before
    assert ids(made) == KEPT
    assert [ref.segment_id for ref in made.segments("val")] == ["val_eve-0000"]
    originals = {ref.segment_id: ref for ref in source.segments()}
    for ref in made.segments():
        stored, original = (read_segment(Path(r.path), r.row_group) for r in (ref, originals[ref.segment_id]))
        assert stored.equals(original)
        assert table_to_segment(stored).segment_id == ref.segment_id
    about = info(made.root)
    assert about["counts"]["segments"] == 3
    assert about["counts"]["frames"] == 3 * 54
    assert (about["counts"]["accepted"], about["counts"]["rejected"]) == (2, 1)
    assert about["rules"] == ["face_px>=50", "abs(yaw)<30"]
    assert [step["left"] for step in about["funnel"]] == [8, 7, 3]
    assert about["source"] == "../base"
    rows = {row["video_id"]: row for row in made.videos().to_pylist()}
    assert (rows["anna"]["segments"], rows["anna"]["frames_used"], rows["anna"]["frames"]) == (2, 108, 180)
    assert (rows["bob"]["status"], rows["bob"]["reason"]) == ("rejected", "threshold")
    assert rows["bob"]["detail"] == "2 fell at abs(yaw)<30"
    check_files(made)


def test_a_view_has_no_segment_files_and_a_copy_no_others(source: Dataset, tmp_path: Path) -> None:
    view = write_selection(choose(source, RULES), tmp_path / "sets" / "view")
    copy = write_selection(choose(source, RULES), tmp_path / "sets" / "copy", copy=True)
    assert not (view.root / "segments").exists()
    assert sorted(path.name for path in (copy.root / "segments").iterdir()) == ["anna.parquet", "val_eve.parquet"]
    assert pq.ParquetFile(copy.root / "segments" / "anna.parquet").num_row_groups == 2
    assert (len(view.index()), len(copy.index())) == (8, 3)
    shutil.rmtree(source.root)
    check_files(copy)
    with pytest.raises(ValueError, match="2 of 2 segment files are missing"):
        check_files(view)


def test_views_move_together_with_what_they_point_to(source: Dataset, tmp_path: Path) -> None:
    first = write_selection(choose(source, RULES[:1]), tmp_path / "sets" / "first")
    second = write_selection(choose(first, RULES[1:]), tmp_path / "sets" / "inner" / "second")
    assert set(second.index()["path"].to_pylist()) == {
        f"../../base/segments/{name}.parquet" for name in ("anna", "bob", "val_eve")
    }
    assert info(second.root)["source"] == "../../first"
    (tmp_path / "sets").rename(tmp_path / "moved")
    moved = Dataset(tmp_path / "moved" / "inner" / "second")
    assert ids(moved) == KEPT
    check_files(moved)
    assert read_segment(Path(moved.segments()[0].path), 0)["segment_id"][0].as_py() == "anna-0000"


def test_a_view_far_away_points_with_absolute_paths(source: Dataset, tmp_path: Path) -> None:
    far = write_selection(choose(source, RULES), tmp_path / "a" / "b" / "c" / "far")
    assert far.index()["path"][0].as_py() == str(source.root / "segments" / "anna.parquet")
    (tmp_path / "a").rename(tmp_path / "z")
    check_files(Dataset(tmp_path / "z" / "b" / "c" / "far"))


def test_a_view_through_a_link_points_to_the_real_place(source: Dataset, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(source.root)
    linked = Dataset(tmp_path / "elsewhere" / "link")
    made = write_selection(choose(linked, RULES), tmp_path / "sets" / "view")
    assert made.index()["path"][0].as_py() == "../base/segments/anna.parquet"


def test_rules_add_up_over_selections_unless_they_are_fresh(tmp_path: Path) -> None:
    strict = make_dataset(tmp_path / "strict", VIDEOS, rules=["face_px>=50", "abs(yaw)<30"])
    more = choose(strict, parse_rules(["yaw<8"]))
    assert [step.rule for step in more.funnel] == ["", "face_px>=50", "abs(yaw)<30", "yaw<8"]
    assert more.kept["segment_id"].to_pylist() == ["anna-0000", "val_eve-0000"]
    fresh = choose(strict, parse_rules(["yaw>20"]), is_fresh=True)
    assert fresh.kept["segment_id"].to_pylist() == ["bob-0000", "bob-0001"]
    assert fresh.rules == ("yaw>20",)
    made = write_selection(fresh, tmp_path / "fresh")
    assert {row["video_id"] for row in made.videos().to_pylist() if row["status"] == "accepted"} == {"bob"}
    again = write_selection(choose(made, [], is_fresh=True), tmp_path / "all")
    assert len(again.segments()) == 8
    assert all(row["status"] == "accepted" and row["reason"] == "" for row in again.videos().to_pylist())


def test_the_hash_tells_selections_apart_and_not_where_they_lie(source: Dataset, tmp_path: Path) -> None:
    hashes = {
        source.hash,
        choose(source, RULES).hash,
        choose(source, RULES[:1]).hash,
        choose(source, RULES, max_per_video=1).hash,
        choose(source, RULES, is_fresh=True).hash,
    }
    assert len(hashes) == 5
    assert all(len(text) == 16 for text in hashes - {source.hash})
    view = write_selection(choose(source, RULES), tmp_path / "view")
    copy = write_selection(choose(source, RULES), tmp_path / "copy", copy=True)
    assert view.hash == copy.hash == choose(source, RULES).hash


@pytest.mark.parametrize(
    ("most", "kept"), [(1, [9]), (2, [4, 9]), (3, [3, 6, 9]), (9, [1, 2, 3, 4, 5, 6, 7, 8, 9]), (50, list(range(10)))]
)
def test_at_most_so_many_per_video_are_spread_over_it(tmp_path: Path, most: int, kept: list[int]) -> None:
    flat: list[Scores] = [{"yaw": 0}] * 10
    chosen = choose(make_dataset(tmp_path / "base", {"a": flat, "b": flat[:1]}), [], max_per_video=most)
    names = chosen.kept["segment_id"].to_pylist()
    assert names == [*(f"a-{i:04d}" for i in kept), "b-0000"]
    assert chosen.funnel[-1] == FunnelStep(f"at most {most} per video", 10 - len(kept), len(kept) + 1)
    assert write_selection(chosen, tmp_path / "out").info["rules"] == [f"at most {most} per video"]


def test_the_number_per_video_counts_what_the_rules_left(source: Dataset) -> None:
    chosen = choose(source, RULES, max_per_video=1)
    assert chosen.kept["segment_id"].to_pylist() == ["anna-0002", "val_eve-0000"]
    with pytest.raises(ValueError, match="must be at least 1"):
        choose(source, RULES, max_per_video=0)


def test_nothing_left_is_refused_with_advice(source: Dataset, tmp_path: Path) -> None:
    rules = parse_rules(["face_px>=50", "abs(yaw)>70", "yaw>0"])
    chosen = choose(source, rules)
    with pytest.raises(ValueError, match="no segment is left"):
        write_selection(chosen, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    marks = advice(chosen, rules)["yaw"]
    assert (marks["0 %"], marks["50 %"], marks["100 %"]) == (0, 25, 60)  # of |0 −40 10 50 60 5|
    assert advice(choose(source, RULES), RULES) == {}


def test_what_is_there_is_not_overwritten(source: Dataset, tmp_path: Path) -> None:
    chosen = choose(source, RULES)
    with pytest.raises(ValueError, match="never changed"):
        write_selection(chosen, source.root)
    with pytest.raises(ValueError, match="never changed"):
        write_selection(chosen, source.root / "good")
    other = make_dataset(tmp_path / "other", VIDEOS)
    before = files(other.root)
    with pytest.raises(ValueError, match="other"):
        write_selection(chosen, other.root)
    assert files(other.root) == before
    made = write_selection(chosen, tmp_path / "good")
    for again, copy in ((choose(source, RULES[:1]), False), (chosen, True)):
        with pytest.raises(ValueError, match="another"):
            write_selection(again, made.root, copy=copy)


@pytest.mark.parametrize("copy", [False, True])
def test_a_selection_that_was_stopped_is_made_again(source: Dataset, tmp_path: Path, copy: bool) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    out, chosen = tmp_path / "out", choose(source, RULES)
    whole = files(write_selection(chosen, tmp_path / "undisturbed", copy=copy).root)
    if copy:
        with pytest.raises(KeyboardInterrupt):
            write_selection(chosen, out, copy=True, on_file=stop)
        with pytest.raises(ValueError, match="no dataset here"):
            Dataset(out)
    write_selection(chosen, out, copy=copy)
    again = write_selection(chosen, out, copy=copy)
    assert ids(again) == KEPT
    assert files(out).keys() == whole.keys()
    assert all(files(out)[name] == data for name, data in whole.items() if name != "dataset.json")


def test_a_view_of_a_dataset_that_was_built_again_is_found_out(source: Dataset, tmp_path: Path) -> None:
    view = write_selection(choose(source, RULES), tmp_path / "sets" / "view")
    copy = write_selection(choose(source, RULES), tmp_path / "sets" / "copy", copy=True)
    path = source.root / "dataset.json"
    path.write_text(json.dumps(info(source.root) | {"hash": "changed"}), encoding="utf8")
    check_files(copy)
    with pytest.raises(ValueError, match="was built again; select again"):
        check_files(view)


def test_selections_in_an_object_store(source: Dataset, tmp_path: Path, s3: Any) -> None:
    chosen = choose(source, RULES)
    with pytest.raises(ValueError, match="add --copy"):
        write_selection(chosen, s3.root / "view")
    remote = write_selection(chosen, s3.root / "copy", copy=True)
    s3.requests.clear()
    view = write_selection(choose(remote, parse_rules(["yaw<8"])), s3.root / "view")
    here = write_selection(choose(remote, parse_rules(["yaw<8"])), tmp_path / "here")
    assert not any("segments/" in path and method == "GET" for method, path, _ in s3.requests), "no segment is read"
    for dataset in (view, here):
        assert ids(dataset) == ["anna-0000", "val_eve-0000"]
        check_files(dataset)
        (first, _) = dataset.segments()
        assert first.path.startswith("s3://")
        with parquet_file(locate(first.path)) as file:
            assert file.read_row_group(first.row_group)["segment_id"][0].as_py() == "anna-0000"
    again = write_selection(choose(view, []), tmp_path / "again", copy=True)
    assert ids(again) == ["anna-0000", "val_eve-0000"]
    assert (again.root / "segments" / "anna.parquet").exists()
