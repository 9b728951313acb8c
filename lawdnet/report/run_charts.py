"""The curves of a stage: its losses, their shares of the gradient, its validations, its speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lawdnet.evaluation.sync_validation import OFFSET
from lawdnet.report.charts import Chart, Histogram, chart, histogram, smooth
from lawdnet.report.stage_log import SHARE, LogRow, StageLog, epoch_positions, numbers
from lawdnet.training.gates import VALIDATION_METRICS, is_better

SMALL, WIDE = (360, 170), (1000, 230)
"""Sizes of a chart in a grid, and of one alone."""
LOG_RANGE = 10
"""A curve whose values span more than this factor gets a logarithmic axis."""
POSITION = ("time", "kind", "epoch", "step", "lr")
"""Columns of a step's row that are not results of it."""
CHANCE = "chance"
"""Column with the total loss of guessing."""
RESOURCES = {
    "steps_per_second": ("steps per second", 1.0),
    "samples_per_second": ("samples per second, all workers", 1.0),
    "data_wait": ("waiting for data, % of the time", 100.0),
    "memory_gb": ("memory of a worker, GB", 1.0),
    "seconds": ("seconds per epoch", 1.0),
    "workers": ("workers", 1.0),
}
"""Column of an epoch's row → its meaning, and a factor for its values."""

CHANGING = ("workers",)
"""Columns of `RESOURCES` that get a curve only if they change."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One metric of the validations of a stage."""

    name: str
    text: str
    curve: Chart
    best: float
    best_epoch: int
    """0 if no epoch has a number."""
    last: float
    baseline: float
    truth: float
    is_telling: bool
    """Whether a mouth that ignores the audio does badly in it."""


def losses(log: StageLog) -> list[tuple[str, Chart]]:
    """Return every number in the rows of steps, the total first, each with its running mean."""
    steps = log.of_kind("step")
    x, unit = epoch_positions(steps, log.epochs_done)
    names = [n for n in _number_names(steps) if n not in (*POSITION, CHANCE) and not n.startswith(SHARE)]
    names.sort(key=lambda name: name != "total")
    guesses = numbers(steps, CHANCE)
    return [(name, _loss_chart(numbers(steps, name), x, unit, guesses if name == "total" else None)) for name in names]


def _loss_chart(values: np.ndarray, x: np.ndarray, unit: str, guesses: np.ndarray | None) -> Chart:
    known = np.isfinite(values)
    curves = {"step": values[known].tolist(), "running mean": smooth(values[known]).tolist()}
    if guesses is not None and np.isfinite(guesses).any():
        curves[CHANCE] = guesses[known].tolist()
    return chart(curves, x[known], x_label=unit, floor=None, logarithmic=_spans(values[known]), size=SMALL)


def _spans(values: np.ndarray) -> bool:
    """Whether the values need a logarithmic axis."""
    low, high = np.percentile(values, [1, 99]) if len(values) else (0, 0)
    return bool(values.min(initial=np.inf) > 0 and high > LOG_RANGE * low)


def _number_names(rows: Sequence[LogRow]) -> list[str]:
    """Return the columns that have a number in some row, in the order in which they first appear."""
    found = (name for row in rows for name, value in row.items() if isinstance(value, int | float))
    return list(dict.fromkeys(found))


def shares(log: StageLog) -> Chart | None:
    """Return each loss's share of the gradient, stacked to 100 %."""
    steps = log.of_kind("step")
    names = [name for name in _number_names(steps) if name.startswith(SHARE)]
    x, unit = epoch_positions(steps, log.epochs_done)
    rows = np.nan_to_num(np.array([numbers(steps, name) for name in names]).reshape(len(names), len(steps)))
    total = rows.sum(0)
    measured = total > 0
    if not names or not measured.any():
        return None
    parts = 100 * rows[:, measured] / total[measured]
    series = {name.removeprefix(SHARE): row.tolist() for name, row in zip(names, parts, strict=True)}
    return chart(series, x[measured], x_label=f"{unit}; % of the gradient", stacked=True, size=WIDE)


def measured(log: StageLog) -> list[Measured]:
    """Return the metrics of the validations of a stage, in the order of `VALIDATION_METRICS`."""
    rows = log.of_kind("validation")
    names = [name for name in _number_names(rows) if name in VALIDATION_METRICS]
    return [_metric(rows, name) for name in sorted(names, key=list(VALIDATION_METRICS).index)]


def _metric(rows: Sequence[LogRow], name: str) -> Measured:
    epochs = numbers(rows, "epoch")
    values = numbers(rows, name)
    best: int | None = None
    for index, value in enumerate(values):
        if is_better(name, value, None if best is None else values[best]):
            best = index
    truth, baseline = (numbers(rows, f"{row}_{name}") for row in ("truth", "baseline"))
    curves = {"truth": truth.tolist(), "this stage": values.tolist(), "baseline": baseline.tolist()}
    marks = [] if best is None else [(float(epochs[best]), f"best: epoch {epochs[best]:g}")]
    return Measured(
        name=name,
        text=VALIDATION_METRICS[name].text,
        curve=chart(curves, epochs, x_label="epochs", floor=None, marks=marks, size=SMALL),
        best=float("nan") if best is None else float(values[best]),
        best_epoch=0 if best is None else int(epochs[best]),
        last=_last(values),
        baseline=_last(baseline),
        truth=_last(truth),
        is_telling=VALIDATION_METRICS[name].needs_audio,
    )


def _last(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else float("nan")


def offsets(log: StageLog) -> Histogram | None:
    """Return the offsets at which a sync network found the held-out segments in its last validation."""
    rows = log.of_kind("validation")
    counts = {
        int(name.removeprefix(OFFSET)): int(n) for name, n in (rows or [{}])[-1].items() if name.startswith(OFFSET)
    }
    values = np.repeat(np.array(list(counts), np.float64), list(counts.values()))
    return histogram(values, np.ones(len(values), bool), step=1) if counts else None


def resources(log: StageLog) -> list[tuple[str, Chart]]:
    """Return the learning rate over steps, and speed and memory over epochs."""
    steps, epochs = log.of_kind("step"), log.of_kind("epoch")
    x, unit = epoch_positions(steps, log.epochs_done)
    rate = numbers(steps, "lr")
    drawn = [("learning rate", chart({"lr": rate.tolist()}, x, x_label=unit, size=SMALL))] if len(rate) else []
    for name, (text, factor) in RESOURCES.items():
        values = factor * numbers(epochs, name)
        if np.isfinite(values).any() and (name not in CHANGING or np.ptp(values) > 0):
            x_E = numbers(epochs, "epoch")
            drawn.append((text, chart({name: values.tolist()}, x_E, x_label="epochs", size=SMALL)))
    return drawn
