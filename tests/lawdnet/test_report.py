import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from lawdnet.data.config import BuildConfig
from lawdnet.data.manifest import MANIFEST, SEGMENTS, Dataset, manifest, write_json, write_videos
from lawdnet.data.schema import VIDEO_SCHEMA, write_segments
from lawdnet.data.segments import encode_jpeg
from lawdnet.report import (
    MAX_POINTS,
    QuickstartContent,
    chart,
    inspect_report,
    nice_ticks,
    quickstart_report,
    smooth,
)
from lawdnet.types import Segment


class Page(HTMLParser):
    """Addresses, curves and text of a page; fails on tags that do not match."""

    VOID = frozenset({"meta", "img", "br", "line", "path"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.curves: list[str] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        self.curves += [value or "" for name, value in attrs if name == "d"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def metrics() -> list[dict[str, Any]]:
    steps = [
        {"kind": "step", "epoch": e, "step": s, "total": 1 / (1 + e + s / 50)}
        for e in range(3)
        for s in range(0, 50, 10)
    ]
    return [*steps, {"kind": "epoch", "epoch": 1, "total": 0.5}]


def content(folder: Path, **changes: Any) -> QuickstartContent:
    picture = folder / "samples" / "epoch 1.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(picture), np.full((4, 4, 3), 200, np.uint8))
    fields: dict[str, Any] = {
        "correlation": 0.9312,
        "untrained": 0.0517,
        "ceiling": 0.9987,
        "openings": {"truth": [0.1, 0.2, 0.3], "generated": [0.1, 0.2, 0.25], "untrained": [0.2, 0.2]},
        "metrics": {"frame_64": metrics()},
        "videos": {"truth": folder / "videos" / "100% true #1.mp4"},
        "pictures": {"frame_64": picture},
        "seconds": {"build": 12.0, "train <frame_64>": 200.0},
        "facts": {"machine": "2 cores"},
    }
    return QuickstartContent(**fields | changes)


def test_the_quickstart_report_is_one_file_with_its_figures(tmp_path: Path) -> None:
    quickstart_report(tmp_path / "site" / "report.html", content(tmp_path))
    page = Page((tmp_path / "site" / "report.html").read_text(encoding="utf8"))
    for figure in ("0.931", "0.052", "0.999", "12.0 s", "3 min 20 s", "3 min 32 s", "train <frame_64>", "2 cores"):
        assert figure in page.text
    assert page.addresses[0] == "../videos/100%25%20true%20%231.mp4"
    assert all(address.startswith("data:image/") for address in page.addresses[1:])
    assert len(page.curves) == 3 + 2  # three openings; the loss and its mean
    assert all(re.fullmatch(r"M[\d. ]+(L[\d. ]+)*", curve) for curve in page.curves)
    assert [p.name for p in (tmp_path / "site").iterdir()] == ["report.html"]


def test_nothing_is_fetched_from_elsewhere(tmp_path: Path) -> None:
    quickstart_report(tmp_path / "report.html", content(tmp_path))
    html = (tmp_path / "report.html").read_text(encoding="utf8")
    assert not re.search(r"https?://|@import|<link", html)


def test_a_report_without_optional_parts_leaves_them_out(tmp_path: Path) -> None:
    bare = content(tmp_path, pictures={}, videos={}, seconds={}, facts={}, metrics={"syncnet": []}, openings={})
    quickstart_report(tmp_path / "report.html", bare)
    page = Page((tmp_path / "report.html").read_text(encoding="utf8"))
    assert "Training" not in page.text
    assert page.addresses == []
    assert "0.931" in page.text


def test_a_missing_picture_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.png: no such file"):
        quickstart_report(tmp_path / "report.html", content(tmp_path, pictures={"x": tmp_path / "gone.png"}))
    assert not (tmp_path / "report.html").exists()


def points(path: str) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", path)]


def test_a_chart_puts_values_where_its_ticks_say() -> None:
    drawn = chart({"a": [0, 5, 10]}, [0, 1, 2], x_label="s")
    places = {tick.text: tick.place for tick in drawn.y_ticks}
    across = {tick.text: tick.place for tick in drawn.x_ticks}
    assert points(drawn.paths["a"])[0] == (across["0"], places["0"])
    assert points(drawn.paths["a"])[2] == (across["2"], places["10"])
    assert places["10"] < places["0"]  # up is up


def test_a_chart_leaves_gaps_where_there_is_nothing() -> None:
    drawn = chart({"a": [1, math.nan, 3, 4], "b": [2], "c": []}, [0, 1, 2, 3], x_label="s")
    assert [part.count("L") for part in drawn.paths["a"].split("M")[1:]] == [0, 1]
    assert len(points(drawn.paths["b"])) == 1
    assert drawn.paths["c"] == ""


def test_long_curves_are_averaged_down() -> None:
    values = np.sin(np.arange(100_001) / 5000)
    drawn = points(chart({"a": values.tolist()}, np.arange(len(values)), x_label="s").paths["a"])
    assert MAX_POINTS // 2 < len(drawn) <= MAX_POINTS


@pytest.mark.parametrize("values", [[], [math.nan], [0.0, 0.0], [-3.0, -3.0], [1e-9, 2e-9], [1e12, -1e12]])
def test_a_chart_of_odd_values_is_finite(values: list[float]) -> None:
    drawn = chart({"a": values}, range(len(values)), x_label="s", floor=None)
    assert all(math.isfinite(tick.place) for tick in [*drawn.x_ticks, *drawn.y_ticks])
    assert all(map(math.isfinite, np.ravel(points(drawn.paths["a"]))))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 0.93, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-3, 7, [-4, -2, 0, 2, 4, 6, 8])],
)
def test_ticks_are_round_and_enclose(low: float, high: float, expected: list[float]) -> None:
    assert nice_ticks(low, high) == expected


def test_smooth_is_a_mean_that_keeps_level_and_length() -> None:
    values = np.array([1.0, 3.0] * 50)
    assert smooth(np.full(7, 2.0)).tolist() == [2.0] * 7
    assert len(smooth(values)) == 100
    assert smooth(values, 0.2)[10:90] == pytest.approx(np.full(80, 2.0), abs=0.06)
    assert smooth(np.array([1.0, math.nan, 3.0]), 1)[1] == 2.0


def segment(video_id: str, index: int, grey: int) -> Segment:
    jpeg = encode_jpeg(np.full((104, 80, 3), grey, np.uint8), 90)
    return Segment(
        segment_id=f"{video_id}-{index:04d}",
        video_id=video_id,
        index=index,
        start_frame=index * 54,
        split="train",
        frames_jpeg=(jpeg,) * 54,
        landmarks_T68x2=np.zeros((54, 68, 2), np.float32),
        matrix_T33=np.repeat(np.eye(3, dtype=np.float32)[None], 54, 0),
        features={"mel": np.zeros((54, 320), np.float32)},
        scores={"face_px": 100.0},
    )


def make_dataset(root: Path) -> Dataset:
    empty: dict[str, Any] = dict.fromkeys(VIDEO_SCHEMA.names)
    zero = {"segments": 0, "frames": 0, "frames_used": 0}
    rows = [
        empty | {"video_id": "anna-1", "path": "anna.mp4", "status": "accepted", "split": "train"}
        | {"segments": 2, "frames": 120, "frames_used": 108},
        empty | zero | {"video_id": "bob-2", "path": "<bob>.mp4", "status": "rejected"}
        | {"reason": "no_face", "detail": "no face in 80 frames", "frames": 80},
        empty | zero | {"video_id": "carl-3", "path": "carl.mp4", "status": "failed", "detail": "killed 3 times"},
    ]  # fmt: skip
    (root / SEGMENTS).mkdir(parents=True)
    write_segments(root / SEGMENTS / "anna-1.parquet", iter([segment("anna-1", 0, 60), segment("anna-1", 1, 200)]))
    write_videos(root, rows)
    write_json(root / MANIFEST, manifest(BuildConfig(crop_width=80), {"mel": {"dim": 320}}, rows, "abc123"))
    return Dataset(root)


def test_the_dataset_report_shows_crops_and_what_was_refused(tmp_path: Path) -> None:
    inspect_report(make_dataset(tmp_path / "people"), tmp_path / "sheet.html")
    page = Page((tmp_path / "sheet.html").read_text(encoding="utf8"))
    for text in (
        "Dataset people",
        "anna-1",
        "108 of 120 frames",
        "<bob>.mp4",
        "no face in 80 frames",
        "killed 3 times",
    ):
        assert text in page.text
    assert "33.3 %" in page.text  # videos accepted
    assert "54.0 %" in page.text  # frames used
    assert len(page.addresses) == 8
    assert len(set(page.addresses)) == 2  # four from each segment
    assert page.addresses[:4] == [page.addresses[0]] * 4


def test_a_dataset_where_everything_was_refused_has_a_report(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "people")
    rows = [row for row in dataset.videos().to_pylist() if row["status"] != "accepted"]
    write_videos(dataset.root, rows)
    (dataset.root / SEGMENTS / "anna-1.parquet").unlink()
    write_json(dataset.root / MANIFEST, manifest(BuildConfig(), {"mel": {"dim": 320}}, rows, "abc123"))
    inspect_report(Dataset(dataset.root), tmp_path / "sheet.html")
    assert "killed 3 times" in Page((tmp_path / "sheet.html").read_text(encoding="utf8")).text
