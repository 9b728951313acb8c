import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lawdnet.audio.io import load_audio
from lawdnet.data.config import BuildConfig
from lawdnet.data.export import export_segments, select_rows
from lawdnet.data.importer import import_lawdnet
from lawdnet.data.manifest import Dataset, write_index, write_videos
from lawdnet.data.merge import merge
from lawdnet.data.rules import parse_rule
from lawdnet.data.schema import with_columns
from lawdnet.data.selection import choose, write_selection
from lawdnet.types import SAMPLE_RATE, SAMPLES_PER_FRAME
from lawdnet.video import decode, probe, write_video
from tests.support.transfer_datasets import drop, make_dataset, publish

FRAMES = 120


def film(path: Path) -> Path:
    """120 frames of 25 fps; the audio is a tone that begins with frame 70."""
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(FRAMES * SAMPLES_PER_FRAME) / SAMPLE_RATE).astype(np.float32)
    wave[: 70 * SAMPLES_PER_FRAME] = 0
    write_video(path, (np.full((32, 32, 3), k, np.uint8) for k in range(FRAMES)), wave)
    return path


def dataset_of(tmp_path: Path, *, with_source: bool = True) -> Dataset:
    """Segments 0 … 54 and 60 … 114 of one video, and of a second one that was never there."""
    path = film(tmp_path / "films" / "x.mp4")
    content = {"x.mp4": "x", "y.mp4": "y"}
    dataset = make_dataset(tmp_path / "data", content, source=str(tmp_path / "films"), shade=120)
    rows = dataset.videos().to_pylist()
    write_videos(dataset.root, [{**row, "bytes": path.stat().st_size} for row in rows])
    return Dataset(dataset.root)


def onset(path: Path) -> float:
    """Frame at which the audio begins."""
    wave = load_audio(path, num_frames=probe(path).num_frames)
    return int(np.flatnonzero(np.abs(wave) > 0.1)[0]) / SAMPLES_PER_FRAME


def test_a_segment_has_its_frames_and_its_own_audio(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path)
    x = dataset.segments()[0].video_id
    exported = export_segments(dataset, tmp_path / "out", videos=[x])
    assert exported.paths == [tmp_path / "out" / f"{x}-0000.mp4", tmp_path / "out" / f"{x}-0001.mp4"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [path.name for path in exported.paths]
    assert exported.silent == {}
    frames = [picture for _, picture in decode(exported.paths[1])]
    assert len(frames) == 54
    np.testing.assert_allclose(np.stack(frames), 120, atol=3)
    assert frames[0].shape == (26, 20, 3)
    assert onset(exported.paths[1]) == pytest.approx(70 - 60, abs=0.3)
    assert np.abs(load_audio(exported.paths[0])).max() < 0.05


def test_without_the_source_it_is_silent_and_said_why(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path)
    exported = export_segments(dataset, tmp_path / "out")
    assert len(exported.paths) == 4
    assert list(exported.silent) == ["y.mp4"]
    assert "No such file" in exported.silent["y.mp4"]
    assert probe(exported.paths[2]).sample_rate is None
    assert probe(exported.paths[0]).sample_rate == SAMPLE_RATE


def test_another_file_in_the_sources_place_gives_no_audio(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path)
    with (tmp_path / "films" / "x.mp4").open("ab") as file:
        file.write(b"more")
    exported = export_segments(dataset, tmp_path / "out")
    assert "has changed since" in exported.silent["x.mp4"]


def test_only_what_is_wanted(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path)
    ids = [ref.segment_id for ref in dataset.segments()]
    x, y = ids[0].removesuffix("-0000"), ids[2].removesuffix("-0000")
    drop(dataset.root, y, "sharpness>=4")
    index = dataset.index()

    def names(**wanted: list[str]) -> list[str]:
        rules = [parse_rule(text) for text in wanted.pop("rules", [])]
        table = select_rows(index, wanted.get("videos", []), wanted.get("segments", []), rules)
        return table["segment_id"].to_pylist()

    assert names() == ids[:2]
    assert names(segments=[ids[3]]) == [ids[3]]  # asked for by name, though a rule left it out
    assert names(segments=[ids[1], ids[0]]) == ids[:2]
    assert names(videos=[x], rules=["start_frame>0"]) == [ids[1]]
    assert names(videos=[y]) == []
    with pytest.raises(ValueError, match="unknown video id 'nobody'"):
        names(videos=["nobody"])
    with pytest.raises(ValueError, match="no segment to export"):
        export_segments(dataset, tmp_path / "out", rules=[parse_rule("sharpness>=9")])


def test_it_never_writes_into_the_dataset_or_the_sources(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path)
    for out in (dataset.root / "clips", tmp_path / "films", tmp_path / "films" / "clips"):
        with pytest.raises(ValueError, match="never changed"):
            export_segments(dataset, out)


def test_a_selection_and_a_merge_still_know_where_the_audio_is(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path)
    view = write_selection(choose(dataset, [parse_rule("start_frame>0")]), tmp_path / "view")
    make_dataset(tmp_path / "other", {"z.mp4": "z"})
    merge([view.root, tmp_path / "other"], tmp_path / "all")
    for root in (view.root, tmp_path / "all"):
        x = Dataset(root).segments()[0].video_id
        exported = export_segments(Dataset(root), tmp_path / f"out {root.name}", videos=[x])
        assert exported.silent == {}
        assert onset(exported.paths[-1]) == pytest.approx(10, abs=0.3)
    for root, out in ((view.root, "films/clips"), (view.root, "data/clips"), (tmp_path / "all", "films/clips")):
        with pytest.raises(ValueError, match="never changed"):
            export_segments(Dataset(root), tmp_path / out)


def test_an_imported_dataset_has_the_audio_of_the_published_source(tmp_path: Path) -> None:
    path = publish(tmp_path / "old", {"anna": [0, 1, *range(5, 12)]}, size=(26, 20))
    config = BuildConfig(features=("deepspeech",), where=(), crop_width=20)
    silent = export_segments(import_lawdnet(path, tmp_path / "new", config), tmp_path / "out")
    assert "only crops" in silent.silent["split_video_25fps_crop_face/anna"]
    film(tmp_path / "old" / "split_video_25fps" / "anna.mp4")
    shutil.rmtree(tmp_path / "new")
    exported = export_segments(import_lawdnet(path, tmp_path / "new", config), tmp_path / "out")
    assert exported.silent == {}
    assert onset(exported.paths[0]) == pytest.approx(70 - 45, abs=0.3)


@pytest.mark.parametrize("name", ["../evil", "/evil"])
def test_an_id_that_is_no_name_of_a_file_is_refused(tmp_path: Path, name: str) -> None:
    make_dataset(tmp_path / "data", {"x.mp4": "x"}, ids={"x.mp4": "fine"})
    index = Dataset(tmp_path / "data").index()
    write_index(tmp_path / "data", with_columns(index, {"segment_id": pa.array([name, name])}))
    with pytest.raises(ValueError, match="cannot be a file name"):
        export_segments(Dataset(tmp_path / "data"), tmp_path / "out")
