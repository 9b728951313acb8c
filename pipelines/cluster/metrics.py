"""Figures for Prometheus: every node of a Ray cluster shows them on its metrics port, as `ray_` and the name below.

Whoever works counts; without a Ray there is nobody to tell, and nothing happens. Ray sends them every ten seconds.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge

from lawdnet.data.segments import Tally
from lawdnet.training.gates import MEASURES
from lawdnet.training.speed import StepTime

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metric:
    """What Prometheus is told of one.

    There are no histograms: Ray 2.60 passes their sums on in whole buckets, so that means over them are off. Two
    counters, of seconds and of what they were spent on, give the exact mean.
    """

    kind: type[Counter] | type[Gauge]
    text: str
    labels: tuple[str, ...] = ()
    """Few, with few values: each combination is a series of its own. File names are none."""


_STAGE = ("run", "stage")
_RANK = ("run", "stage", "rank")
_OUTCOME = ("status", "reason")

METRICS = {
    "lawdnet_build_inputs_total": Metric(Counter, "Inputs that got an outcome, by status and reason.", _OUTCOME),
    "lawdnet_build_frames_total": Metric(Counter, "Frames decoded, on the clock of 25 a second."),
    "lawdnet_build_segments_total": Metric(Counter, "Segments written."),
    "lawdnet_build_seconds_total": Metric(
        Counter, "Seconds of workers by stage of the build: open, faces, sound, crop, score, write.", ("stage",)
    ),
    "lawdnet_train_steps_total": Metric(Counter, "Optimiser steps of each worker.", _RANK),
    "lawdnet_train_step_seconds_total": Metric(Counter, "Seconds in which a worker computed steps.", _RANK),
    "lawdnet_train_data_wait_seconds_total": Metric(Counter, "Seconds in which a worker waited for batches.", _RANK),
    "lawdnet_train_samples_total": Metric(Counter, "Samples that a worker was given.", _RANK),
    "lawdnet_train_skipped_steps_total": Metric(Counter, "Steps left out as something was not finite.", _STAGE),
    "lawdnet_train_alarms_total": Metric(Counter, "Alarms; metrics.jsonl has their texts.", _STAGE),
    "lawdnet_train_resumes_total": Metric(Counter, "Times that the stage went on from a checkpoint.", _STAGE),
    "lawdnet_train_epoch": Metric(Gauge, "Complete epochs of the stage.", _STAGE),
    "lawdnet_train_workers": Metric(Gauge, "Workers that train together.", _STAGE),
    "lawdnet_train_loss": Metric(Gauge, "What metrics.jsonl says of a step: losses, shares, lr.", (*_STAGE, "loss")),
    "lawdnet_train_validation": Metric(Gauge, "The last validation on held-out videos.", (*_STAGE, "measure")),
    "lawdnet_render_pairs_total": Metric(Counter, "Pairs that got an outcome, by status and reason.", _OUTCOME),
    "lawdnet_render_frames_total": Metric(Counter, "Frames rendered."),
    "lawdnet_render_seconds_total": Metric(Counter, "Seconds of workers spent on rendering them."),
}


def record(name: str, value: float = 1.0, /, **labels: str) -> None:
    """Adds to a counter, or sets a gauge. It never fails: figures are not worth the work that they are about."""
    metric = METRICS[name]
    assert set(labels) == set(metric.labels), name
    if not ray.is_initialized():
        return
    try:
        if not math.isfinite(value) or (metric.kind is Counter and value <= 0):
            return
        made = _made(name)
        (made.inc if isinstance(made, Counter) else made.set)(value, tags=labels)
    except Exception as error:
        log.debug("%s: not recorded (%s)", name, error)


@cache
def _made(name: str) -> Counter | Gauge:
    metric = METRICS[name]
    return metric.kind(name, description=metric.text, tag_keys=metric.labels)


def built(row: Mapping[str, Any], tally: Tally | None = None) -> None:
    """An input's outcome, and what was done for it this time: the row counts earlier builds too."""
    if tally:
        record("lawdnet_build_frames_total", tally.frames)
        record("lawdnet_build_segments_total", tally.segments if row["status"] == "accepted" else 0)
        for stage, seconds in tally.seconds.items():
            record("lawdnet_build_seconds_total", seconds, stage=stage)
    record("lawdnet_build_inputs_total", status=row["status"], reason=row["reason"])


def rendered(row: Mapping[str, Any]) -> None:
    """A pair's outcome."""
    record("lawdnet_render_pairs_total", status=row["status"], reason=row["reason"])
    record("lawdnet_render_frames_total", row["frames"])
    record("lawdnet_render_seconds_total", row["seconds"])


def noted(row: Mapping[str, Any], *, run: str, stage: str) -> None:
    """A row of a stage's metrics.jsonl."""
    where, kind = {"run": run, "stage": stage}, row["kind"]
    if kind == "step":
        for name in row.keys() - {"kind", "epoch", "step"}:
            record("lawdnet_train_loss", row[name], **where, loss=name)
    elif kind == "epoch":
        record("lawdnet_train_epoch", row["epoch"], **where)
        record("lawdnet_train_workers", row["workers"], **where)
        record("lawdnet_train_skipped_steps_total", row.get("skipped", 0), **where)
    elif kind == "validation":
        for name in row.keys() & MEASURES.keys():
            record("lawdnet_train_validation", row[name], **where, measure=name)
    elif kind in ("alarm", "resume"):
        record(f"lawdnet_train_{kind}s_total", **where)


def stepped(step: StepTime, *, labels: Mapping[str, str]) -> None:
    """Count an optimiser step of a worker; the labels are `run`, `stage` and `rank`."""
    record("lawdnet_train_steps_total", **labels)
    record("lawdnet_train_samples_total", step.samples, **labels)
    record("lawdnet_train_step_seconds_total", step.computed, **labels)
    record("lawdnet_train_data_wait_seconds_total", step.waited, **labels)
