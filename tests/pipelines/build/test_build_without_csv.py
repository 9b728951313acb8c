"""Videos without a CSV: faces are found by the real networks, where ../shared has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lawdnet.data.config import BuildConfig
from lawdnet.data.manifest import Dataset
from lawdnet.data.schema import read_segment, table_to_segment
from lawdnet.types import UInt8
from lawdnet.video import VideoWriter
from pipelines.build.build import build
from tests.support.drawn_clip import copy
from tests.support.in_process import map_in_process
from tests.support.stored import read_records

WEIGHTS = Path(__file__).resolve().parents[3].parent / "shared" / "weights"
needs_network = pytest.mark.skipif(
    not (WEIGHTS / "face_landmarker.task").exists(), reason=f"needs {WEIGHTS}/face_landmarker.task"
)
CONFIG = BuildConfig(crop_width=80, val_fraction=0.0)


def film(path: Path, frames_THW3: UInt8) -> None:
    sound = np.random.default_rng(0).normal(0, 0.1, len(frames_THW3) * 640).astype(np.float32)
    height, width = frames_THW3.shape[1:3]
    with VideoWriter(path, height=height, width=width, audio=sound, sample_rate=16000) as writer:
        for frame_HW3 in frames_THW3:
            writer.write(frame_HW3)


def built(source: Path, root: Path) -> Dataset:
    return build(source, root, CONFIG, weights_dir=WEIGHTS, execute=map_in_process)


@needs_network
def test_a_video_alone_is_enough_and_one_without_a_face_has_its_reason(drawn: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    copy(drawn, source / "anna.mp4", csv=False)
    noise = np.random.default_rng(1).integers(0, 256, (80, 128, 160, 3), np.uint8)
    film(source / "noise.mp4", noise)
    dataset = built(source, tmp_path / "dataset")
    records = {record.path: record for record in read_records(tmp_path / "dataset").values()}
    anna, nobody = records["anna.mp4"], records["noise.mp4"]
    assert (anna.status, anna.landmarks, anna.segments) == ("accepted", "mediapipe", 1)
    assert anna.landmarks_sha256.startswith("64184e22")
    assert (nobody.status, nobody.reason) == ("rejected", "no_face")
    assert dataset.info["counts"]["accepted"] == 1


@needs_network
def test_crops_are_those_of_the_true_points(drawn: Path, tmp_path: Path) -> None:
    """Matrices from found points are near those from the CSV, which has the drawn head's true ones."""
    matrices = []
    for name, with_csv in (("found", False), ("true", True)):
        source = tmp_path / name
        copy(drawn, source / "anna.mp4", csv=with_csv)
        (ref,) = built(source, tmp_path / f"{name}-dataset").segments()
        matrices.append(table_to_segment(read_segment(Path(ref.path), ref.row_group)).matrix_T33)
    corners = np.array([[44, 60, 1], [84, 60, 1], [64, 100, 1]], np.float32).T
    found, true = ((matrix_T33 @ corners)[:, :2] for matrix_T33 in matrices)
    assert np.abs(found - true).mean() < 0.04 * CONFIG.crop_width


def test_without_the_network_the_row_says_how_to_get_it(
    drawn: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "source"
    copy(drawn, source / "anna.mp4", csv=False)
    build(source, tmp_path / "dataset", CONFIG, execute=map_in_process)
    (record,) = read_records(tmp_path / "dataset").values()
    assert (record.status, record.reason) == ("rejected", "no_landmarks")
    for text in (record.detail, *[line for line in caplog.messages if "will be rejected" in line]):
        assert "lawdnet weights face_landmarker" in text
        assert "\n" not in text
