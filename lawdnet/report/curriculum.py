"""The report of a curriculum: how good the mouth is compared with the truth, and people to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

from lawdnet.report.page import link, write_page
from lawdnet.storage import Location
from lawdnet.training.gates import VALIDATION_METRICS


@dataclass(frozen=True, kw_only=True)
class CurriculumContent:
    """What `curriculum_report` shows."""

    stage: str
    """The stage that was measured."""
    metrics: Mapping[str, float]
    """Metrics on held-out videos: names of `VALIDATION_METRICS`, also with `baseline_` and `truth_` before them."""
    people: Mapping[str, Mapping[str, Location]]
    """Held-out video → caption → file, shown side by side."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Result that is missing → why."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Step → wall clock time in s, of its last run."""
    facts: Mapping[str, str] = field(default_factory=dict)
    pages: Mapping[str, Location] = field(default_factory=dict)
    """Subject of another report → its file."""


def curriculum_report(out: Location, content: CurriculumContent) -> None:
    """Write the report of a curriculum: a table, videos side by side, and links to other reports.

    Args:
        out: the HTML file; an existing one is replaced.
    """
    rows = [
        (name, measure.text, *(_number(content.metrics.get(f"{row}{name}")) for row in ("", "baseline_", "truth_")))
        for name, measure in VALIDATION_METRICS.items()
        if name in content.metrics
    ]
    write_page(
        out,
        "curriculum.html.j2",
        content=content,
        rows=rows,
        people={
            name: {caption: _url(file, out) for caption, file in videos.items()}
            for name, videos in content.people.items()
        },
        pages={text: _url(file, out) for text, file in content.pages.items()},
    )


def _number(value: float | None) -> str:
    return "–" if value is None or not isfinite(value) else f"{value:.4g}"


def _url(file: Location, page: Location) -> str:
    """Return a URL relative to the page, if both are local or both are in an object store."""
    if isinstance(file, Path) and isinstance(page, Path):
        return link(file, page.parent)
    return str(file).removeprefix(f"{page.parent}/")
