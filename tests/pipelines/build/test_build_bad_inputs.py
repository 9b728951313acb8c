"""A folder of everything that goes wrong: each input is a row with a reason, and the good ones do not notice."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lawdnet.audio.io import load_audio
from lawdnet.data.config import BuildConfig
from lawdnet.data.manifest import Dataset
from lawdnet.data.records import VideoRecord
from lawdnet.data.selection import check_files
from lawdnet.landmarks.openface import read_csv, write_csv
from lawdnet.tasks.inputs import list_inputs
from lawdnet.tasks.task import Progress
from lawdnet.types import FPS
from lawdnet.video import decode, write_video
from pipelines.build.build import build
from tests.support.drawn_clip import copy

CONFIG = BuildConfig(crop_width=80, val_fraction=0.0)
GOOD_NAMES = ["good.mp4", "with space.mp4", "quo'te\"s.mp4", "说话的人.mp4", "-dash.mp4", "%d.mp4", "deep/er/also.MP4"]


def rewrite(drawn: Path, to: Path, *, frames: int | None = None, audio_seconds: float | None = 3.0) -> None:
    """The clip with fewer pictures, or with shorter or no sound."""
    wave = None if audio_seconds is None else load_audio(drawn)[: round(audio_seconds * 16_000)]
    pictures = [picture for _, picture in decode(drawn)][:frames]
    write_video(to, pictures, wave)
    write_csv(to.with_suffix(".csv"), read_csv(drawn.with_suffix(".csv")).points_T68x2[:frames], FPS)


def move_points(drawn: Path, to: Path, change: Callable[[np.ndarray], None]) -> None:
    copy(drawn, to)
    points = read_csv(drawn.with_suffix(".csv")).points_T68x2.copy()
    change(points)
    write_csv(to.with_suffix(".csv"), points, FPS)


def fail_rows(drawn: Path, to: Path) -> None:
    """The tracker lost the face in every second stretch of ten frames."""
    copy(drawn, to)
    head, *rows = to.with_suffix(".csv").read_text().splitlines()
    place = [name.strip() for name in head.split(",")].index("success")
    for number, row in enumerate(rows):
        cells = row.split(",")
        if number // 10 % 2:
            cells[place] = " 0"
        rows[number] = ",".join(cells)
    to.with_suffix(".csv").write_text("\n".join([head, *rows]))


def grow(points: np.ndarray) -> None:
    """The face doubles in size within the clip, and stays in the picture."""
    centre = points.mean((1, 2), keepdims=True) * 0 + (64, 80)
    scale = np.linspace(0.45, 1.0, len(points))[:, None, None]
    points[:] = (points - centre) * scale + centre


def leave(points: np.ndarray) -> None:
    points[20:, :, 0] += 60


BAD: dict[str, tuple[str, Callable[[Path, Path], object]]] = {
    "text.mp4": ("not_a_video", lambda drawn, to: to.write_text("not a video at all\n" * 100)),
    "empty.mp4": ("empty_file", lambda drawn, to: to.write_bytes(b"")),
    "cut.mp4": (
        "damaged",
        lambda drawn, to: copy(drawn, to).write_bytes(drawn.read_bytes()[: drawn.stat().st_size // 2]),
    ),
    "silent.mp4": ("no_audio", lambda drawn, to: rewrite(drawn, to, audio_seconds=None)),
    "short_sound.mp4": ("audio_too_short", lambda drawn, to: rewrite(drawn, to, audio_seconds=1.5)),
    "no_csv.mp4": ("no_landmarks", lambda drawn, to: copy(drawn, to, csv=False)),
    "rubbish_csv.mp4": (
        "bad_landmarks",
        lambda drawn, to: copy(drawn, to).with_suffix(".csv").write_bytes(b"\x00\xff" * 50),
    ),
    "other_csv.mp4": ("landmark_count", lambda drawn, to: cut_rows(drawn, to)),
    "lost.mp4": ("no_face", fail_rows),
    "nan.mp4": ("no_face", lambda drawn, to: move_points(drawn, to, lambda points: points.fill(np.nan))),
    "leaves.mp4": ("face_leaves_picture", lambda drawn, to: move_points(drawn, to, leave)),
    "grows.mp4": ("threshold", lambda drawn, to: move_points(drawn, to, grow)),
    "53_frames.mp4": ("too_short", lambda drawn, to: rewrite(drawn, to, frames=53)),
    "dangling.mp4": ("unreadable", lambda drawn, to: to.symlink_to(to.with_name("unmounted"))),
    "zeros.mp4": ("no_face", lambda drawn, to: move_points(drawn, to, lambda points: points.fill(0))),
    "twin/of good.mp4": ("duplicate", lambda drawn, to: copy_twin(drawn, to)),
}


def copy_twin(drawn: Path, to: Path) -> None:
    to.write_bytes((to.parent.parent / "good.mp4").read_bytes())
    to.with_suffix(".csv").write_bytes(drawn.with_suffix(".csv").read_bytes())


def cut_rows(drawn: Path, to: Path) -> None:
    copy(drawn, to)
    write_csv(to.with_suffix(".csv"), read_csv(drawn.with_suffix(".csv")).points_T68x2[:40], FPS)


def digest(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def source(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad inputs")
    for name in GOOD_NAMES:
        copy(drawn, folder / name)
    for name, (_, make) in BAD.items():
        (folder / name).parent.mkdir(exist_ok=True)
        make(drawn, folder / name)
    (folder / "notes.txt").write_text("no input at all")
    (folder / ".hidden.mp4").write_text("neither")
    return folder


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Dataset:
    before = digest(source)
    dataset = build(source, tmp_path_factory.mktemp("out") / "dataset", CONFIG)
    assert digest(source) == before, "a build never touches its source"
    return dataset


def test_every_input_is_one_row_with_its_reason(built: Dataset) -> None:
    rows = {row["path"]: row for row in built.videos().to_pylist()}
    wanted = {name: ("rejected", reason) for name, (reason, _) in BAD.items()}
    wanted |= dict.fromkeys(GOOD_NAMES, ("accepted", ""))
    assert {name: (row["status"], row["reason"]) for name, row in rows.items()} == wanted
    assert all(row["detail"] for row in rows.values())
    assert "40 landmark rows for 75 frames" in rows["other_csv.mp4"]["detail"]


def test_the_counts_add_up(built: Dataset) -> None:
    counts = built.info["counts"]
    assert (counts["videos"], counts["accepted"], counts["rejected"], counts["failed"]) == (
        len(BAD) + len(GOOD_NAMES), len(GOOD_NAMES), len(BAD), 0,
    )  # fmt: skip
    assert counts["segments"] == len(built.segments()) == len(GOOD_NAMES)
    assert sum(counts["reasons"].values()) == len(BAD)


def test_the_good_come_out_as_without_the_bad(built: Dataset, drawn: Path, tmp_path: Path, ray_session: None) -> None:
    clean = tmp_path / "clean"
    for name in GOOD_NAMES:
        copy(drawn, clean / name)
    alone = build(clean, tmp_path / "dataset", CONFIG)
    kept = {name: value for name, value in digest(built.root / "segments").items() if not name.startswith("grows-")}
    assert digest(alone.root / "segments") == kept
    assert alone.hash == built.hash


def test_a_build_goes_on_where_it_was_killed(built: Dataset, source: Path, tmp_path: Path, ray_session: None) -> None:
    """As a kill leaves it: some outcomes missing, an output without an outcome, half a file, no dataset.json."""
    import shutil

    root = tmp_path / "dataset"
    shutil.copytree(built.root, root)
    whole = digest(root / "segments")
    (root / "dataset.json").unlink()
    (root / "videos.parquet").unlink()
    items = list_inputs(source)
    redo = {item.path for item in items[::3]}
    for item in items[::3]:
        (root / ".build" / f"{item.key}.json").unlink()
    sorted((root / "segments").iterdir())[0].unlink()
    (root / "segments" / ".half.parquet.12345678.tmp").write_bytes(b"half")
    done_again: set[str] = set()

    def note(progress: Progress[VideoRecord]) -> None:
        if not progress.is_stored:
            done_again.add(progress.record.path)

    again = build(source, root, CONFIG, on_progress=note)
    assert redo <= done_again
    again_for_good_reason = redo | {"dangling.mp4"}  # what cannot be opened is tried every time
    assert len(done_again - again_for_good_reason) <= 1, "what was finished is not computed again"
    assert {k: v for k, v in digest(root / "segments").items() if k.endswith(".parquet")} == whole
    columns = [c for c in built.videos().column_names if not c.startswith("seconds")]
    assert again.videos().select(columns).equals(built.videos().select(columns))
    assert again.info == built.info


def test_another_configuration_or_source_is_refused(built: Dataset, source: Path, tmp_path: Path, drawn: Path) -> None:
    with pytest.raises(ValueError, match=r"other settings \(max_gap 5 → 4\)"):
        build(source, built.root, BuildConfig(crop_width=80, val_fraction=0.0, max_gap=4))
    copy(drawn, tmp_path / "x.mp4")
    with pytest.raises(ValueError, match="was built from"):
        build(tmp_path, built.root, CONFIG)


def test_output_inside_the_source_is_refused(drawn: Path, tmp_path: Path) -> None:
    copy(drawn, tmp_path / "a.mp4")
    for root in (tmp_path, tmp_path / "dataset"):
        with pytest.raises(ValueError, match="lies inside the source"):
            build(tmp_path, root, CONFIG)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "a.mp4"]


def test_odd_rows_and_names_do_not_cost_a_video(drawn: Path, tmp_path: Path, ray_session: None) -> None:
    """A success that is all zeros is a gap to bridge; a name that is no UTF-8 is shown with escapes."""
    source = tmp_path / "source"
    move_points(drawn, source / "zero_row.mp4", lambda points: points[30].fill(0))
    name = os.fsdecode(b"\xff\xfe.mp4")
    copy(drawn, source / "plain.mp4").rename(source / name)
    (source / "plain.csv").rename((source / name).with_suffix(".csv"))
    rows = build(source, tmp_path / "dataset", CONFIG).videos().to_pylist()
    assert {row["path"]: row["status"] for row in rows} == {"zero_row.mp4": "accepted", "\\xff\\xfe.mp4": "accepted"}


def test_a_missing_segment_file_is_named(built: Dataset, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "dataset"
    shutil.copytree(built.root, root)
    sorted((root / "segments").iterdir())[0].unlink()
    with pytest.raises(ValueError, match=f"1 of {len(GOOD_NAMES)} segment files are missing.*again"):
        check_files(Dataset(root))


def test_no_input_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        list_inputs(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"no video here.*\.mp4"):
        list_inputs(tmp_path)


def test_one_accepted_video_is_always_held_out(drawn: Path, tmp_path: Path, ray_session: None) -> None:
    """Also when chance would hold out none, or only an input that is then rejected."""
    source, root = tmp_path / "source", tmp_path / "dataset"
    for name in "abcd":
        copy(drawn, source / f"{name}.mp4")
    (source / "empty.mp4").write_bytes(b"")
    config = BuildConfig(crop_width=80, val_fraction=1e-9, near_duplicates="keep")
    dataset = build(source, root, config)
    (held_out,) = dataset.segments("val")
    assert len(dataset.segments("train")) == 3
    splits = {row["video_id"]: row["split"] for row in dataset.videos().to_pylist()}
    assert splits[held_out.video_id] == "val"
    before = digest(root / "segments")
    assert build(source, root, config).info == dataset.info
    assert digest(root / "segments") == before


def test_a_csv_that_comes_later_or_changes_is_noticed(drawn: Path, tmp_path: Path, ray_session: None) -> None:
    source, root = tmp_path / "source", tmp_path / "dataset"
    path = copy(drawn, source / "a.mp4", csv=False)
    assert build(source, root, CONFIG).info["counts"]["reasons"] == {"no_landmarks": 1}
    copy(drawn, path)
    first = build(source, root, CONFIG)
    assert first.info["counts"]["accepted"] == 1
    move_points(drawn, path, lambda points: points.__iadd__(1))
    assert build(source, root, CONFIG).hash != first.hash


def test_a_link_is_taken_under_its_own_name(drawn: Path, tmp_path: Path, ray_session: None) -> None:
    store = copy(drawn, tmp_path / "store" / "x.mp4", csv=False)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "anna.mp4").symlink_to(store)
    (tmp_path / "links" / "anna.csv").symlink_to(drawn.with_suffix(".csv"))
    dataset = build(tmp_path / "links", tmp_path / "dataset", CONFIG)
    assert [ref.video_id.partition("-")[0] for ref in dataset.segments()] == ["anna"]


def test_a_dataset_that_no_build_made_is_left_alone(drawn: Path, tmp_path: Path) -> None:
    copy(drawn, tmp_path / "source" / "a.mp4")
    kept = tmp_path / "merged" / "segments" / "merged.parquet"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"x")
    with pytest.raises(ValueError, match="holds a dataset that was not made by a build"):
        build(tmp_path / "source", tmp_path / "merged", CONFIG)
    assert kept.exists()


def test_a_stray_file_is_no_segment(built: Dataset) -> None:
    stray = built.root / "segments" / "zz-stray.parquet"
    stray.write_bytes(next(iter((built.root / "segments").glob("good-*.parquet"))).read_bytes())
    try:
        assert len(built.segments()) == built.info["counts"]["segments"]
    finally:
        stray.unlink()


def test_parquet_is_plain(built: Dataset) -> None:
    """Any Parquet reader takes it: no types of Ray's or ours."""
    path = sorted((built.root / "segments").glob("*.parquet"))[0]
    assert not pq.read_schema(path).metadata or b"ray" not in b"".join(pq.read_schema(path).metadata)
    assert pq.ParquetFile(path).metadata.row_group(0).num_rows == 1
