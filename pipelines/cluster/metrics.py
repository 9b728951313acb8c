"""Metrics for Prometheus: every node of a Ray cluster exports them on its metrics port, as `ray_` plus the name below.

Whoever does the work counts it. Ray exports every ten seconds; where no Ray is running, counting does nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import ray
from ray.util.metrics import Counter, Gauge

from lawdnet.data.records import VideoRecord
from lawdnet.data.tally import Tally
from lawdnet.training.gates import VALIDATION_METRICS

if TYPE_CHECKING:
    from lawdnet.training.speed import StepTime  # brings torch, which builds do not need
    from pipelines.render.pairs import PairRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metric:
    """How Prometheus sees one metric.

    There are no histograms: Ray 2.60 exports their sums in whole buckets, so that means over them are wrong. Two
    counters, one of seconds and one of what they were spent on, give the exact mean.
    """

    kind: type[Counter] | type[Gauge]
    text: str
    labels: tuple[str, ...] = ()
    """Few labels with few values, as each combination is a time series of its own; never file names."""


_STAGE = ("run", "stage")
_RANK = ("run", "stage", "rank")
_RESULT = ("status", "reason")

METRICS = {
    "lawdnet_build_inputs_total": Metric(Counter, "Finished inputs, by status and reason.", _RESULT),
    "lawdnet_build_frames_total": Metric(Counter, "Frames decoded, on the 25 fps clock."),
    "lawdnet_build_segments_total": Metric(Counter, "Segments written."),
    "lawdnet_build_seconds_total": Metric(
        Counter, "Worker seconds by build step: open, faces, sound, crop, score, write.", ("stage",)
    ),
    "lawdnet_build_network_seconds_total": Metric(Counter, "Seconds that network workers of a build computed."),
    "lawdnet_train_steps_total": Metric(Counter, "Optimiser steps of each worker.", _RANK),
    "lawdnet_train_step_seconds_total": Metric(Counter, "Seconds that a worker spent on steps.", _RANK),
    "lawdnet_train_own_seconds_total": Metric(
        Counter, "Seconds of steps before a worker first waited for others: the slow ones have most.", _RANK
    ),
    "lawdnet_train_data_wait_seconds_total": Metric(Counter, "Seconds that a worker waited for batches.", _RANK),
    "lawdnet_train_samples_total": Metric(Counter, "Samples that a worker received.", _RANK),
    "lawdnet_train_skipped_steps_total": Metric(Counter, "Steps skipped because something was not finite.", _STAGE),
    "lawdnet_train_alarms_total": Metric(Counter, "Alarms; metrics.jsonl has their texts.", _STAGE),
    "lawdnet_train_resumes_total": Metric(Counter, "Times that the stage resumed from a checkpoint.", _STAGE),
    "lawdnet_train_epoch": Metric(Gauge, "Complete epochs of the stage.", _STAGE),
    "lawdnet_train_workers": Metric(Gauge, "Workers that train together.", _STAGE),
    "lawdnet_train_loss": Metric(Gauge, "A step in metrics.jsonl: losses, shares, lr.", (*_STAGE, "loss")),
    "lawdnet_train_validation": Metric(Gauge, "The last validation on held-out videos.", (*_STAGE, "measure")),
    "lawdnet_render_pairs_total": Metric(Counter, "Finished pairs, by status and reason.", _RESULT),
    "lawdnet_render_frames_total": Metric(Counter, "Frames rendered."),
    "lawdnet_render_seconds_total": Metric(Counter, "Worker seconds spent on rendering."),
}


def record(name: str, value: float = 1.0, /, **labels: str) -> None:
    """Add to a counter or set a gauge; never raises, as a metric must not stop the work that it measures."""
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


def count_video(video: VideoRecord) -> None:
    """Count a finished input of a build."""
    record("lawdnet_build_inputs_total", status=video.status, reason=video.reason)


def count_build_work(tally: Tally, *, is_accepted: bool) -> None:
    """Count what was done for an input this time; its record counts earlier builds too."""
    record("lawdnet_build_frames_total", tally.frames)
    record("lawdnet_build_segments_total", tally.segments if is_accepted else 0)
    for step, seconds in tally.seconds.items():
        record("lawdnet_build_seconds_total", seconds, stage=step)


def count_pair(pair: PairRecord) -> None:
    """Count a finished pair of a render."""
    record("lawdnet_render_pairs_total", status=pair.status, reason=pair.reason)
    record("lawdnet_render_frames_total", pair.frames)
    record("lawdnet_render_seconds_total", pair.seconds)


def noted(row: Mapping[str, Any], *, run: str, stage: str) -> None:
    """Export a row of a stage's metrics.jsonl."""
    where, kind = {"run": run, "stage": stage}, row["kind"]
    if kind == "step":
        for name in row.keys() - {"kind", "epoch", "step"}:
            record("lawdnet_train_loss", row[name], **where, loss=name)
    elif kind == "epoch":
        record("lawdnet_train_epoch", row["epoch"], **where)
        record("lawdnet_train_workers", row["workers"], **where)
        record("lawdnet_train_skipped_steps_total", row.get("skipped", 0), **where)
    elif kind == "validation":
        for name in row.keys() & VALIDATION_METRICS.keys():
            record("lawdnet_train_validation", row[name], **where, measure=name)
    elif kind in ("alarm", "resume"):
        record(f"lawdnet_train_{kind}s_total", **where)


def stepped(step: StepTime, *, labels: Mapping[str, str]) -> None:
    """Count an optimiser step of a worker; the labels are `run`, `stage` and `rank`."""
    record("lawdnet_train_steps_total", **labels)
    record("lawdnet_train_samples_total", step.samples, **labels)
    record("lawdnet_train_step_seconds_total", step.computed, **labels)
    record("lawdnet_train_own_seconds_total", step.own, **labels)
    record("lawdnet_train_data_wait_seconds_total", step.waited, **labels)
