"""The report of a quickstart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lawdnet.report.charts import Chart, chart, smooth
from lawdnet.report.page import image_uri, link, write_page
from lawdnet.types import FPS


@dataclass(frozen=True, kw_only=True)
class QuickstartContent:
    """What `quickstart_report` shows."""

    correlation: float
    """Pearson's correlation of the trained network's mouth with the truth."""
    untrained: float
    """Correlation for an untrained network."""
    ceiling: float
    """Correlation for the true video: the most that the measurement allows."""
    openings: Mapping[str, Sequence[float]]
    """Name → opening of the mouth, one value per frame (truth first, then generated, then untrained)."""
    metrics: Mapping[str, Sequence[Mapping[str, Any]]]
    """Stage → rows of its metrics.jsonl."""
    videos: Mapping[str, Path]
    """Caption → file, shown side by side; linked relative to the report."""
    images: Mapping[str, Path] = field(default_factory=dict)
    """Caption → PNG or JPEG, embedded in the report."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Step → wall clock time in s."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What a reader wants to know about the run: machine, dataset, network."""
    title: str = "LawDNet quickstart"


def quickstart_report(out: Path, content: QuickstartContent) -> None:
    """Write the report of a quickstart: metrics, curves, images, videos and times.

    Args:
        out: the HTML file; an existing one is replaced.

    Raises:
        ValueError: an image is missing, or is neither PNG nor JPEG.
    """
    seconds = dict(content.seconds)
    frames = max(map(len, content.openings.values()), default=0)
    write_page(
        out,
        "quickstart.html.j2",
        content=content,
        openings=chart(content.openings, np.arange(frames) / FPS, x_label="seconds"),
        losses={stage: _loss_chart(rows) for stage, rows in content.metrics.items() if _steps(rows)},
        images={caption: image_uri(path) for caption, path in content.images.items()},
        videos={caption: link(path, out.parent) for caption, path in content.videos.items()},
        longest=max(seconds.values(), default=1),
        total=sum(seconds.values()),
    )


def _steps(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(row["total"]) for row in rows if row.get("kind") == "step" and "total" in row]


def _loss_chart(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Return the total loss over epochs; an epoch's steps are spread evenly over it."""
    steps = [row for row in rows if row.get("kind") == "step" and "total" in row]
    last: Counter[int] = Counter()
    for row in steps:
        last[int(row["epoch"])] = max(last[int(row["epoch"])], int(row["step"]))
    x = [row["epoch"] + row["step"] / (last[int(row["epoch"])] + 1) for row in steps]
    order = np.argsort(x, kind="stable")  # a stage that was resumed may repeat steps
    losses = np.array(_steps(rows))[order]
    return chart({"loss": losses.tolist(), "smoothed": smooth(losses).tolist()}, np.array(x)[order], x_label="epochs")
