import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from lawdnet.data import lawdnet2024
from lawdnet.data.config import BuildConfig
from lawdnet.data.importer import import_lawdnet
from lawdnet.data.lawdnet2024 import read_videos
from lawdnet.data.levels import small_of_jpeg
from lawdnet.data.manifest import INDEX, SEGMENTS, VIDEOS, Dataset
from lawdnet.data.schema import read_segment, rewrite_segments, table_to_segment
from lawdnet.types import Segment
from tests.support.transfer_datasets import publish, sha

CONFIG = BuildConfig(features=("deepspeech",), where=(), val_fraction=0)


def stored(dataset: Dataset) -> list[Segment]:
    return [table_to_segment(read_segment(Path(ref.path), ref.row_group)) for ref in dataset.segments()]


def rows(dataset: Dataset) -> dict[str, dict[str, Any]]:
    return {Path(row["path"]).stem: row for row in dataset.videos().to_pylist()}


def change(path: Path, video: str, **values: Any) -> None:
    """Rewrites fields of the first clip of a video; None takes a field away."""
    content = json.loads(path.read_text())
    clip = content[video]["clip_data_list"][0]
    clip |= values
    for name, value in values.items():
        if value is None:
            del clip[name]
    path.write_text(json.dumps(content))


def test_clips_in_a_row_become_one_segment(tmp_path: Path) -> None:
    path = publish(tmp_path / "old", {"anna": range(7)})
    dataset = import_lawdnet(path, tmp_path / "new", CONFIG)
    [segment] = stored(dataset)
    assert (segment.num_frames, segment.start_frame, segment.track) == (63, 0, 0)
    folder = tmp_path / "old" / "split_video_25fps_crop_face" / "anna"
    names = sorted(folder.rglob("*.jpg"))
    assert list(segment.frames_jpeg) == [name.read_bytes() for name in names]  # the right size: not encoded again
    small = [small_of_jpeg(jpeg, 95) for jpeg in segment.frames_jpeg]
    assert segment.small_jpeg == {level: tuple(row[level] for row in small) for level in (2, 4)}
    texts = np.loadtxt(tmp_path / "old" / "split_video_25fps_deepspeech" / "anna_deepspeech.txt", dtype=np.float32)
    np.testing.assert_array_equal(segment.features["deepspeech"], texts[:63])
    assert np.isnan(segment.landmarks_T68x2).all()
    np.testing.assert_array_equal(segment.matrix_T33, np.tile(np.eye(3, dtype=np.float32), (63, 1, 1)))
    assert dataset.info["extractors"] == {"deepspeech": {"dim": 29, "model_sha256": None}}
    assert dataset.info["counts"]["segments"] == 1
    assert "NaN" in dataset.info["imported"]["landmarks"]


@pytest.mark.parametrize(
    ("clips", "expected"),
    [
        ([*range(33)], [(0, 153), (153, 144)]),
        ([*range(6), *range(7, 14)], [(0, 54), (63, 63)]),
        ([0, 1, *range(3, 9)], [(27, 54)]),
    ],
)
def test_a_gap_between_clips_ends_a_segment(
    tmp_path: Path, clips: Sequence[int], expected: list[tuple[int, int]]
) -> None:
    path = publish(tmp_path / "old", {"anna": clips}, size=(26, 20))
    dataset = import_lawdnet(path, tmp_path / "new", BuildConfig(features=("deepspeech",), where=(), crop_width=20))
    segments = stored(dataset)
    assert [(segment.start_frame, segment.num_frames) for segment in segments] == expected
    texts = np.loadtxt(tmp_path / "old" / "split_video_25fps_deepspeech" / "anna_deepspeech.txt", dtype=np.float32)
    for segment in segments:
        wanted = texts[segment.start_frame : segment.start_frame + segment.num_frames]
        np.testing.assert_array_equal(segment.features["deepspeech"], wanted)


@pytest.mark.parametrize("size", [(832, 640), (133, 102)])  # LawDNet's own, and one of DINet's
def test_crops_of_another_size_are_resized(tmp_path: Path, size: tuple[int, int]) -> None:
    path = publish(tmp_path / "old", {"anna": range(6)}, size=size)
    [segment] = stored(import_lawdnet(path, tmp_path / "new", CONFIG))
    picture = cv2.imdecode(np.frombuffer(segment.frames_jpeg[20], np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    assert picture.shape == (416, 320, 3)
    np.testing.assert_allclose(picture[200, 80], (40, 40, 90), atol=3)
    np.testing.assert_allclose(picture[200, 240], 255, atol=3)
    # the corner of the first pixel stays where it is, and so does that of the last
    x, y, _ = segment.matrix_T33[20] @ (size[1] - 0.5, size[0] - 0.5, 1)
    np.testing.assert_allclose((x, y), (319.5, 415.5), rtol=1e-6)
    np.testing.assert_allclose(segment.matrix_T33[20] @ (-0.5, -0.5, 1), (-0.5, -0.5, 1), atol=1e-6)


def test_what_is_missing_is_a_row_with_a_reason_and_spares_the_others(tmp_path: Path) -> None:
    names = ["good", "nojpg", "cut", "short", "nine", "nan", "square", "form", "empty", "dim", "numbers", "huge"]
    path = publish(tmp_path / "old", {name: range(5 if name == "short" else 6) for name in names}, size=(26, 20))
    crops = tmp_path / "old" / "split_video_25fps_crop_face"
    (crops / "nojpg" / "000003" / "000030.jpg").unlink()
    jpg = crops / "cut" / "000000" / "000004.jpg"
    jpg.write_bytes(jpg.read_bytes()[:-2])
    cv2.imwrite(str(crops / "square" / "000002" / "000020.jpg"), np.zeros((20, 20, 3), np.uint8))
    change(path, "nine", frame_path_list=["a/b/000000.jpg"] * 9)
    change(path, "nan", deep_speech_list=[[float("nan")] * 29] * 9)
    change(path, "form", frame_path_list=None)
    (crops / "empty" / "000000" / "000000.jpg").write_bytes(b"")
    change(path, "dim", deep_speech_list=[[0.0] * 28] * 9)
    change(path, "numbers", frame_path_list=[*range(9)], frame_name_list=None, deep_speech_list=5)
    change(path, "huge", frame_path_list=[f"{10**30 + k}.jpg" for k in range(9)])
    config = BuildConfig(features=("deepspeech",), where=(), crop_width=20, val_fraction=0)
    dataset = import_lawdnet(path, tmp_path / "new", config)
    found = {name: (row["status"], row["reason"]) for name, row in rows(dataset).items()}
    assert found == {
        "good": ("accepted", ""),
        "nojpg": ("rejected", "unreadable"),
        "cut": ("rejected", "damaged"),
        "short": ("rejected", "too_short"),
        "nine": ("rejected", "damaged"),
        "nan": ("rejected", "damaged"),
        "square": ("rejected", "damaged"),
        "form": ("rejected", "damaged"),
        "empty": ("rejected", "damaged"),
        "dim": ("rejected", "feature_length"),
        "numbers": ("rejected", "unreadable"),
        "huge": ("rejected", "damaged"),
    }
    assert "000030.jpg" in rows(dataset)["nojpg"]["detail"]
    assert [path.name for path in (tmp_path / "new" / SEGMENTS).iterdir()] == [
        f"{rows(dataset)['good']['video_id']}.parquet"
    ]


def test_rows_missing_in_the_json_come_from_the_text_file(tmp_path: Path) -> None:
    path = publish(tmp_path / "old", {"anna": range(6), "ben": range(6), "cleo": range(6)}, size=(26, 20))
    change(path, "anna", deep_speech_list=None)
    change(path, "ben", deep_speech_list=[[0.0] * 29] * 7)
    change(path, "cleo", deep_speech_list=None)
    texts = tmp_path / "old" / "split_video_25fps_deepspeech"
    (texts / "cleo_deepspeech.txt").unlink()
    dataset = import_lawdnet(path, tmp_path / "new", BuildConfig(features=("deepspeech",), where=(), crop_width=20))
    assert {name: row["reason"] for name, row in rows(dataset).items()} == {
        "anna": "",
        "ben": "",
        "cleo": "feature_length",
    }
    for segment in stored(dataset):
        name = segment.video_id.rpartition("-")[0]
        wanted = np.loadtxt(texts / f"{name}_deepspeech.txt", dtype=np.float32)[:54]
        np.testing.assert_array_equal(segment.features["deepspeech"], wanted)


def test_the_same_content_under_two_names_counts_once(tmp_path: Path) -> None:
    path = publish(tmp_path / "old", {"anna": range(6), "emma": range(6)}, size=(26, 20))  # one seed, so twins
    config = BuildConfig(features=("deepspeech",), where=(), crop_width=20)
    for _ in range(2):
        dataset = import_lawdnet(path, tmp_path / "new", config)
        found = rows(dataset)
        assert (found["anna"]["status"], found["emma"]["reason"]) == ("accepted", "duplicate")
        assert "anna" in found["emma"]["detail"]
        assert len(dataset.segments()) == 1


def test_a_video_with_features_of_another_width_is_rejected(tmp_path: Path) -> None:
    path = publish(tmp_path / "old", {"anna": range(6), "ben": range(6)}, size=(26, 20))
    content = json.loads(path.read_text())
    for clip in content["ben"]["clip_data_list"]:
        clip["deep_speech_list"] = [row[:28] for row in clip["deep_speech_list"]]
    path.write_text(json.dumps(content))
    dataset = import_lawdnet(path, tmp_path / "new", BuildConfig(features=("deepspeech",), where=(), crop_width=20))
    assert rows(dataset)["ben"]["detail"] == "feature rows of 28 numbers, other videos have 29"
    assert dataset.feature_dim("deepspeech") == 29


@pytest.mark.parametrize("author", ["C:\\data\\training_data", "/home/someone/asserts/training_data"])
def test_the_authors_paths_lead_to_the_crops_beside_the_json(tmp_path: Path, author: str) -> None:
    path = publish(tmp_path / "old", {"anna": range(6)}, size=(26, 20), author=author)
    config = BuildConfig(features=("deepspeech",), where=(), crop_width=20)
    assert len(import_lawdnet(path, tmp_path / "new", config).segments()) == 1
    shutil.move(tmp_path / "old" / "split_video_25fps_crop_face", tmp_path / "moved")
    gone = import_lawdnet(path, tmp_path / "gone", config)
    assert rows(gone)["anna"]["reason"] == "unreadable"
    assert "--root" in rows(gone)["anna"]["detail"]
    roots = [(f"{author}/split_video_25fps_crop_face", str(tmp_path / "moved"))]
    assert len(import_lawdnet(path, tmp_path / "found", config, roots=roots).segments()) == 1


def test_a_video_is_known_by_its_source_where_that_is_there(tmp_path: Path) -> None:
    path = publish(tmp_path / "old", {"anna": range(6), "ben": range(6)}, size=(26, 20))
    source = tmp_path / "old" / "split_video_25fps" / "anna.mp4"
    source.parent.mkdir()
    source.write_bytes(b"film")
    config = BuildConfig(features=("deepspeech",), where=(), crop_width=20)
    found = rows(import_lawdnet(path, tmp_path / "new", config))
    assert found["anna"]["sha256"] == sha("film")
    assert (found["anna"]["path"], found["anna"]["bytes"]) == ("split_video_25fps/anna.mp4", 4)
    assert found["ben"]["path"] == "split_video_25fps_crop_face/ben"


def test_started_again_it_takes_over_what_is_done_and_tries_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = publish(tmp_path / "old", {"anna": range(6), "ben": range(7)}, size=(26, 20))
    config = BuildConfig(features=("deepspeech",), where=(), crop_width=20, val_fraction=0.5)
    hidden = tmp_path / "old" / "split_video_25fps_crop_face" / "ben" / "000000" / "000000.jpg"
    hidden.rename(tmp_path / "hidden.jpg")
    assert len(import_lawdnet(path, tmp_path / "new", config).segments()) == 1
    (tmp_path / "hidden.jpg").rename(hidden)
    read: list[Path] = []
    read_crop = lawdnet2024.read_crop

    def counted(path: Path, config: BuildConfig) -> Any:
        read.append(path)
        return read_crop(path, config)

    monkeypatch.setattr(lawdnet2024, "read_crop", counted)
    again = import_lawdnet(path, tmp_path / "new", config)
    assert {name.parents[1].name for name in read} == {"ben"}
    fresh = import_lawdnet(path, tmp_path / "fresh", config)
    assert (again.root / INDEX).read_bytes() == (fresh.root / INDEX).read_bytes()
    assert set(again.index()["split"].to_pylist()) == {"train", "val"}
    assert again.videos().drop(["seconds"]).equals(fresh.videos().drop(["seconds"]))
    for row in again.videos().to_pylist():
        [split] = {ref.split for ref in again.segments() if ref.video_id == row["video_id"]}
        table = read_segment(again.root / SEGMENTS / f"{row['video_id']}.parquet", 0, ["split"])
        assert table["split"].to_pylist() == [split] == [row["split"]]


def test_started_again_it_gives_levels_to_what_an_earlier_version_imported(tmp_path: Path) -> None:
    path = publish(tmp_path / "old", {"anna": range(6), "ben": range(6)}, size=(104, 80))
    config = BuildConfig(features=("deepspeech",), where=(), crop_width=80)
    fresh = import_lawdnet(path, tmp_path / "new", config)
    before = [segment.small_jpeg for segment in stored(fresh)]
    file = Path(fresh.segments()[0].path)
    rewrite_segments(file, tmp_path / "without", lambda table: table.drop(["frames_jpeg_2"]))
    shutil.move(tmp_path / "without", file)
    again = import_lawdnet(path, tmp_path / "new", config)
    assert [segment.small_jpeg for segment in stored(again)] == before
    assert all(before)


def test_the_network_that_made_the_rows_is_stored(tmp_path: Path) -> None:
    path = publish(tmp_path / "old", {"anna": range(6)}, size=(26, 20))
    model = tmp_path / "output_graph.pb"
    model.write_bytes(b"graph")
    config = BuildConfig(features=("deepspeech",), where=(), crop_width=20)
    dataset = import_lawdnet(path, tmp_path / "new", config, model=model)
    assert dataset.info["extractors"] == {"deepspeech": {"dim": 29, "model_sha256": sha("graph")}}


def test_other_settings_need_another_folder(tmp_path: Path) -> None:
    path = publish(tmp_path / "old", {"anna": range(6)}, size=(26, 20))
    import_lawdnet(path, tmp_path / "new", CONFIG)
    with pytest.raises(ValueError, match="another import"):
        import_lawdnet(path, tmp_path / "new", BuildConfig(features=("deepspeech",), crop_width=340))
    with pytest.raises(ValueError, match="never changed"):
        import_lawdnet(path, tmp_path / "old" / "split_video_25fps_crop_face" / "new", CONFIG)
    assert not (tmp_path / "old" / VIDEOS).exists()


@pytest.mark.parametrize("name", ["../anna", "a/b", "..", "", "a\0b", "\udc80"])
def test_a_name_that_is_no_folder_harms_nothing(tmp_path: Path, name: str) -> None:
    path = publish(tmp_path / "old", {"anna": range(6)}, size=(26, 20))
    content = json.loads(path.read_text())
    content[name] = {
        "clip_data_list": [{**clip, "frame_name_list": None} for clip in content["anna"]["clip_data_list"]]
    }
    content[name]["clip_data_list"][0]["frame_path_list"] = [f"x\0/{k:06d}.jpg" for k in range(9)]
    path.write_text(json.dumps(content))
    dataset = import_lawdnet(path, tmp_path / "new", BuildConfig(features=("deepspeech",), where=(), crop_width=20))
    assert sorted(dataset.videos()["status"].to_pylist()) == ["accepted", "rejected"]


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_a_json_is_read_in_pieces_of_any_size(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lawdnet2024, "READ_CHARS", size)
    content = {'quo"te \\': {"a": [1.5, -2e-3]}, "ü": [], "x": {"{": "}"}}
    for indent in (None, 2):
        path = tmp_path / f"{indent}.json"
        path.write_text(json.dumps(content, indent=indent, ensure_ascii=indent is None), encoding="utf8")
        assert dict(read_videos(path)) == content


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a"', '{"a": ', '{"a": {}', '{"a": {} "b"', "{" * 5, '{"a":' + "[" * 99999]
)
def test_what_is_no_training_json_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"x\.json: not a training JSON") as error:
        list(read_videos(path))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_an_empty_json_gives_an_empty_dataset(tmp_path: Path) -> None:
    path = tmp_path / "training_json.json"
    path.write_text("{}")
    dataset = import_lawdnet(path, tmp_path / "new", CONFIG)
    assert not dataset.segments()
