"""A clap lands on one row of the stored segment: the picture that shows it and the features that hear it."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from lawdnet.data.config import BuildConfig
from lawdnet.landmarks.openface import write_csv
from lawdnet.tasks.inputs import list_inputs
from pipelines.build.task import Order, VideoBuilder
from tests.support.malformed import content
from tests.support.media import Media

CLAP = 0.8


NTSC_FILM, NTSC = Fraction(24000, 1001), Fraction(30000, 1001)


@pytest.mark.parametrize(
    ("rate", "late"),
    [(Fraction(25), 0.0), (Fraction(25), -0.12), (NTSC_FILM, 0.12), (NTSC, -0.12), (Fraction(60), 0.12)],
    ids=str,
)
def test_a_clap_is_one_row_of_the_segment(drawn: Path, tmp_path: Path, rate: Fraction, late: float) -> None:
    pictures, _, points = content(drawn)
    times = [index / rate for index in range(int(3 * rate))]
    shown = [min(round(25 * time), len(pictures) - 1) for time in times]
    lit = [index for index, time in enumerate(times) if abs(time - CLAP) <= 0.0209]
    clap = float(sum(times[index] for index in lit) / len(lit))
    film = [pictures[index].copy() for index in shown]
    for index in lit:
        x, y = points[shown[index]].mean(0).astype(int)
        film[index][y - 9 : y + 9, x - 9 : x + 9] = 255
    seconds = np.arange(3 * 48_000) / 48_000 + late
    path = Media(tmp_path).write(
        "clap.mp4",
        times=[time + Fraction(max(0.0, -late)) for time in times],
        pictures=film,
        codec="libx264",
        pix_fmt="yuv420p",
        sound=(0.8 * np.cos(6283 * (seconds - clap)) * np.exp(-(((seconds - clap) / 0.004) ** 2)))[None],
        sound_codec="aac",
        sound_rate=48_000,
        sound_start=max(0.0, late),
    )
    write_csv(path.with_suffix(".csv"), points[shown], float(rate))
    config = BuildConfig(crop_width=80, val_fraction=0.0, landmarks="openface")
    builder = VideoBuilder(Order(config, str(tmp_path / "dataset"), "a run"))
    row = json.loads(builder(list_inputs(path)[0] | {"to_complete": False})["row"])
    assert (row["status"], row["segments"]) == ("accepted", 1), row["detail"]

    (stored,) = (tmp_path / "dataset" / "segments").glob("*.parquet")
    segment = pq.read_table(stored).to_pylist()[0]
    power_T = (10 ** (4 * np.array(segment["features_mel"]))).sum(1)
    crops = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) for data in segment["frames_jpeg"]]
    light_T = np.array([(crop > 240).mean() for crop in crops])
    assert (
        len(light_T) == len(power_T) == len(segment["landmarks"]) == len(segment["matrices"]) == segment["num_frames"]
    )
    seen = np.flatnonzero(light_T > light_T.max() / 2) + segment["start_frame"]
    heard = float(power_T @ np.arange(len(power_T)) / power_T.sum()) + segment["start_frame"]
    assert seen.mean() == pytest.approx(25 * clap, abs=0.53)
    assert heard == pytest.approx(25 * clap, abs=0.5)
    assert seen.mean() == pytest.approx(heard, abs=0.6)
