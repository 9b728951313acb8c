"""Reports as single HTML files that open from disk: pictures are inside, curves are SVG, nothing is fetched."""

from __future__ import annotations

import base64
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from lawdnet import __version__
from lawdnet.data.manifest import Dataset, SegmentRef, atomic
from lawdnet.data.sampling import decode_jpeg
from lawdnet.data.schema import read_segment
from lawdnet.data.segments import encode_jpeg
from lawdnet.types import FPS

CHART_WIDTH, CHART_HEIGHT = 720, 220
CHART_LEFT, CHART_RIGHT, CHART_TOP, CHART_BOTTOM = 52, 12, 12, 34
MAX_POINTS = 1000
"""Points of a drawn curve; longer series are averaged down to it."""
CROPS_PER_VIDEO = 8
CROP_WIDTH = 96
MAX_VIDEOS = 100
"""Videos with pictures in a dataset's report; of more, every n-th."""
MAX_REJECTED = 1000


@dataclass(frozen=True, kw_only=True)
class QuickstartContent:
    """What `quickstart_report` shows."""

    correlation: float
    """Of the trained network's mouth with the truth (Pearson)."""
    untrained: float
    """The same for an untrained network."""
    ceiling: float
    """The same for the true video: what the measurement allows."""
    openings: Mapping[str, Sequence[float]]
    """Curves of the mouth's opening by name (truth first, then generated, then untrained), one value per frame."""
    metrics: Mapping[str, Sequence[Mapping[str, Any]]]
    """Stage → rows of its metrics.jsonl."""
    videos: Mapping[str, Path]
    """Caption → file, shown side by side; linked relative to the report."""
    pictures: Mapping[str, Path] = field(default_factory=dict)
    """Caption → PNG or JPEG, put into the report."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Step → wall clock time in s."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What a reader wants to know about the run: machine, dataset, network."""
    title: str = "LawDNet quickstart"


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its place in SVG units and its text."""

    place: float
    text: str


@dataclass(frozen=True)
class Chart:
    """Curves in SVG units."""

    paths: dict[str, str]
    """Label → `d` of a path."""
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_label: str
    width: int = CHART_WIDTH
    height: int = CHART_HEIGHT
    left: int = CHART_LEFT
    bottom: int = CHART_HEIGHT - CHART_BOTTOM
    right: int = CHART_WIDTH - CHART_RIGHT


def quickstart_report(out: Path, content: QuickstartContent) -> None:
    """Writes the report of a quickstart: figures, curves, pictures, videos and times.

    Args:
        out: the HTML file; an existing one is replaced.

    Raises:
        ValueError: a picture is not there, or of another kind than PNG and JPEG.
    """
    seconds = dict(content.seconds)
    frames = max(map(len, content.openings.values()), default=0)
    _write(
        out,
        "quickstart.html.j2",
        content=content,
        openings=chart(content.openings, np.arange(frames) / FPS, x_label="seconds"),
        losses={stage: _loss_chart(rows) for stage, rows in content.metrics.items() if _steps(rows)},
        pictures={caption: data_uri(path) for caption, path in content.pictures.items()},
        videos={caption: _link(path, out.parent) for caption, path in content.videos.items()},
        longest=max(seconds.values(), default=1),
        total=sum(seconds.values()),
    )


def inspect_report(dataset: Dataset, out: Path) -> None:
    """Writes the contact sheet of a dataset: crops of its videos, and what became of every input.

    Args:
        out: the HTML file; an existing one is replaced.
    """
    rows = dataset.videos().to_pylist()
    refused = [row for row in rows if row["status"] != "accepted"]
    accepted = [row for row in rows if row["status"] == "accepted"]
    shown = accepted[:: math.ceil(len(accepted) / MAX_VIDEOS) or 1]
    segments: dict[str, list[SegmentRef]] = {}
    for ref in dataset.segments():
        segments.setdefault(ref.video_id, []).append(ref)
    _write(
        out,
        "dataset.html.j2",
        name=dataset.root.resolve().name,
        info=dataset.info,
        accepted=accepted,
        funnel=_funnel(rows),
        reasons=Counter(row["reason"] or row["status"] for row in refused).most_common(),
        videos=[(row, _crops(segments.get(row["video_id"], []), dataset.crop_width)) for row in shown],
        refused=refused[:MAX_REJECTED],
        hidden=max(0, len(refused) - MAX_REJECTED),
    )


def chart(
    series: Mapping[str, Sequence[float]], x: Sequence[float] | np.ndarray, *, x_label: str, floor: float | None = 0
) -> Chart:
    """Curves over a common x; NaN leaves a gap, and a series may end early.

    Args:
        series: label → values.
        x: rising, at least as long as the longest series.
        floor: a value that the y axis includes; None fits it to the curves.
    """
    values = {label: np.asarray(row, np.float64) for label, row in series.items()}
    finite = np.concatenate([row[np.isfinite(row)] for row in values.values()] or [np.zeros(0)])
    limits = [*finite, *([] if floor is None else [floor])] or [0.0]
    y_values = nice_ticks(min(limits), max(limits))
    x_values = nice_ticks(float(x[0]), float(x[-1])) if len(x) else [0.0, 1.0]
    x_end = float(x[-1]) if len(x) > 1 else float(x_values[-1])
    x_start = float(x[0]) if len(x) else 0.0
    across = _Axis(x_start, x_end, CHART_LEFT, CHART_WIDTH - CHART_RIGHT)
    up = _Axis(y_values[0], y_values[-1], CHART_HEIGHT - CHART_BOTTOM, CHART_TOP)
    return Chart(
        paths={label: _path(across(np.asarray(x)[: len(row)]), up(row)) for label, row in values.items()},
        x_ticks=[Tick(float(across(np.array(v))), f"{v:g}") for v in x_values if x_start <= v <= x_end],
        y_ticks=[Tick(float(up(np.array(v))), f"{v:g}") for v in y_values],
        x_label=x_label,
    )


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) that enclose low … high."""
    span = high - low if high > low else abs(high) or 1.0
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def data_uri(path: Path) -> str:
    """A PNG or JPEG file as a `data:` address.

    Raises:
        ValueError: no such file, or of another kind.
    """
    kind = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}.get(path.suffix.lower())
    if kind is None or not path.is_file():
        raise ValueError(f"{path}: {'no such file' if kind else 'not a PNG or JPEG file'}")
    return _data_uri(path.read_bytes(), kind)


@dataclass(frozen=True)
class _Axis:
    """Values → SVG units."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, values: np.ndarray) -> np.ndarray:
        share = (values - self.low) / ((self.high - self.low) or 1)
        return np.asarray(self.begin + share * (self.end - self.begin))


def _path(x: np.ndarray, y: np.ndarray) -> str:
    """The `d` of a line, lifted where y is not finite; long lines are averaged down."""
    if len(y) > MAX_POINTS:
        size = -(-len(y) // MAX_POINTS)
        pad = -len(y) % size
        x, y = (np.pad(row, (0, pad), mode="edge").reshape(-1, size).mean(1) for row in (x, y))
    parts, pen = [], "M"
    for a, b in zip(x, y, strict=True):
        if math.isfinite(b):
            parts.append(f"{pen}{a:.1f} {b:.1f}")
        pen = "L" if math.isfinite(b) else "M"
    return "".join(parts)


def _steps(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(row["total"]) for row in rows if row.get("kind") == "step" and "total" in row]


def _loss_chart(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Total loss over epochs; an epoch's steps are spread evenly over it."""
    steps = [row for row in rows if row.get("kind") == "step" and "total" in row]
    last: Counter[int] = Counter()
    for row in steps:
        last[int(row["epoch"])] = max(last[int(row["epoch"])], int(row["step"]))
    x = [row["epoch"] + row["step"] / (last[int(row["epoch"])] + 1) for row in steps]
    order = np.argsort(x, kind="stable")  # a stage that was resumed may repeat steps
    losses = np.array(_steps(rows))[order]
    return chart({"loss": losses.tolist(), "smoothed": smooth(losses).tolist()}, np.array(x)[order], x_label="epochs")


def smooth(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    """A centred mean over about this share of the series; shorter windows at the ends."""
    half = max(1, round(len(values) * share / 2))
    sums = np.concatenate([[0.0], np.nancumsum(values)])
    counts = np.concatenate([[0], np.cumsum(np.isfinite(values))])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return np.asarray((sums[high] - sums[low]) / np.maximum(counts[high] - counts[low], 1))


def _funnel(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, float]]:
    """(what, how many, share of the first of its kind) from inputs to training data."""
    accepted = [row for row in rows if row["status"] == "accepted"]
    frames, used = (sum(row[name] or 0 for row in rows) for name in ("frames", "frames_used"))
    counts = [("videos found", len(rows), len(rows)), ("videos accepted", len(accepted), len(rows))]
    counts += [("frames read", frames, frames), ("frames in segments", used, frames)]
    return [(what, count, count / whole if whole else 0.0) for what, count, whole in counts]


def _crops(refs: Sequence[SegmentRef], stored_width: int) -> list[str]:
    """Small pictures spread evenly over a video's segments, as data addresses."""
    total = sum(ref.num_frames for ref in refs)
    wanted = [(2 * i + 1) * total // (2 * CROPS_PER_VIDEO) for i in range(CROPS_PER_VIDEO)] if total else []
    crops, start = [], 0
    for ref in refs:
        mine = [place - start for place in wanted if start <= place < start + ref.num_frames]
        start += ref.num_frames
        if not mine:
            continue
        frames = read_segment(Path(ref.path), ref.row_group, ["frames_jpeg"])["frames_jpeg"][0].values
        size = (round(1.3 * CROP_WIDTH), CROP_WIDTH)
        small = (decode_jpeg(frames[place].as_py(), *size, stored_width=stored_width) for place in mine)
        crops += [_data_uri(encode_jpeg(crop, 80), "jpeg") for crop in small]
    return crops


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _link(path: Path, folder: Path) -> str:
    """A relative address that works from disk, whatever the file's name."""
    return quote(os.path.relpath(path.resolve(), folder.resolve()).replace(os.sep, "/"))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _write(out: Path, template: str, **content: Any) -> None:
    environment = Environment(
        loader=PackageLoader("lawdnet", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = _duration
    html = environment.get_template(template).render(version=__version__, fps=FPS, **content)
    with atomic(out) as temporary:
        temporary.write_text(html, encoding="utf8")
