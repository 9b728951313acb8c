"""The report of a curriculum: how good the mouth is beside the truth, and people to look at."""

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
    """That was measured."""
    figures: Mapping[str, float]
    """Metrics on held-out videos: names of `VALIDATION_METRICS`, also with `baseline_` and `truth_` before them."""
    people: Mapping[str, Mapping[str, Location]]
    """Held-out video → caption → file, shown side by side."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Result that there is none of → why."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Step → wall clock time in s, of the last time it was asked for."""
    facts: Mapping[str, str] = field(default_factory=dict)
    pages: Mapping[str, Location] = field(default_factory=dict)
    """What other reports are about → file."""


def curriculum_report(out: Location, content: CurriculumContent) -> None:
    """Writes the report of a curriculum: a table, videos side by side, and links to other reports.

    Args:
        out: the HTML file; an existing one is replaced.
    """
    rows = [
        (name, measure.text, *(_figure(content.figures.get(f"{row}{name}")) for row in ("", "baseline_", "truth_")))
        for name, measure in VALIDATION_METRICS.items()
        if name in content.figures
    ]
    write_page(
        out,
        "curriculum.html.j2",
        content=content,
        rows=rows,
        people={
            name: {caption: _address(file, out) for caption, file in videos.items()}
            for name, videos in content.people.items()
        },
        pages={text: _address(file, out) for text, file in content.pages.items()},
    )


def _figure(value: float | None) -> str:
    return "–" if value is None or not isfinite(value) else f"{value:.4g}"


def _address(file: Location, page: Location) -> str:
    """Relative to the page where both are in one kind of place."""
    if isinstance(file, Path) and isinstance(page, Path):
        return link(file, page.parent)
    return str(file).removeprefix(f"{page.parent}/")
