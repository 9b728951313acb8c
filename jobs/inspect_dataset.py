"""Says what is in a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs import console

if TYPE_CHECKING:
    from lawdnet.data.manifest import Dataset

EXAMPLES = 3
"""Paths shown per reason."""


def inspect(
    dataset: Annotated[Path, typer.Argument(help="A folder made by `lawdnet build`.")],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a report with pictures.")] = None,
    as_json: console.Json = False,
) -> None:
    """Show what a dataset holds, and which inputs were rejected and why.

    Example: `lawdnet inspect dataset --html report.html`
    """
    from lawdnet.data.manifest import Dataset

    opened = Dataset(dataset)
    content = describe(opened) | {"scores": scores(opened)}
    lines = [str(dataset), *summary(content)]
    if html:
        from lawdnet.report import inspect_report

        inspect_report(opened, html)
        content["html"] = str(html)
        lines.append(f"report: {html}")
    console.result(content, lines, as_json)


def describe(dataset: Dataset) -> dict[str, Any]:
    """Counts, splits, extractors and reasons of a dataset, without opening its segments."""
    from lawdnet.types import FPS

    dataset.segment_files()  # a dataset with holes must not look whole
    rows = (
        dataset.videos().select(["path", "status", "reason", "detail", "split", "segments", "frames_used"]).to_pylist()
    )
    frames = sum(row["frames_used"] for row in rows)
    splits: dict[str, dict[str, int]] = {name: {"videos": 0, "segments": 0, "frames": 0} for name in ("train", "val")}
    reasons: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["status"] == "accepted":
            split = splits[row["split"]]
            split["videos"] += 1
            split["segments"] += row["segments"]
            split["frames"] += row["frames_used"]
            continue
        entry = reasons.setdefault(row["reason"], {"count": 0, "examples": []})
        entry["count"] += 1
        if entry["count"] <= EXAMPLES:
            entry["examples"].append({"path": row["path"], "detail": row["detail"]})
    statuses = {name: sum(row["status"] == name for row in rows) for name in ("accepted", "rejected", "failed")}
    return {
        "dataset": str(dataset.root),
        "videos": {"all": len(rows), **statuses},
        "segments": sum(row["segments"] for row in rows),
        "frames": frames,
        "hours": round(frames / FPS / 3600, 4),
        "crop_width": dataset.crop_width,
        "splits": splits,
        "extractors": {name: entry["dim"] for name, entry in dataset.info["extractors"].items()},
        "reasons": dict(sorted(reasons.items(), key=lambda item: -item[1]["count"])),
        "hash": dataset.hash,
    }


def scores(dataset: Dataset) -> dict[str, dict[str, float]]:
    """Minimum, median and maximum of every score over all segments."""
    import numpy as np
    import pyarrow.parquet as pq

    from lawdnet.data.schema import SCORE

    values: dict[str, list[float]] = {}
    for path in sorted({ref.path for ref in dataset.segments()}):
        with pq.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if name.startswith(SCORE)]
            for name, column in file.read(columns=names).to_pydict().items():
                values.setdefault(name.removeprefix(SCORE), []).extend(column)
    marks = {"min": 0, "median": 50, "max": 100}
    return {
        name: {mark: round(float(np.nanpercentile(column, q)), 4) for mark, q in marks.items()}
        for name, column in sorted(values.items())
    }


def summary(content: dict[str, Any]) -> list[str]:
    """What `describe` and `scores` found, on one screen."""
    videos = content["videos"]
    length = console.duration(content["hours"] * 3600)
    split = ", ".join(
        f"{name} {n['segments']} from {console.count(n['videos'], 'video')}" for name, n in content["splits"].items()
    )
    rows = [
        ("videos", f"{videos['accepted']} of {videos['all']} used"),
        ("segments", f"{content['segments']} ({split})"),
        ("frames", f"{content['frames']} ({length}), crops {content['crop_width']} px wide"),
        ("features", ", ".join(f"{name} ({dim})" for name, dim in content["extractors"].items())),
    ]
    for name, marks in content.get("scores", {}).items():
        rows.append((name, f"{marks['min']:g} … {marks['max']:g}, median {marks['median']:g}"))
    lines = console.columns(rows)
    if content["reasons"]:
        lines.append(f"not used: {videos['rejected']} rejected, {videos['failed']} failed")
    for reason, entry in content["reasons"].items():
        lines.append(f"  {entry['count']} × {reason}")
        lines += [f"      {example['path']}: {example['detail']}" for example in entry["examples"]]
        if entry["count"] > EXAMPLES:
            lines.append(f"      … and {entry['count'] - EXAMPLES} more")
    return lines


if __name__ == "__main__":
    console.run(inspect)
