"""Builds whose videos belong together: by folder, or because one is the other, encoded again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.inspect_dataset import describe, summary
from lawdnet.audio.io import load_audio
from lawdnet.data.config import BuildConfig
from lawdnet.data.manifest import Dataset
from lawdnet.data.schema import read_segment
from lawdnet.data.selection import check_files
from lawdnet.data.split import split_draw
from lawdnet.synthetic import write_talking_head
from lawdnet.video import decode, probe
from lawdnet.video.writing import VideoWriter
from pipelines.build.build import build
from tests.support.drawn_clip import copy
from tests.support.in_process import map_in_process
from tests.support.real_weights import people, real_weights


def config(**settings: Any) -> BuildConfig:
    return BuildConfig(crop_width=80, **settings)


def nothing(*_: Any, **__: Any) -> Any:
    pytest.fail("nothing is to be computed")


def rows(dataset: Dataset) -> dict[str, dict[str, Any]]:
    return {row["path"]: row for row in dataset.videos().to_pylist()}


def sides(dataset: Dataset, paths: Sequence[str]) -> dict[str, str]:
    """The sides of these videos, which index, files and videos.parquet agree on."""
    check_files(dataset)
    found = {path: rows(dataset)[path] for path in paths}
    for row in found.values():
        refs = [ref for ref in dataset.segments() if ref.video_id == row["video_id"]]
        assert {ref.split for ref in refs} == {row["split"]}
        assert all(read_segment(Path(r.path), r.row_group)["split"].to_pylist() == [row["split"]] for r in refs)
    return {path: row["split"] for path, row in found.items()}


@pytest.fixture(scope="module")
def source(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three people's folders with two videos each, all of them the same clip with other bytes."""
    folder = tmp_path_factory.mktemp("people")
    for person in ("ann", "bob", "cy"):
        for name in ("x", "y"):
            copy(drawn, folder / person / f"{person}_{name}.mp4")
    return folder


PATHS = [f"{person}/{person}_{name}.mp4" for person in ("ann", "bob", "cy") for name in "xy"]


def test_no_folder_is_on_both_sides(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    low, middle, _ = sorted(("ann", "bob", "cy"), key=split_draw)
    between = (split_draw(low) + split_draw(middle)) / 2
    grouped = config(group_by="folder", near_duplicates="keep", val_fraction=between)
    with monkeypatch.context() as patch:
        patch.setattr("lawdnet.data.settle.rewrite_segments", nothing)  # workers draw from the group's name
        dataset = build(source, tmp_path / "dataset", grouped, execute=map_in_process)
    found = sides(dataset, PATHS)
    assert {path.partition("/")[0] for path, side in found.items() if side == "val"} == {low}
    assert {row["group"] for row in rows(dataset).values()} == {"ann", "bob", "cy"}
    assert describe(dataset)["groups"] == {"all": 3, "train": 2, "val": 1, "named": 3, "alone": 0}
    # other groups are a matter of names: no frame is decoded again
    by_name = config(group_by="regex:_(x)", near_duplicates="keep", val_fraction=0.5)
    again = build(source, tmp_path / "dataset", by_name, execute=nothing)
    assert len({side for path, side in sides(again, PATHS).items() if path.endswith("x.mp4")}) == 1
    counted = describe(again)["groups"]
    assert (counted["all"], counted["train"] + counted["val"], counted["named"], counted["alone"]) == (4, 4, 1, 3)
    plain = build(source, tmp_path / "dataset", config(near_duplicates="keep", val_fraction=between), execute=nothing)
    at_once = build(
        source, tmp_path / "plain", config(near_duplicates="keep", val_fraction=between), execute=map_in_process
    )
    assert sides(plain, PATHS) == sides(at_once, PATHS)
    assert plain.hash == at_once.hash
    assert {row["group"] for row in rows(plain).values()} == {""}


def test_a_pattern_that_groups_nothing_costs_nothing(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="regex:zoe matches none of the 6 paths"):
        build(source, tmp_path / "dataset", config(group_by="regex:zoe"), execute=nothing)
    assert not (tmp_path / "dataset").exists()


@pytest.fixture(scope="module")
def copies(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip, its re-encoding of lower quality under another name, and another clip of the same person."""
    folder = tmp_path_factory.mktemp("copies")
    copy(drawn, folder / "b_original.mp4")
    again = copy(drawn, folder / "z_again.mp4")
    video = probe(drawn)
    again.unlink()
    audio = load_audio(drawn, num_frames=video.num_frames)
    with VideoWriter(again, height=video.height, width=video.width, audio=audio, crf=34) as writer:
        for _, frame in decode(drawn):
            writer.write(frame)
    write_talking_head(folder / "other.mp4", identity=1, motion=20, speech=30, seconds=3, size=(160, 128))
    return folder


def test_a_re_encoding_is_on_the_side_of_its_original(copies: Path, tmp_path: Path) -> None:
    dataset = build(copies, tmp_path / "dataset", config(val_fraction=0.5), execute=map_in_process)
    found = rows(dataset)
    assert len({row["sha256"] for row in found.values()}) == 3
    first = found["b_original.mp4"]
    assert (first["group"], found["z_again.mp4"]["group"], found["other.mp4"]["group"]) == (
        first["sha256"], first["sha256"], "",
    )  # fmt: skip
    split = sides(dataset, list(found))
    assert split["b_original.mp4"] == split["z_again.mp4"] != split["other.mp4"]
    assert describe(dataset)["groups"] == {"all": 2, "train": 1, "val": 1, "named": 1, "alone": 1}


def test_a_re_encoding_is_rejected_if_wished_and_comes_back(copies: Path, tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    kept = build(copies, root, config(near_duplicates="keep"), execute=map_in_process)
    before = kept.index()
    without = build(copies, root, config(near_duplicates="reject"), execute=nothing)
    row = rows(without)["z_again.mp4"]
    assert (row["status"], row["reason"], row["segments"], row["video_id"]) == ("rejected", "duplicate", 0, "")
    assert "re-encoding of b_original.mp4" in row["detail"]
    assert without.info["counts"]["accepted"] == 2
    assert {ref.video_id for ref in without.segments()} == {
        rows(without)[name]["video_id"] for name in ("b_original.mp4", "other.mp4")
    }
    again = build(copies, root, config(near_duplicates="keep"), execute=nothing)
    assert again.index().equals(before)
    assert again.hash == kept.hash != without.hash


def test_groups_stand_in_a_column_of_the_list(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = source / "list.csv"
    people = dict(zip(PATHS, ("one", "two", "one", "two", "", "two"), strict=True))
    rows_of = [f"{path},{who}" for path, who in people.items()]
    table.write_text("\n".join(["path,speaker", *rows_of]))
    share = (split_draw("one") + split_draw("two")) / 2
    listed = config(group_by="column:speaker", near_duplicates="keep", val_fraction=share)
    with monkeypatch.context() as patch:
        patch.setattr("lawdnet.data.settle.rewrite_segments", nothing)  # workers draw from the group's name
        dataset = build(table, tmp_path / "dataset", listed, execute=map_in_process)
    found = sides(dataset, PATHS)
    assert {path: rows(dataset)[path]["group"] for path in PATHS} == people
    low = min(("one", "two"), key=split_draw)
    assert {people[path] for path, side in found.items() if side == "val"} - {""} == {low}
    assert any(
        line.strip().startswith(f"{'train' if low == 'one' else 'val'}: two: ") for line in summary(describe(dataset))
    )
    # another list, other groups: nothing is decoded, and a video that is gone keeps its group
    table.write_text("path,speaker\n" + "\n".join(f"{path},{'three' if who == 'one' else who}"
                                                   for path, who in list(people.items())[:-1]))  # fmt: skip
    again = build(table, tmp_path / "dataset", listed, execute=nothing)
    assert {path: rows(again)[path]["group"] for path in PATHS} == {
        path: who.replace("one", "three") for path, who in people.items()
    }
    sides(again, PATHS)
    with pytest.raises(ValueError, match="column:who names a group for none of the 5 inputs"):
        build(table, tmp_path / "dataset", config(group_by="column:who"), execute=nothing)


class Colours:
    """Stands for the network: people are told apart by the mean of their crops."""

    @classmethod
    def find(cls, weights_dir: object) -> Colours:
        return cls()

    def person(self, images_THW3: Any, points_T68x2: Any) -> Any:
        return np.resize(images_THW3.mean((0, 1, 2)) / 255, 128)


def test_no_face_is_on_both_sides(copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third clip is of the same drawn person, whom only the face connects; faces are added without decoding."""
    for module in ("build", "task"):
        monkeypatch.setattr(f"pipelines.build.{module}.FaceEmbedder", Colours)
    write_talking_head(copies / "stranger.mp4", identity=4, motion=9, speech=8, seconds=3, size=(160, 128))
    plain = build(copies, tmp_path / "dataset", config(near_duplicates="keep"), execute=map_in_process)
    assert {row["group"] for row in rows(plain).values()} == {""}
    by_face = config(group_by="face<=0.2", near_duplicates="keep", val_fraction=0.5)
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.build.task.rewrite_segments", nothing)
        patch.setattr("lawdnet.data.segments.decode_ticks", nothing)
        dataset = build(copies, tmp_path / "dataset", by_face, execute=map_in_process)
    found = sides(dataset, ["b_original.mp4", "other.mp4", "stranger.mp4", "z_again.mp4"])
    assert found["b_original.mp4"] == found["other.mp4"] == found["z_again.mp4"] != found["stranger.mp4"]
    assert list(describe(dataset)["members"].values()) == [["b_original.mp4", "other.mp4", "z_again.mp4"]]
    at_once = build(copies, tmp_path / "at_once", by_face, execute=map_in_process)
    assert at_once.hash == dataset.hash
    assert build(copies, tmp_path / "dataset", by_face, execute=nothing).hash == dataset.hash


def test_real_people_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clips of one person, and two people who look alike (0.43 apart)."""
    pytest.importorskip("dlib", reason="needs dlib-bin: pip install -e '.[evaluation]'")
    weights = real_weights("dlib_face")
    for clip in people("p05", "p06", "p63"):
        (tmp_path / "source").mkdir(exist_ok=True)
        for file in (clip, clip.with_suffix(".csv")):
            (tmp_path / "source" / file.name).symlink_to(file)
    dataset = build(
        tmp_path / "source",
        tmp_path / "dataset",
        BuildConfig(crop_width=160, group_by="face", near_duplicates="keep", max_clips=6),
        weights_dir=weights,
        execute=map_in_process,
    )
    assert list(describe(dataset)["members"].values()) == [["p05.mp4", "p06.mp4"]]
