"""Videos beside each other in the report of an evaluation."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np

from lawdnet.report.evaluation import MOST_VIDEOS, SideBySide, side_by_side
from lawdnet.video import decode


def test_shorter_videos_end_in_grey_and_small_ones_are_enlarged() -> None:
    white, black = np.full((3, 52, 40, 3), 255, np.uint8), np.zeros((2, 52, 40, 3), np.uint8)
    shown = side_by_side([white, black])
    assert shown.shape == (3, 208, 320, 3)
    assert shown[2, :, :160].min() == 255
    assert shown[1, :, 160:].max() == 0
    assert (shown[2, :, 160:] == 128).all()


def test_videos_are_inside_the_page(tmp_path: Path) -> None:
    videos = SideBySide()
    for segment in range(MOST_VIDEOS + 3):
        videos.add(f"s{segment}", {"truth": np.full((2, 208, 160, 3), 200, np.uint8)})
    assert len(videos.videos) == MOST_VIDEOS
    kind, data = videos.videos["s0"].split(",")
    assert kind == "data:video/mp4;base64"
    (tmp_path / "v.mp4").write_bytes(base64.b64decode(data))
    frames = [frame for _, frame in decode(tmp_path / "v.mp4")]
    assert len(frames) == 2
    assert abs(int(frames[0].mean()) - 200) < 4
