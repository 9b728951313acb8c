"""The report of a dataset: its contents, its scores, what was dropped and why, with images of all of it.

Shape letter: R rows of the index.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lawdnet.conditions import Condition
from lawdnet.data.manifest import Dataset, Groups
from lawdnet.data.rules import SCORES, column_of, parse_rule, score_names
from lawdnet.data.schema import BUILD_STAGES, SCORE, VideoRow
from lawdnet.evaluation.sync import offset_histogram
from lawdnet.report.charts import Histogram, histogram
from lawdnet.report.page import write_page
from lawdnet.report.thumbnails import crops, first_frame
from lawdnet.storage import Location
from lawdnet.types import CLIP_FRAMES, FPS, Bool

CROPS_PER_VIDEO = 8
DROPPED_PER_RULE = 8
EXAMPLES = 3
"""Number of rejected inputs per reason that are shown with an image."""
MAX_VIDEOS = 50
MAX_REJECTED = 1000
ORDERS = ("even", "random")
LENGTH = "num_frames"
SEED = 0
STEPS = {LENGTH: CLIP_FRAMES, "sync_offset": 1}
"""Width of a histogram's bars for whole numbers."""
UNUSUAL_PERCENT = 3
"""A score is highlighted if it is among this percentage of the dataset's lowest or highest."""
MIN_USUAL = 20
"""Least number of segments to say what is usual."""

T = TypeVar("T")


@dataclass(frozen=True)
class Shown:
    """A segment's crops, and what is written under them."""

    crops: list[str]
    """`data:` URIs."""
    caption: str
    scores: list[tuple[str, str, bool]]
    """(name, value, whether it is unusual in this dataset)."""


class Sheets:
    """Makes contact sheets of a dataset, and highlights unusual scores."""

    def __init__(self, dataset: Dataset, kept: pa.Table) -> None:
        self.dataset = dataset
        self.names = score_names(kept)
        columns = {name: kept[SCORE + name].to_numpy().astype(np.float64) for name in self.names}
        ends = [UNUSUAL_PERCENT, 100 - UNUSUAL_PERCENT]
        self.usual = {
            name: tuple(np.nanpercentile(values, ends))
            for name, values in columns.items()
            if np.isfinite(values).sum() >= MIN_USUAL
        }

    def video(self, segments: pa.Table) -> list[Shown]:
        """Return crops spread evenly over a video's segments (rows of the index), grouped by segment."""
        rows = segments.to_pylist()
        ends = np.cumsum([row["num_frames"] for row in rows])
        positions = (2 * np.arange(CROPS_PER_VIDEO) + 1) * int(ends[-1]) // (2 * CROPS_PER_VIDEO)
        of = np.searchsorted(ends, positions, side="right")
        starts = ends - [row["num_frames"] for row in rows]
        return [self.segment(rows[i], (positions[of == i] - starts[i]).tolist()) for i in np.unique(of)]

    def segment(self, row: Mapping[str, Any], frames: Sequence[int]) -> Shown:
        """Return these frames of one segment (a row of the index)."""
        path, width = self.dataset.resolve(row["path"]), self.dataset.crop_width
        seconds = f"{row['start_frame'] / FPS:.1f} s + {row['num_frames'] / FPS:.1f} s"
        scores = [(name, *self._score(name, row[SCORE + name])) for name in self.names]
        return Shown(crops(path, row["row_group"], frames, width), seconds, scores)

    def _score(self, name: str, value: float | None) -> tuple[str, bool]:
        if value is None or not np.isfinite(value):
            return "–", False
        low, high = self.usual.get(name, (-np.inf, np.inf))
        return f"{round(value, 1 if abs(value) >= 10 else 3):g}", not low <= value <= high


def inspect_report(dataset: Dataset, out: Location, *, max_videos: int = MAX_VIDEOS, order: str = "even") -> None:
    """Write the report of a dataset.

    Args:
        out: the HTML file, local or in an object store; an existing one is replaced.
        max_videos: number of videos that are shown with images.
        order: which videos: `even` (spread over the list), `random`, or the name of a score: those with the lowest
            median first, or with `-` before the name, those with the highest.

    Raises:
        ValueError: the order is unknown, or a segment file is missing.
    """
    index = dataset.index()
    rows = dataset.video_rows()
    kept_R = np.asarray(pc.equal(index["dropped"], "").to_numpy(), np.bool_)
    kept = index.filter(pa.array(kept_R))
    known = set(pc.unique(kept["video_id"]).to_pylist())
    accepted = {row.video_id: row for row in rows if row.video_id in known and row.is_accepted}
    rejected = sorted((row for row in rows if not row.is_accepted), key=lambda row: -row.frames)
    names = [name for name in video_order(kept, order) if name in accepted]
    shown = _even(names, max_videos) if order == "even" else names[:max_videos]
    reasons = Counter(row.reason or row.status for row in rejected)
    funnel = dataset.info.get("funnel", [])
    rules = [step["rule"] for step in funnel if step["rule"]]
    drawn = _histograms(index, kept_R, rules)
    sheets, folder = Sheets(dataset, kept), source_folder(dataset)
    write_page(
        out,
        "dataset.html.j2",
        name=dataset.root.name,
        info=dataset.info,
        accepted=len(accepted),
        groups=Groups.of(rows),
        inputs=_bars(_inputs(rows)),
        funnel=funnel,
        histograms=drawn,
        any_dropped=any(histogram.dropped for _, _, histogram in drawn),
        any_limits=any(histogram.limits for _, _, histogram in drawn),
        verdict=offset_histogram(kept).verdict,
        unusual_percent=UNUSUAL_PERCENT if sheets.usual else 0,
        steps=_steps(rows),
        dropped=_dropped(rules, index, sheets),
        videos=[(accepted[name], sheets.video(kept.filter(pc.equal(kept["video_id"], name)))) for name in shown],
        order=_order_text(order),
        reasons=[(reason, count, _examples(folder, rejected, reason)) for reason, count in reasons.most_common()],
        rejected=rejected[:MAX_REJECTED],
        hidden=max(0, len(rejected) - MAX_REJECTED),
    )


def video_order(kept: pa.Table, order: str) -> list[str]:
    """Return the ids of videos in the given order (see `inspect_report`).

    Raises:
        ValueError: the order is unknown; the message lists the choices.
    """
    if order in ORDERS:
        names = pc.unique(kept["video_id"]).to_pylist()
        return random.Random(SEED).sample(names, len(names)) if order == "random" else names
    name = order.removeprefix("-")
    if name not in (scores := [*score_names(kept), LENGTH]):
        choices = ", ".join([*ORDERS, *scores])
        raise ValueError(f"order {order!r}: choose from {choices}, or -NAME for the highest first")
    column = _column(name)
    medians = kept.group_by("video_id").aggregate([(column, "approximate_median")])
    direction = "descending" if order.startswith("-") else "ascending"
    keys = [(f"{column}_approximate_median", direction), ("video_id", "ascending")]
    return list(medians.sort_by(keys)["video_id"].to_pylist())


def _order_text(order: str) -> str:
    if order in ORDERS:
        return "evenly chosen" if order == "even" else "chosen at random"
    return f"highest {order[1:]} first" if order.startswith("-") else f"lowest {order} first"


def _even(names: Sequence[T], most: int) -> list[T]:
    """Return at most `most` of the names, spread evenly."""
    count = min(most, len(names))
    return [names[(2 * i + 1) * len(names) // (2 * count)] for i in range(count)]


def _column(name: str) -> str:
    return name if name == LENGTH else SCORE + name


def _inputs(rows: Sequence[VideoRow]) -> list[tuple[str, int, int]]:
    """Return (what, number, total) from inputs to training data."""
    accepted = sum(row.is_accepted for row in rows)
    frames = sum(row.frames for row in rows)
    used = sum(row.frames_used for row in rows)
    counts = [("videos found", len(rows), len(rows)), ("videos accepted", accepted, len(rows))]
    return [*counts, ("frames read", frames, frames), ("frames in segments", used, frames)]


def _bars(counts: Iterable[tuple[str, int, int]]) -> list[tuple[str, int, float]]:
    return [(what, count, count / whole if whole else 0.0) for what, count, whole in counts]


def _steps(rows: Sequence[VideoRow]) -> list[tuple[str, float, float]]:
    """Return (build step, seconds of work, share of the longest)."""
    sums = {step: sum(row.step_seconds.get(step, 0.0) for row in rows) for step in BUILD_STAGES}
    longest = max(sums.values())
    return [(step, seconds, seconds / longest) for step, seconds in sums.items()] if longest > 0 else []


def conditions(rules: Iterable[str], scores: Sequence[str]) -> list[tuple[str, Condition]]:
    """Return (text of the rule, condition) of all rules; a text that is not a rule, such as "at most 8 per video", is
    ignored."""
    found = []
    for text in rules:
        try:
            found += [(text, condition) for condition in parse_rule(text, scores).conditions]
        except ValueError:
            continue
    return found


def _histograms(index: pa.Table, kept_R: Bool, rules: Sequence[str]) -> list[tuple[str, str, Histogram]]:
    """Return (name, meaning, histogram) of the length and of every score that was measured for any segment."""
    cuts: dict[str, list[tuple[float, str]]] = {}
    for text, condition in conditions(rules, score_names(index)):
        if isinstance(value := condition.value, float):
            values = {value, -value} if condition.is_absolute else {value}
            cuts.setdefault(condition.name, []).extend((value, text) for value in values)
    found = []
    for name in [LENGTH, *score_names(index)]:
        values_R = index[_column(name)].to_numpy().astype(np.float64)
        if np.isfinite(values_R).any():
            meaning = "length of the segments, frames" if name == LENGTH else SCORES.get(name, "")
            found.append((name, meaning, histogram(values_R, kept_R, limits=cuts.get(name, ()), step=STEPS.get(name))))
    return found


def _dropped(rules: Sequence[str], index: pa.Table, sheets: Sheets) -> list[tuple[str, int, list[Shown]]]:
    """Return (rule, number, segments) of what each rule dropped, spread over the values that it was compared with."""
    found = []
    for text in dict.fromkeys(rules):
        dropped = index.filter(pc.equal(index["dropped"], text))
        if not len(dropped):
            continue
        if parts := conditions([text], score_names(index)):
            dropped = dropped.sort_by(column_of(parts[0][1]))
        rows = dropped.take(pa.array(_even(range(len(dropped)), DROPPED_PER_RULE), pa.int64())).to_pylist()
        found.append((text, len(dropped), [sheets.segment(row, [row["num_frames"] // 2]) for row in rows]))
    return found


def _examples(root: Path | None, rejected: Sequence[VideoRow], reason: str) -> list[tuple[VideoRow, str | None]]:
    """Return (row, first frame if it can still be read) of a few inputs."""
    rows = [row for row in rejected if (row.reason or row.status) == reason][:EXAMPLES]
    return [(row, first_frame(root / row.path) if root else None) for row in rows]


def source_folder(dataset: Dataset) -> Path | None:
    """Return the folder of the videos that a dataset, or the one it was selected from, was built from; None if gone."""
    source = dataset.resolve(str(dataset.info.get("source", "")))
    if "://" in source or not dataset.info.get("source"):
        return None
    if "source_hash" not in dataset.info:
        folder = Path(source)
        return (folder if folder.is_dir() else folder.parent) if folder.exists() else None
    try:
        return source_folder(Dataset(Path(source)))
    except ValueError:
        return None
