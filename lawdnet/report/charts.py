"""Curves and histograms in SVG units, for the templates to draw.

Shape letter: R values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lawdnet.types import Bool

CHART_WIDTH, CHART_HEIGHT = 720, 220
CHART_LEFT, CHART_RIGHT, CHART_TOP, CHART_BOTTOM = 52, 12, 12, 34
MAX_POINTS = 1000
"""Most points of a drawn curve; longer series are averaged down."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its position in SVG units, and its text."""

    position: float
    text: str


@dataclass(frozen=True)
class Chart:
    """Curves in SVG units."""

    paths: dict[str, str]
    """Label → `d` of a path."""
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_label: str
    width: int
    height: int
    left: int
    bottom: int
    right: int
    marks: list[Tick]
    """Vertical lines, each with what it marks."""


def chart(
    series: Mapping[str, Sequence[float]],
    x: Sequence[float] | np.ndarray,
    *,
    x_label: str,
    floor: float | None = 0,
    logarithmic: bool = False,
    stacked: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    size: tuple[int, int] = (CHART_WIDTH, CHART_HEIGHT),
) -> Chart:
    """Return curves over a common x; NaN leaves a gap, and a series may end early.

    Args:
        series: label → values.
        x: increasing, at least as long as the longest series.
        floor: a value that the y axis includes; None fits the axis to the curves.
        logarithmic: whether y is logarithmic; values that are not positive leave a gap, and `floor` is ignored.
        stacked: draw areas on top of each other, the first at the bottom; all series must be as long as x, without NaN.
        marks: (x, text) of vertical lines.
        size: width and height in SVG units.
    """
    values = {label: np.asarray(row, np.float64) for label, row in series.items()}
    bases = dict.fromkeys(values, np.zeros(0))
    if stacked:
        tops = np.cumsum([np.zeros(len(x)), *values.values()], axis=0)
        values, bases = (dict(zip(series, rows, strict=True)) for rows in (tops[1:], tops[:-1]))
    if logarithmic:
        floor, values = None, {label: _log10(row) for label, row in values.items()}
    y_values = (_log_ticks if logarithmic else nice_ticks)(*_limits(values, floor))
    x_values = nice_ticks(float(x[0]), float(x[-1])) if len(x) else [0.0, 1.0]
    x_end = float(x[-1]) if len(x) > 1 else float(x_values[-1])
    x_start = float(x[0]) if len(x) else 0.0
    width, height = size
    across = _Axis(x_start, x_end, CHART_LEFT, width - CHART_RIGHT)
    up = _Axis(y_values[0], y_values[-1], height - CHART_BOTTOM, CHART_TOP)
    positions = across(np.asarray(x))
    return Chart(
        paths={label: _path(positions[: len(row)], up(row), up(bases[label])) for label, row in values.items()},
        x_ticks=[Tick(float(across(np.array(v))), f"{v:g}") for v in x_values if x_start <= v <= x_end],
        y_ticks=[Tick(float(up(np.array(v))), f"{10**v if logarithmic else v:.4g}") for v in y_values],
        x_label=x_label,
        width=width,
        height=height,
        left=CHART_LEFT,
        bottom=height - CHART_BOTTOM,
        right=width - CHART_RIGHT,
        marks=[Tick(float(across(np.array(v))), text) for v, text in marks if x_start <= v <= x_end],
    )


def _limits(values: Mapping[str, np.ndarray], floor: float | None) -> tuple[float, float]:
    """Return the lowest and highest of all finite values, and of the floor if there is one."""
    finite = np.concatenate([row[np.isfinite(row)] for row in values.values()] or [np.zeros(0)])
    limits = [*finite, *([] if floor is None else [floor])] or [0.0]
    return float(min(limits)), float(max(limits))


def _log10(values: np.ndarray) -> np.ndarray:
    return np.log10(np.where(values > 0, values, np.nan))


def _log_ticks(low: float, high: float) -> list[float]:
    """Return logarithms of round numbers (1, 2 and 5, or only 1 times a power of ten) that enclose 10^low … 10^high."""
    factors = (1, 2, 5) if high - low < 2.5 else (1,)
    powers = range(math.floor(low) - 1, math.ceil(high) + 2)
    marks = sorted(power + math.log10(factor) for power in powers for factor in factors)
    first = max(i for i, mark in enumerate(marks) if mark <= low + 1e-9)
    last = min(i for i, mark in enumerate(marks) if mark >= high - 1e-9)
    return marks[first : max(last, first + 1) + 1]


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers (1, 2 or 5 times a power of ten apart) that enclose low … high."""
    span = high - low if high > low else abs(high) or 1.0
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True)
class _Axis:
    """Maps values to SVG units."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, values: np.ndarray) -> np.ndarray:
        share = (values - self.low) / ((self.high - self.low) or 1)
        return np.asarray(self.begin + share * (self.end - self.begin))


def _path(x: np.ndarray, y: np.ndarray, base: np.ndarray) -> str:
    """Return the `d` of a line, with gaps where y is not finite, or of the area down to `base`."""
    x, y, base = (_averaged(row) for row in (x, y, base))
    if len(base):
        edge = [*zip(x, y, strict=True), *zip(x[::-1], base[::-1], strict=True)]
        return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in edge) + "Z"
    pieces: list[list[str]] = [[]]
    for a, b in zip(x, y, strict=True):
        if math.isfinite(b):
            pieces[-1].append(f"{a:.1f} {b:.1f}")
        elif pieces[-1]:
            pieces.append([])
    # a path that is closed draws a lone point as a dot
    return "".join("M" + "L".join(piece) + ("Z" if len(piece) == 1 else "") for piece in pieces if piece)


def _averaged(values: np.ndarray) -> np.ndarray:
    """Return at most MAX_POINTS means over neighbours."""
    if len(values) <= MAX_POINTS:
        return values
    size = -(-len(values) // MAX_POINTS)
    return np.asarray(np.pad(values, (0, -len(values) % size), mode="edge").reshape(-1, size).mean(1))


def smooth(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Return a centred mean over about this share of the series, over less at the ends."""
    half = max(1, round(len(values) * share / 2))
    sums = np.concatenate([[0.0], np.nancumsum(values)])
    counts = np.concatenate([[0], np.cumsum(np.isfinite(values))])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return np.asarray((sums[high] - sums[low]) / np.maximum(counts[high] - counts[low], 1))


HISTOGRAM_WIDTH, HISTOGRAM_HEIGHT, HISTOGRAM_BOTTOM = 360, 130, 110
HISTOGRAM_BINS = 30
MIN_BARS = 8
"""Least number of bar positions for bars of a given width, so that a lone bar does not fill the chart."""
TAIL = 0.5
"""Percent of the values on either side that may lie far out; they are counted in the last bar."""


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram in SVG units: the kept values, and on top of it the dropped ones."""

    x: float
    width: float
    kept_height: float
    dropped_height: float
    text: str


@dataclass(frozen=True)
class Histogram:
    """A histogram in SVG units."""

    bars: list[Bar]
    ticks: list[Tick]
    limits: list[Tick]
    """Limits of the rules."""
    kept: int
    dropped: int
    not_measured: int
    note: str
    """Quantiles of the kept values."""
    width: int = HISTOGRAM_WIDTH
    height: int = HISTOGRAM_HEIGHT
    bottom: int = HISTOGRAM_BOTTOM


def histogram(
    values_R: np.ndarray, kept_R: Bool, *, limits: Sequence[tuple[float, str]] = (), step: float | None = None
) -> Histogram:
    """Return the distribution of R values; NaN counts as not measured.

    Args:
        kept_R: whether a value belongs to the dataset; the others are drawn on top, paler.
        limits: (value, text) of vertical lines.
        step: width of a bar, whose value is at its middle (for whole numbers); None chooses a round number.
    """
    known_R = np.isfinite(values_R)
    values, kept = values_R[known_R].astype(np.float64), kept_R[known_R]
    edges = _edges(values, step)
    bar_R = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    kept_count, dropped = (np.bincount(bar_R[mask], minlength=len(edges) - 1) for mask in (kept, ~kept))
    across = _Axis(edges[0], edges[-1], 4, HISTOGRAM_WIDTH - 4)
    x = across(edges)
    scale = (HISTOGRAM_BOTTOM - 8) / max(1, (kept_count + dropped).max(initial=0))
    bars = [
        Bar(
            x=round(float(x[i]), 2),
            width=round(float(x[i + 1] - x[i] - 1), 2),
            kept_height=round(float(kept_count[i] * scale), 2),
            dropped_height=round(float(dropped[i] * scale), 2),
            text=f"{edges[i]:g} … {edges[i + 1]:g}: {kept_count[i]} kept, {dropped[i]} dropped",
        )
        for i in np.flatnonzero(kept_count + dropped)
    ]
    ticks = [v for v in nice_ticks(edges[0], edges[-1], 6) if edges[0] <= v <= edges[-1]]
    return Histogram(
        bars=bars,
        ticks=[Tick(round(float(across(np.array(v))), 1), f"{v:g}") for v in ticks],
        limits=[Tick(round(float(across(np.array(v))), 1), text) for v, text in limits if edges[0] <= v <= edges[-1]],
        kept=int(kept.sum()),
        dropped=int((~kept).sum()),
        not_measured=int((~known_R).sum()),
        note=_note(values[kept]),
    )


def _edges(values: np.ndarray, step: float | None) -> np.ndarray:
    """Return the increasing borders of the bars, at least two."""
    if not len(values):
        return np.array([0.0, 1.0])
    low, high = values.min(), values.max()
    if step is not None:
        beside = max(0, MIN_BARS - round((high - low) / step)) // 2
        return np.arange(low - (beside + 0.5) * step, high + (beside + 1) * step, step)
    inner = np.percentile(values, [TAIL, 100 - TAIL])
    reach = np.ptp(inner)
    if reach > 0:
        low, high = max(low, inner[0] - reach / 2), min(high, inner[1] + reach / 2)
    elif low == high:
        low, high = low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10
    return np.array(nice_ticks(low, high, HISTOGRAM_BINS))


def _note(values: np.ndarray) -> str:
    if not len(values):
        return "none"
    low, middle, high = np.percentile(values, [5, 50, 95])
    return f"median {middle:.3g}, 90 % within {low:.3g} … {high:.3g}"
