import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from lawdnet.data.manifest import MANIFEST, Dataset
from lawdnet.data.rules import parse_rules
from lawdnet.data.selection import choose, write_selection
from lawdnet.report import QuickstartContent, inspect_report, quickstart_report
from lawdnet.report.charts import MAX_POINTS, chart, histogram, nice_ticks, smooth
from lawdnet.report.dataset import source_folder, video_order
from lawdnet.storage import write_json
from tests.support.small_datasets import Scores, make_dataset


class Page(HTMLParser):
    """Addresses, curves and text of a page; fails on tags that do not match."""

    VOID = frozenset({"meta", "img", "br", "line", "path", "rect"})

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
        "images": {"frame_64": picture},
        "seconds": {"build": 12.0, "train <frame_64>": 200.0},
        "facts": {"machine": "2 cores"},
    }
    return QuickstartContent(**fields | changes)


def test_the_quickstart_report_is_one_file_with_its_metrics(tmp_path: Path) -> None:
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
    bare = content(tmp_path, images={}, videos={}, seconds={}, facts={}, metrics={"syncnet": []}, openings={})
    quickstart_report(tmp_path / "report.html", bare)
    page = Page((tmp_path / "report.html").read_text(encoding="utf8"))
    assert "Training" not in page.text
    assert page.addresses == []
    assert "0.931" in page.text


def test_a_missing_image_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.png: no such file"):
        quickstart_report(tmp_path / "report.html", content(tmp_path, images={"x": tmp_path / "gone.png"}))
    assert not (tmp_path / "report.html").exists()


def points(path: str) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", path)]


def test_a_chart_puts_values_where_its_ticks_say() -> None:
    drawn = chart({"a": [0, 5, 10]}, [0, 1, 2], x_label="s")
    places = {tick.text: tick.position for tick in drawn.y_ticks}
    across = {tick.text: tick.position for tick in drawn.x_ticks}
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
    assert all(math.isfinite(tick.position) for tick in [*drawn.x_ticks, *drawn.y_ticks])
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


PEOPLE: dict[str, list[Scores]] = {
    "anna-1": [{"face_px": 100.0, "yaw": -5.0}, {"face_px": 100.0, "yaw": 5.0}],
    "bert-2": [{"face_px": 300.0, "yaw": 0.0}, {"face_px": 20.0, "yaw": None}],
}
REFUSED = [
    {"path": "<bob>.mp4", "reason": "no_face", "detail": "no face in 80 frames", "frames": 80},
    {"path": "carl.mp4", "status": "failed", "detail": "killed 3 times"},
]


def page_of(dataset: Dataset, out: Path, **options: Any) -> Page:
    inspect_report(dataset, out, **options)
    return Page(out.read_text(encoding="utf8"))


def test_the_dataset_report_shows_crops_and_what_was_refused(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "people", PEOPLE, rejected=REFUSED)
    page = page_of(dataset, tmp_path / "sheet.html")
    for text in (
        "Dataset people",
        "anna-1",
        "108 of 120 frames",
        "<bob>.mp4",
        "no face in 80 frames",
        "killed 3 times",
    ):
        assert text in page.text
    assert "50.0 %" in page.text  # videos accepted
    assert "67.5 %" in page.text  # frames used: 216 of 320
    assert len(page.addresses) == 16
    assert len(set(page.addresses[:8])) == 8, "eight places, spread over the video"


def test_the_dataset_report_shows_what_the_rules_left_out(tmp_path: Path) -> None:
    base = make_dataset(tmp_path / "people", PEOPLE, rules=["face_px>=50 and abs(yaw)<4"])
    page = page_of(base, tmp_path / "sheet.html")
    assert "face_px>=50 and abs(yaw)<4" in page.text
    assert "3 segments" in page.text
    assert len(page.addresses) == 3 + 8  # what fell, and the one that is left
    assert "20" in page.text
    assert "–" in page.text, "what was not measured has no number"
    html = (tmp_path / "sheet.html").read_text(encoding="utf8")
    assert html.count('class="limit"') == 3  # face_px at 50, yaw at ±4
    assert "anna-1" not in page.text, "nothing of it is left"


def test_a_selection_has_a_report_with_the_images_of_its_source(tmp_path: Path) -> None:
    base = make_dataset(tmp_path / "people", PEOPLE)
    view = write_selection(choose(base, parse_rules(["yaw>0"])), tmp_path / "view")
    page = page_of(view, tmp_path / "sheet.html")
    assert "selected from ../people" in page.text
    assert "1 of them not measured" in page.text
    assert len(page.addresses) == 3 + 8


@pytest.mark.parametrize(
    ("order", "first"), [("yaw", "anna-1"), ("-face_px", "bert-2"), ("face_px", "anna-1"), ("-num_frames", "anna-1")]
)
def test_videos_come_in_the_order_asked_for(tmp_path: Path, order: str, first: str) -> None:
    people: dict[str, list[Scores]] = {"anna-1": PEOPLE["anna-1"], "bert-2": PEOPLE["bert-2"][:1]}
    page = page_of(make_dataset(tmp_path / "people", people), tmp_path / "sheet.html", order=order, max_videos=1)
    others = set(people) - {first}
    assert first in page.text
    assert not any(other in page.text for other in others)
    assert "1 of 2" in page.text


def test_an_unknown_order_lists_the_choices(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "people", PEOPLE)
    with pytest.raises(ValueError, match="'size': choose from even, random, face_px, yaw, num_frames"):
        inspect_report(dataset, tmp_path / "sheet.html", order="size")
    segments = dataset.root / "segments" / "anna-1.parquet"
    segments.write_bytes(segments.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"anna-1\.parquet: damaged"):
        inspect_report(dataset, tmp_path / "sheet.html")
    segments.unlink()
    with pytest.raises(ValueError, match=r"anna-1\.parquet: missing"):
        inspect_report(dataset, tmp_path / "sheet.html")
    assert not (tmp_path / "sheet.html").exists()


def test_random_videos_are_the_same_every_time(tmp_path: Path) -> None:
    many: dict[str, list[Scores]] = {f"v{i:02d}": [{"yaw": 0.0}] for i in range(12)}
    index = make_dataset(tmp_path / "people", many).index()
    order = video_order(index, "random")
    assert order == video_order(index, "random") != video_order(index, "even")
    assert sorted(order) == video_order(index, "even") == sorted(many)


def test_offsets_have_a_verdict(tmp_path: Path) -> None:
    late: dict[str, list[Scores]] = {"a": [{"sync_offset": 3.0}] * 12 + [{"sync_offset": None}]}
    page = page_of(make_dataset(tmp_path / "people", late), tmp_path / "sheet.html")
    assert "the audio is 3 frames late" in page.text
    assert "1 not measured" in page.text


def test_refused_inputs_show_an_image_where_they_can_still_be_read(tmp_path: Path, media: Any) -> None:
    readable = media.write("seen.mkv", times=[i / 25 for i in range(5)])
    (readable.parent / "text.mp4").write_text("no video")
    gone = [{"path": name, "reason": "no_face", "detail": ""} for name in ("gone.mp4", readable.name, "text.mp4")]
    dataset = make_dataset(tmp_path / "people", {}, rejected=gone, source=str(readable.parent))
    assert len(page_of(dataset, tmp_path / "sheet.html").addresses) == 1
    view = tmp_path / "view"
    write_json(view / MANIFEST, dataset.info | {"source": "../people", "source_hash": dataset.hash})
    assert source_folder(Dataset(view)) == readable.parent
    write_json(view / MANIFEST, dataset.info | {"source": "s3://bucket/videos"})
    assert source_folder(Dataset(view)) is None


def test_a_dataset_where_everything_was_refused_has_a_report(tmp_path: Path) -> None:
    page = page_of(make_dataset(tmp_path / "people", {}, rejected=REFUSED), tmp_path / "sheet.html")
    assert "killed 3 times" in page.text
    assert page.addresses == []


def test_a_histogram_counts_every_value_once() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(0, 1, 997), [1e6, -1e6, math.nan]])
    kept = np.arange(1000) % 4 > 0
    drawn = histogram(values, kept, limits=[(0.0, "x>=0"), (5e6, "far")])
    kept_counts, fell_counts = zip(
        *(map(int, re.findall(r"(\d+) (?:kept|dropped)", bar.text)) for bar in drawn.bars), strict=True
    )
    assert (sum(kept_counts), sum(fell_counts)) == (drawn.kept, drawn.dropped) == (749, 250)
    assert drawn.not_measured == 1
    assert len(drawn.bars) > 10, "two far values must not press the others into one bar"
    assert [limit.text for limit in drawn.limits] == ["x>=0"]
    highest = max(bar.kept_height + bar.dropped_height for bar in drawn.bars)
    assert 0.8 * drawn.bottom < highest <= drawn.bottom


def test_whole_numbers_have_a_bar_each_in_the_middle_of_which_they_lie() -> None:
    drawn = histogram(np.array([-2.0, 0, 0, 3]), np.ones(4, bool), step=1)
    assert [bar.kept_height > 0 for bar in drawn.bars] == [True] * 3
    places = {tick.text: tick.position for tick in drawn.ticks}
    middle = drawn.bars[1].x + drawn.bars[1].width / 2
    assert middle == pytest.approx(places["0"], abs=1)


@pytest.mark.parametrize("values", [[], [math.nan], [5.0], [0.1, 0.1], [1e-30, 2e-30], [-1e30, 1e30]])
def test_a_histogram_of_odd_values_is_finite(values: list[float]) -> None:
    drawn = histogram(np.array(values), np.ones(len(values), bool))
    assert drawn.kept + drawn.not_measured == len(values)
    assert all(map(math.isfinite, [n for b in drawn.bars for n in (b.x, b.width, b.kept_height, b.dropped_height)]))
