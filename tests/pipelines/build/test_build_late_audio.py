"""Videos of which only a part has audio: that part is kept, at its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lawdnet.data.config import BuildConfig
from lawdnet.data.export import export_segments
from lawdnet.data.manifest import Dataset
from lawdnet.data.schema import read_segment, table_to_segment
from lawdnet.types import Segment
from pipelines.build.build import build
from tests.support.in_process import map_in_process
from tests.support.malformed import film

CONFIG = BuildConfig(crop_width=80, val_fraction=0.0)
AVERAGED = BuildConfig(crop_width=80, val_fraction=0.0, options={"mel": {"hops": "mean"}})
FIRST, MISSING = 15, 15 * 640
"""Frames, and samples, that lack audio at one end of the clip of 75 frames; a segment takes 54."""


def built(source: Path, root: Path, config: BuildConfig = CONFIG) -> Dataset:
    return build(source, root, config, execute=map_in_process)


def make(drawn: Path, to: Path, scale: Callable[[np.ndarray], np.ndarray], start: float = 0.0) -> Path:
    """A folder with the clip, its audio changed without losses."""
    to.mkdir(parents=True)
    film(drawn, to / "a.mkv", scale=scale, audio_start=start, audio_codec="pcm_f32le")
    return to


def only_segment(dataset: Dataset) -> Segment:
    (ref,) = dataset.segments()
    return table_to_segment(read_segment(Path(ref.path), ref.row_group))


def silenced(part: slice) -> Callable[[np.ndarray], np.ndarray]:
    def change(wave: np.ndarray) -> np.ndarray:
        wave[part] = 0
        return wave

    return change


LATE: dict[str, Any] = {"scale": lambda wave: wave[MISSING:], "start": FIRST / 25}
EARLY: dict[str, Any] = {"scale": lambda wave: wave[:-MISSING]}


@pytest.mark.parametrize(
    ("options", "quiet", "first"),
    [(LATE, slice(None, MISSING), FIRST), (EARLY, slice(-MISSING, None), 0)],
    ids=["late", "early"],
)
def test_the_part_with_audio_has_the_rows_that_it_has_in_the_whole(
    drawn: Path, tmp_path: Path, options: dict[str, Any], quiet: slice, first: int
) -> None:
    dataset = built(make(drawn, tmp_path / "partial", **options), tmp_path / "dataset")
    (row,) = dataset.videos().to_pylist()
    assert (row["status"], row["frames"], row["frames_used"]) == ("accepted", 75, 54)
    assert row["detail"] == "54 of 75 frames used; 15 without audio"
    part = only_segment(dataset)
    assert (part.start_frame, part.num_frames) == (first, 54)

    exported = export_segments(dataset, tmp_path / "exported")
    assert exported.silent == {}, "with its audio, although `load_audio` refuses the file"

    whole = only_segment(built(make(drawn, tmp_path / "silent", silenced(quiet)), tmp_path / "other"))
    assert (whole.start_frame, whole.num_frames) == (0, 72)
    inside = slice(first, first + 54)
    np.testing.assert_array_equal(part.features["mel"], whole.features["mel"][inside])
    np.testing.assert_array_equal(part.matrix_T33, whole.matrix_T33[inside])
    np.testing.assert_array_equal(part.landmarks_T68x2, whole.landmarks_T68x2[inside])
    assert part.frames_jpeg == whole.frames_jpeg[inside]


@pytest.mark.parametrize("options", [LATE, EARLY], ids=["late", "early"])
def test_it_is_completed_as_it_would_be_built(drawn: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    source = make(drawn, tmp_path / "source", **options)
    at_once = only_segment(built(source, tmp_path / "at once", AVERAGED))
    stacked = only_segment(built(source, tmp_path / "dataset"))
    completed = only_segment(built(source, tmp_path / "dataset", AVERAGED))
    assert stacked.features["mel"].shape == (54, 320)
    np.testing.assert_array_equal(completed.features["mel"], at_once.features["mel"])
    assert completed.frames_jpeg == stacked.frames_jpeg


def test_too_little_audio_for_a_segment_is_rejected_with_numbers(drawn: Path, tmp_path: Path) -> None:
    source = make(drawn, tmp_path / "source", lambda wave: wave[:24_000], 1.2)
    (row,) = built(source, tmp_path / "dataset").videos().to_pylist()
    assert (row["status"], row["reason"]) == ("rejected", "audio_too_short")
    assert row["detail"] == (
        "the audio begins 1.20 s after the first frame and ends 0.30 s early; 37 frames have audio, 54 are needed"
    )


def test_a_face_that_is_there_only_while_there_is_no_audio(drawn: Path, tmp_path: Path) -> None:
    """60 frames have audio and 65 a face, but only 50 have both."""
    source = make(drawn, tmp_path / "source", **LATE)
    csv = source / "a.csv"
    head, *lines = csv.read_text().splitlines()
    success = [name.strip() for name in head.split(",")].index("success")
    lost = [",".join(" 0" if at == success else cell for at, cell in enumerate(x.split(","))) for x in lines[65:]]
    csv.write_text("\n".join([head, *lines[:65], *lost]))
    (row,) = built(source, tmp_path / "dataset").videos().to_pylist()
    assert row["reason"] == "audio_too_short"
    assert row["detail"] == (
        "at most 50 consecutive usable frames, 54 are needed; 0 of 75 frames used; 15 without audio; 10 without a face"
    )
