"""A long CSV is read in blocks, and only the frames that are asked for are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lawdnet.landmarks import OpenFace, openface
from lawdnet.landmarks.openface import write_csv
from lawdnet.types import Rejected, RejectReason, Video

FRAMES = 400
POINTS = np.random.default_rng(0).uniform(10, 90, (FRAMES, 68, 2)).round(3).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(openface, "BLOCK_BYTES", 20_000)  # some 20 rows
    write_csv(tmp_path / "a.csv", POINTS, 25)
    return tmp_path / "a.mp4"


def video(path: Path, ticks: range) -> Video:
    shown_T = np.arange(ticks.start, ticks.stop, dtype=np.int32)
    size = {"height": 100, "width": 100, "fps": 25.0, "sample_rate": None}
    return Video(path=path, num_frames=len(ticks), num_source_frames=FRAMES, shown_T=shown_T, **size)  # type: ignore[arg-type]


@pytest.mark.parametrize("ticks", [range(FRAMES), range(30), range(150, 260), range(399, 400)])
def test_the_frames_of_a_part(path: Path, ticks: range) -> None:
    found = list(OpenFace().faces(video(path, ticks), ((tick, np.zeros((0, 0, 3), np.uint8)) for tick in ticks)))
    np.testing.assert_array_equal([face.points_68x2 for (face,) in found], POINTS[ticks.start : ticks.stop])


@pytest.mark.parametrize("ticks", [range(FRAMES), range(30)])
def test_what_is_wrong_elsewhere_is_wrong(path: Path, ticks: range) -> None:
    lines = path.with_suffix(".csv").read_text().splitlines()
    lines[301] = lines[301].rsplit(",", 3)[0]
    path.with_suffix(".csv").write_text("\n".join(lines))
    with pytest.raises(Rejected, match=r"Row #302: Expected 141 columns, got 138") as caught:
        OpenFace().faces(video(path, ticks), [])
    assert caught.value.reason == RejectReason.BAD_LANDMARKS


def test_a_number_that_comes_again_far_away(path: Path) -> None:
    with path.with_suffix(".csv").open("a") as file:
        file.write(path.with_suffix(".csv").read_text().splitlines()[3])
    with pytest.raises(Rejected, match="frame 3 is listed 2 times"):
        OpenFace().faces(video(path, range(100, 200)), [])
