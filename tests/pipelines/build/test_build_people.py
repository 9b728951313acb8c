"""Several people, cuts, and sync scores: whose segments a build stores, and which of them it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from lawdnet.audio.io import load_audio
from lawdnet.audio.mel import Mel
from lawdnet.data.config import BuildConfig
from lawdnet.data.manifest import Dataset, index_schema
from lawdnet.data.speakers import RULE, keep_speakers
from lawdnet.landmarks.openface import POINTS, read_csv, write_csv
from lawdnet.models.saved import META, STATE
from lawdnet.models.syncnet import SyncNet, SyncNetConfig
from lawdnet.storage import write_json
from lawdnet.types import FPS
from lawdnet.video import decode, write_video
from pipelines.build.build import build
from tests.support.drawn_clip import copy
from tests.support.in_process import map_in_process

CONFIG = BuildConfig(crop_width=80, val_fraction=0.0)


def in_process(source: Path, root: Path, config: BuildConfig, **options: Any) -> Dataset:
    return build(source, root, config, execute=map_in_process, **options)


@pytest.fixture(scope="module")
def couple(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn head at full size on the left and at two thirds on the right, in one CSV."""
    import cv2

    folder = tmp_path_factory.mktemp("couple")
    points = read_csv(drawn.with_suffix(".csv")).points_T68x2
    pictures = []
    for _, left in decode(drawn):
        height, width = left.shape[:2]
        right = np.full_like(left, 40)
        small = cv2.resize(left, (width * 2 // 3, height * 2 // 3), interpolation=cv2.INTER_AREA)
        right[: small.shape[0], : small.shape[1]] = small
        pictures.append(np.concatenate([left, right], 1))
    write_video(folder / "couple.mp4", pictures, load_audio(drawn))
    write_csv(folder / "left.csv", points, FPS)
    write_csv(folder / "right.csv", points * 2 / 3 + np.float32([width, 0]), FPS)
    head, *rows = (folder / "left.csv").read_text().splitlines()
    others = (folder / "right.csv").read_text().splitlines()[1:]
    face_id = [name.strip() for name in head.split(",")].index("face_id")

    def of_face(row: str, number: int) -> str:
        cells = row.split(",")
        cells[face_id] = f" {number}"
        return ",".join(cells)

    both = [of_face(row, number) for pair in zip(rows, others, strict=True) for number, row in enumerate(pair)]
    (folder / "couple.csv").write_text("\n".join([head, *both, ""]))
    for name in ("left.csv", "right.csv"):
        (folder / name).unlink()
    assert len(POINTS) == 136
    return folder


def faces(dataset: Dataset) -> list[tuple[int, float]]:
    """(track, face size) of the stored segments."""
    rows = dataset.index().to_pylist()
    return [(row["track"], row["score_face_px"]) for row in rows]


def test_face_picks_by_size(couple: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def built(face: str) -> list[tuple[int, float]]:
        config = BuildConfig(crop_width=80, val_fraction=0.0, face=face)
        return faces(in_process(couple, tmp_path / face, config))

    ((_, large),), ((_, small),) = built("largest"), built("1")
    assert small == pytest.approx(large * 2 / 3, rel=0.02)
    assert [size for _, size in sorted(built("all"))] == pytest.approx([large, small])


def test_a_cut_ends_a_segment_on_its_frame(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shots of one person, 75 pictures each; the second is brighter and mirrored."""
    pictures = [picture for _, picture in decode(drawn)]
    other = [np.ascontiguousarray(255 - picture // 2) for picture in pictures]
    wave = load_audio(drawn)
    source = tmp_path / "source"
    source.mkdir()
    write_video(source / "cut.mp4", pictures + other, np.concatenate([wave, wave]))
    points = read_csv(drawn.with_suffix(".csv")).points_T68x2
    write_csv(source / "cut.csv", np.concatenate([points, points]), FPS)
    places = [
        (row["track"], row["start_frame"], row["num_frames"])
        for row in in_process(source, tmp_path / "cut", CONFIG).index().to_pylist()
    ]
    assert places == [(0, 0, 72), (1, 75, 72)]
    as_one = BuildConfig(crop_width=80, val_fraction=0.0, shot_threshold=0.0)
    whole = in_process(source, tmp_path / "whole", as_one).index().to_pylist()
    assert [(row["track"], row["start_frame"], row["num_frames"]) for row in whole] == [(0, 0, 144)]


@pytest.fixture(scope="module")
def syncnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained sync network as a run leaves it."""
    torch.manual_seed(0)
    root: Path = tmp_path_factory.mktemp("run")
    folder = root / "syncnet" / "epoch_0001"
    folder.mkdir(parents=True)
    config = SyncNetConfig(audio_dim=Mel().feature_dim, base_channels=4, face_px=64, head="cosine")
    torch.save({"networks": {"syncnet": SyncNet(config).state_dict()}}, folder / STATE)
    meta = {"kind": "syncnet", "stage": "syncnet", "stage_index": 0, "epoch": 1, "sync_feature": "mel", "mouth_px": 64}
    meta |= {"syncnet": vars(config) | {}, "state_bytes": (folder / STATE).stat().st_size}
    write_json(folder / META, meta)
    return root


def test_sync_scores_are_added_without_decoding(
    drawn: Path, syncnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    copy(drawn, source / "a.mp4")
    whole = in_process(source, tmp_path / "whole", CONFIG, sync=syncnet)
    first = in_process(source, tmp_path / "added", CONFIG)
    assert "score_sync_offset" not in first.index().column_names
    monkeypatch.setattr("lawdnet.data.segments.decode_ticks", lambda *a, **k: pytest.fail("a picture was decoded"))
    added = in_process(source, tmp_path / "added", CONFIG, sync=syncnet)
    assert added.index().equals(whole.index())
    assert {"score_sync_offset", "score_sync_confidence", "score_sync_distance"} <= set(added.index().column_names)
    kept = in_process(source, tmp_path / "added", CONFIG)
    assert kept.index().equals(whole.index()), "a build without the network keeps its scores"
    files = [next((d.root / "segments").iterdir()).read_bytes() for d in (whole, added)]
    assert files[0] == files[1]


def test_sync_scores_follow_the_feature_that_is_heard(
    drawn: Path, syncnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same network over other rows of `mel` gives other scores, which are measured anew."""
    copy(drawn, tmp_path / "source" / "a.mp4")
    calls: list[int] = []

    def score(self: Any, frames: Any, landmarks: Any, features: Any, audio: Any) -> dict[str, float]:
        calls.append(features["mel"].shape[1])
        return {"sync_offset": 0.0, "sync_confidence": float(calls[-1]), "sync_distance": 1.0}

    monkeypatch.setattr("lawdnet.evaluation.sync.SyncScorer.__call__", score)
    averaged = BuildConfig(crop_width=80, val_fraction=0.0, options={"mel": {"hops": "mean"}})
    in_process(tmp_path / "source", tmp_path / "dataset", CONFIG, sync=syncnet)
    index = in_process(tmp_path / "source", tmp_path / "dataset", averaged, sync=syncnet).index()
    assert calls == [320, 80]
    assert index["score_sync_confidence"].to_pylist() == [80.0]


def test_the_speaker_is_kept(couple: Path, syncnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = BuildConfig(crop_width=80, val_fraction=0.0, face="sync")
    with pytest.raises(ValueError, match="needs a sync network; name a run or file with --sync"):
        build(couple, tmp_path / "dataset", config)
    rows = in_process(couple, tmp_path / "dataset", config, sync=syncnet).index().to_pylist()
    assert len(rows) == 2
    (kept,) = [row for row in rows if not row["dropped"]]
    assert kept["score_sync_confidence"] == max(row["score_sync_confidence"] for row in rows)
    assert {row["dropped"] for row in rows} == {"", RULE}


def test_only_those_who_overlap_compete() -> None:
    def row(video: str, start: int, confidence: float | None, dropped: str = "") -> dict[str, Any]:
        values = {"segment_id": "", "video_id": video, "index": 0, "track": 0, "start_frame": start, "split": "train"}
        values |= {"num_frames": 54, "path": "", "row_group": 0, "dropped": dropped}
        return values | {"score_sync_confidence": confidence}

    rows = [
        row("a", 0, 1.0),  # loses to the next
        row("a", 53, 2.0),
        row("a", 107, 0.5),  # beside it
        row("b", 0, 0.1),  # another video
        row("b", 10, None),  # never measured
        row("b", 20, 9.0, "face_px>=100"),  # out already: pushes nobody out
    ]
    index, step = keep_speakers(pa.Table.from_pylist(rows, schema=index_schema(["sync_confidence"])))
    assert index["dropped"].to_pylist() == [RULE, "", "", "", RULE, "face_px>=100"]
    assert (step.dropped, step.left, step.not_measured) == (2, 3, 1)
