import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lawdnet.data.manifest import INDEX, MANIFEST, SEGMENTS, Dataset, write_videos
from lawdnet.data.merge import merge
from lawdnet.data.rules import parse_rule
from lawdnet.data.schema import from_rows, read_segment
from lawdnet.data.selection import choose, write_selection
from lawdnet.storage import locate
from tests.support.transfer_datasets import drop, make_dataset, sha


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def shade_of(dataset: Dataset, segment_id: str) -> float:
    [ref] = [ref for ref in dataset.segments() if ref.segment_id == segment_id]
    table = read_segment(Path(ref.path), ref.row_group)
    assert table["segment_id"].to_pylist() == [segment_id]
    assert table["video_id"].to_pylist() == [ref.video_id]
    return float(from_rows(table["features_mel"])[0, 0])


def test_all_segments_of_both_are_in_the_result(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", {"x.mp4": "x", "y.mp4": "y"}, rejected=["bad.mp4"])
    make_dataset(tmp_path / "b", {"z.mp4": "z"}, split="val", shade=90)
    before = snapshot(tmp_path)
    merged = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert (merged.videos, merged.segments, merged.twins, merged.renamed) == (3, 6, [], {})
    result = Dataset(tmp_path / "c")
    assert len(result.segments()) == 6
    assert {ref.video_id[0] for ref in result.segments("val")} == {"z"}
    assert shade_of(result, result.segments("val")[1].segment_id) == 90
    assert result.info["counts"]["accepted"] == 3
    assert result.info["counts"]["reasons"] == {"no_face": 1}
    assert result.info["funnel"] == [{"rule": "", "dropped": 0, "left": 6}]
    assert {name: data for name, data in snapshot(tmp_path).items() if name[0] in "ab"} == before


def test_files_are_linked_not_copied(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", {"x.mp4": "x"})
    make_dataset(tmp_path / "b", {"z.mp4": "z"})
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    for path in (tmp_path / "c" / SEGMENTS).iterdir():
        assert path.stat().st_nlink == 2


def test_without_hard_links_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    make_dataset(tmp_path / "a", {"x.mp4": "x"})
    make_dataset(tmp_path / "b", {"z.mp4": "z"})
    monkeypatch.setattr("os.link", refuse)
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert len(Dataset(tmp_path / "c").segments()) == 4
    assert all(path.stat().st_nlink == 1 for path in (tmp_path / "c" / SEGMENTS).iterdir())


def test_a_video_in_two_datasets_is_there_once_on_the_first_ones_side(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", {"x.mp4": "x"}, shade=50, source="/films/one")
    make_dataset(tmp_path / "b", {"copy.mp4": "x", "z.mp4": "z"}, split="val", shade=90, source="/films/two")
    merged = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert (merged.videos, merged.segments) == (2, 4)
    assert merged.twins == [f"/films/two/copy.mp4 of {tmp_path / 'b'}"]
    assert merged.changed_sides == [f"/films/two/copy.mp4 of {tmp_path / 'b'}: val there, train here"]
    result = Dataset(tmp_path / "c")
    [x] = {ref.video_id for ref in result.segments("train")}
    assert x.startswith("x-")
    assert shade_of(result, f"{x}-0000") == 50
    [twin] = [row for row in result.videos().to_pylist() if row["status"] == "rejected"]
    assert (twin["path"], twin["reason"], twin["segments"]) == ("/films/two/copy.mp4", "duplicate", 0)
    assert "/films/one/x.mp4" in twin["detail"]
    assert "it was in val" in twin["detail"]


def test_merging_a_merge_with_its_source_again_changes_nothing(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", {"x.mp4": "x"}, source="/films")
    make_dataset(tmp_path / "b", {"z.mp4": "z"}, source="/films")
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    merged = merge([tmp_path / "c", tmp_path / "a"], tmp_path / "d")
    assert len(merged.twins) == 1
    assert Dataset(tmp_path / "d").videos().num_rows == 2
    assert Dataset(tmp_path / "d").index().equals(Dataset(tmp_path / "c").index())


def test_another_video_of_the_same_id_is_renamed_everywhere(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", {"x.mp4": "one"}, ids={"x.mp4": "same"}, shade=50)
    make_dataset(tmp_path / "b", {"x.mp4": "two"}, ids={"x.mp4": "same"}, shade=90)
    merged = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert merged.renamed == {f"same of {tmp_path / 'b'}": "same-2"}
    result = Dataset(tmp_path / "c")
    assert [ref.segment_id for ref in result.segments()] == ["same-0000", "same-0001", "same-2-0000", "same-2-0001"]
    assert shade_of(result, "same-0001") == 50
    assert shade_of(result, "same-2-0001") == 90
    assert sorted(row["video_id"] for row in result.videos().to_pylist()) == ["same", "same-2"]
    with pq.ParquetFile(tmp_path / "c" / SEGMENTS / "same-2.parquet") as file:
        assert file.num_row_groups == 2
        assert set(file.read(["video_id"])["video_id"].to_pylist()) == {"same-2"}


def test_the_index_is_in_the_order_of_the_ids(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", {"z.mp4": "z", "k.mp4": "k"})
    make_dataset(tmp_path / "b", {"x.mp4": "x"})
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert [ref.segment_id[0] for ref in Dataset(tmp_path / "c").segments()] == list("kkxxzz")


def test_a_dataset_in_an_object_store_can_be_merged(tmp_path: Path) -> None:
    pytest.importorskip("upath")
    make_dataset(tmp_path / "a", {"x.mp4": "x"})
    make_dataset(tmp_path / "b", {"z.mp4": "z"}, shade=90)
    place = locate("memory://merge-test/b")
    for path in (path for path in (tmp_path / "b").rglob("*") if path.is_file()):
        (place / path.relative_to(tmp_path / "b").as_posix()).write_bytes(path.read_bytes())
    shutil.rmtree(tmp_path / "b")
    merge([tmp_path / "a", place], tmp_path / "c")
    result = Dataset(tmp_path / "c")
    assert shade_of(result, result.segments()[-1].segment_id) == 90


def test_scores_are_united_and_null_where_not_measured(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", {"x.mp4": "x"}, scores=["sharpness"])
    make_dataset(tmp_path / "b", {"z.mp4": "z"}, scores=["sharpness", "yaw"])
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    index = Dataset(tmp_path / "c").index()
    assert index["score_sharpness"].to_pylist() == [3.5] * 4
    assert index["score_yaw"].to_pylist() == [None, None, 3.5, 3.5]


def test_what_a_rule_left_out_stays_out(tmp_path: Path) -> None:
    a = make_dataset(tmp_path / "a", {"x.mp4": "x", "y.mp4": "y"})
    make_dataset(tmp_path / "b", {"z.mp4": "z"})
    drop(tmp_path / "a", a.segments()[0].video_id, "sharpness>=4")
    merged = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    result = Dataset(tmp_path / "c")
    assert merged.segments == len(result.segments()) == 4
    assert result.index()["dropped"].to_pylist().count("sharpness>=4") == 2
    assert result.info["funnel"][1] == {"rule": "sharpness>=4", "dropped": 2, "left": 4}
    assert result.info["rules"] == []  # b knows nothing of the rule
    assert [source["path"] for source in result.info["merged"]] == [str(tmp_path / "a"), str(tmp_path / "b")]


def test_a_selection_that_is_a_view_can_be_merged(tmp_path: Path) -> None:
    a = make_dataset(tmp_path / "a", {"x.mp4": "x", "y.mp4": "y"}, source="/films")
    x = a.segments()[0].video_id
    write_selection(choose(a, [parse_rule(f"video_id=='{x}'")]), tmp_path / "view")
    make_dataset(tmp_path / "b", {"y.mp4": "y"}, source="/copies", shade=90)
    merged = merge([tmp_path / "view", tmp_path / "b"], tmp_path / "c")
    result = Dataset(tmp_path / "c")
    assert merged.segments == 4  # y is left out of the view, so b's is taken
    assert [ref.video_id[0] for ref in result.segments()] == ["x", "x", "y", "y"]
    assert all(Path(ref.path).parent == tmp_path / "c" / SEGMENTS for ref in result.segments())
    assert shade_of(result, result.segments()[-1].segment_id) == 90


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"crop_width": 40}, "crop_width is 20 in .*a and 40 in .*b"),
        ({"model": sha("other")}, "model_sha256 of feature mel is None in .*a and [0-9a-f]{64} in .*b"),
    ],
)
def test_other_formats_are_refused_with_both_sides_named(tmp_path: Path, options: dict[str, object], text: str) -> None:
    make_dataset(tmp_path / "a", {"x.mp4": "x"})
    make_dataset(tmp_path / "b", {"z.mp4": "z"}, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=text):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_an_interrupted_merge_is_completed_by_the_same_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(tmp_path / "a", {"x.mp4": "x", "y.mp4": "y"})
    make_dataset(tmp_path / "b", {"x.mp4": "other"}, ids={"x.mp4": sha("unused")[:12]})

    def stop_at(number: int) -> Callable[[int, int], None]:
        def check(done: int, total: int) -> None:
            if done == number:
                raise KeyboardInterrupt

        return check

    for number in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c", stop_at(number))
        assert not (tmp_path / "c" / MANIFEST).exists()
    (tmp_path / "c" / SEGMENTS / ".x.parquet.0.tmp").write_bytes(b"left by kill -9")
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "whole")
    assert (tmp_path / "c" / INDEX).read_bytes() == (tmp_path / "whole" / INDEX).read_bytes()
    assert sorted(p.name for p in (tmp_path / "c" / SEGMENTS).iterdir()) == sorted(
        p.name for p in (tmp_path / "whole" / SEGMENTS).iterdir()
    )


def test_a_taken_folder_is_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", {"x.mp4": "x"})
    make_dataset(tmp_path / "b", {"z.mp4": "z"})
    make_dataset(tmp_path / "c", {"w.mp4": "w"})
    with pytest.raises(ValueError, match="not made by merge"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "d")
    with pytest.raises(ValueError, match="another merge"):
        merge([tmp_path / "a", tmp_path / "c"], tmp_path / "d")
    with pytest.raises(ValueError, match="never changed"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "a" / "all")
    with pytest.raises(ValueError, match="at least two"):
        merge([tmp_path / "a"], tmp_path / "e")


def in_groups(root: Path, groups: dict[str, str]) -> Dataset:
    """Put the videos of a dataset into groups: path → name."""
    rows = [replace(row, group=groups.get(row.path, "")) for row in Dataset(root).video_rows()]
    write_videos(root, [row.columns() for row in rows])
    return Dataset(root)


def sides(dataset: Dataset) -> dict[str, tuple[str, str]]:
    """Path → (group, split), which videos.parquet, index.parquet and the files agree on."""
    rows = {row.path: row for row in dataset.video_rows() if row.is_accepted}
    for row in rows.values():
        refs = [ref for ref in dataset.segments() if ref.video_id == row.video_id]
        assert len(refs) == 2
        for ref in refs:
            stored = read_segment(Path(ref.path), ref.row_group, ["split", "video_id"]).to_pylist()
            assert stored == [{"split": row.split, "video_id": row.video_id}]
            assert ref.split == row.split
    return {path: (row.group, row.split) for path, row in rows.items()}


def test_a_group_that_several_datasets_have_is_on_one_side(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", {"1.mp4": "1", "2.mp4": "2"}, split="train")
    make_dataset(tmp_path / "b", {"3.mp4": "3", "4.mp4": "4", "5.mp4": "5"}, split="val", shade=90)
    in_groups(tmp_path / "a", {"1.mp4": "ann", "2.mp4": "bob"})
    in_groups(tmp_path / "b", {"3.mp4": "ann", "4.mp4": "cy"})
    before = snapshot(tmp_path)
    merged = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert merged.changed_sides == [f"3.mp4 of {tmp_path / 'b'}: val there, train here"]
    assert sides(Dataset(tmp_path / "c")) == {
        "1.mp4": ("ann", "train"),
        "2.mp4": ("bob", "train"),
        "3.mp4": ("ann", "train"),
        "4.mp4": ("cy", "val"),
        "5.mp4": ("", "val"),
    }
    assert {name: data for name, data in snapshot(tmp_path).items() if name[0] in "ab"} == before
    first = snapshot(tmp_path / "c")
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert snapshot(tmp_path / "c") == first


def test_a_video_that_both_have_connects_their_groups(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", {"same.mp4": "s", "alone.mp4": "x"}, split="train")
    make_dataset(
        tmp_path / "b", {"other/same.mp4": "s", "other/more.mp4": "m"}, split="val", ids={"other/more.mp4": "x"}
    )
    in_groups(tmp_path / "b", {"other/same.mp4": "ann", "other/more.mp4": "ann"})
    merged = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert sides(Dataset(tmp_path / "c")) == {
        "alone.mp4": ("", "train"),
        "same.mp4": ("ann", "train"),
        "other/more.mp4": ("ann", "train"),
    }
    assert len(merged.changed_sides) == 2, "the duplicate, and the video that follows it"
    # the other way round, the group keeps its side
    merge([tmp_path / "b", tmp_path / "a"], tmp_path / "d")
    assert sides(Dataset(tmp_path / "d")) == {
        "alone.mp4": ("", "train"),
        "other/same.mp4": ("ann", "val"),
        "other/more.mp4": ("ann", "val"),
    }


def test_a_duplicate_is_told_the_side_that_its_group_has_now(tmp_path: Path) -> None:
    """The video of the second dataset moves with its group, so the twin in the third hears of the new side."""
    make_dataset(tmp_path / "a", {"1.mp4": "1"}, split="train")
    make_dataset(tmp_path / "b", {"2.mp4": "2"}, split="val")
    make_dataset(tmp_path / "c", {"twin.mp4": "2"}, split="val")
    in_groups(tmp_path / "a", {"1.mp4": "ann"})
    in_groups(tmp_path / "b", {"2.mp4": "ann"})
    merge([tmp_path / name for name in "abc"], tmp_path / "d")
    [twin] = [row for row in Dataset(tmp_path / "d").video_rows() if row.reason == "duplicate"]
    assert twin.detail == f"the same bytes as 2.mp4, which is in train; it was in val of {tmp_path / 'c'}"


def test_the_side_is_that_of_a_video_that_is_taken(tmp_path: Path) -> None:
    """Rules dropped the video in the first dataset, so it comes from the second, and from its side."""
    make_dataset(tmp_path / "a", {"1.mp4": "1"}, split="train")
    make_dataset(tmp_path / "b", {"2.mp4": "1"}, split="val")
    rows = Dataset(tmp_path / "a").video_rows()
    write_videos(tmp_path / "a", [replace(row, status="rejected", reason="threshold").columns() for row in rows])
    merged = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert sides(Dataset(tmp_path / "c")) == {"2.mp4": ("", "val")}
    assert [text.partition(":")[2] for text in merged.changed_sides] == [" train there, val here"]
