"""Shows what a dataset holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs import console, options

if TYPE_CHECKING:
    from lawdnet.data.manifest import Dataset

EXAMPLES = 3
"""Paths shown per reason, the longest videos, and per group."""
GROUPS = 10
"""Groups shown: the largest."""


def inspect(
    dataset: options.Dataset,
    html: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Also write a report with images to this path, or s3://… or gs://… URI."),
    ] = None,
    max_videos: Annotated[int, typer.Option(min=0, help="Most videos to show images of in the report.")] = 50,
    order: Annotated[
        str,
        typer.Option(
            help="Which videos to show in the report: even (spread evenly), random, or the name of a score for the "
            "lowest first (-NAME for the highest)."
        ),
    ] = "even",
    as_json: options.Json = False,
) -> None:
    """Show what a dataset holds, the distribution of its scores, and what was left out and why.

    Example: `lawdnet inspect dataset --html report.html --order sharpness`
    """
    from lawdnet.data.manifest import Dataset
    from lawdnet.storage import locate

    if order != "even" and not html:
        raise console.WrongUsage(f"--order {order}: needs a report; add --html FILE")
    with console.parsing_options():
        page = locate(html) if html else None
    opened = Dataset(locate(dataset))
    content = describe(opened) | {"scores": scores(opened)}
    lines = [str(dataset), *summary(content)]
    if page:
        from lawdnet.report import inspect_report

        inspect_report(opened, page, max_videos=max_videos, order=order)
        content["html"] = html
        lines.append(f"report: {html}")
    console.result(content, lines, as_json)


def describe(dataset: Dataset) -> dict[str, Any]:
    """Collect a dataset's counts, splits, groups, extractors, funnel, times and reject reasons. Reads no segments.

    Raises:
        ValueError: a segment file is missing.
    """
    from lawdnet.data.manifest import Groups
    from lawdnet.data.schema import BUILD_STAGES, VideoRow
    from lawdnet.data.selection import check_files
    from lawdnet.types import FPS

    check_files(dataset)  # an incomplete dataset must not look complete
    rows = dataset.videos().to_pylist()
    groups = Groups.of(map(VideoRow.from_columns, rows))
    frames = sum(row["frames_used"] for row in rows)
    splits: dict[str, dict[str, int]] = {name: {"videos": 0, "segments": 0, "frames": 0} for name in ("train", "val")}
    for row in rows:
        if row["status"] == "accepted":
            split = splits[row["split"]]
            split["videos"] += 1
            split["segments"] += row["segments"]
            split["frames"] += row["frames_used"]
    statuses = {name: sum(row["status"] == name for row in rows) for name in ("accepted", "rejected", "failed")}
    stages = {stage: round(sum(row[f"seconds_{stage}"] or 0.0 for row in rows), 3) for stage in BUILD_STAGES}
    return {
        "dataset": str(dataset.root),
        "source": dataset.info.get("source"),
        "videos": {"all": len(rows), **statuses},
        "segments": sum(row["segments"] for row in rows),
        "frames": frames,
        "hours": round(frames / FPS / 3600, 4),
        "crop_width": dataset.crop_width,
        "splits": splits,
        "groups": {"all": groups.total, **asdict(groups)},
        "members": members(rows),
        "landmarks": dict(Counter(row["landmarks"] for row in rows if row["status"] == "accepted")),
        "extractors": {name: entry["dim"] for name, entry in dataset.info["extractors"].items()},
        "funnel": dataset.info.get("funnel", []),
        "stages": stages if any(stages.values()) else {},
        "lacking": lacking(rows),
        "reasons": reasons([row for row in rows if row["status"] != "accepted"]),
        "hash": dataset.hash,
    }


def members(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the paths of the videos in each group of two or more, the largest group first."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] == "accepted" and row.get("group"):
            found.setdefault(f"{row['split']}: {row['group']}", []).append(row["path"])
    several = {name: paths for name, paths in found.items() if len(paths) > 1}
    return dict(sorted(several.items(), key=lambda item: -len(item[1])))


def lacking(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the count and the first examples of the videos that lack each feature of the dataset."""
    pairs = [
        {"reason": name, "path": row["path"], "detail": row["detail"], "frames": 0}
        for row in rows
        if row["status"] == "accepted"
        for name in filter(None, (row.get("lacks") or "").split(","))
    ]
    return reasons(pairs)


def reasons(refused: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the count and the longest examples of each reason, the most frequent reason first."""
    found: dict[str, dict[str, Any]] = {}
    for row in sorted(refused, key=lambda row: -(row["frames"] or 0)):
        entry = found.setdefault(row["reason"], {"count": 0, "examples": []})
        entry["count"] += 1
        if entry["count"] <= EXAMPLES:
            entry["examples"].append({"path": row["path"], "detail": row["detail"]})
    return dict(sorted(found.items(), key=lambda item: -item[1]["count"]))


def reason_lines(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the lines that show what `reasons` found."""
    lines = []
    for reason, entry in found.items():
        lines.append(f"  {entry['count']} × {reason}")
        lines += [f"      {example['path']}: {example['detail']}" for example in entry["examples"]]
        if entry["count"] > EXAMPLES:
            lines.append(f"      … and {entry['count'] - EXAMPLES} more")
    return lines


def scores(dataset: Dataset) -> dict[str, dict[str, float]]:
    """Return quantiles of the length and of each score over all segments, and how many were not measured."""
    import numpy as np
    import pyarrow.compute as pc

    from lawdnet.data.rules import score_names
    from lawdnet.data.schema import SCORE
    from lawdnet.data.selection import quantiles

    index = dataset.index()
    kept = index.filter(pc.equal(index["dropped"], ""))
    found = {}
    for name in ["num_frames", *score_names(index)]:
        values = kept[name if name == "num_frames" else SCORE + name].to_numpy().astype(np.float64)
        found[name] = quantiles(values) | {"not_measured": int((~np.isfinite(values)).sum())}
    return found


def summary(content: dict[str, Any]) -> list[str]:
    """Return the lines that show what `describe` and `scores` found."""
    videos = content["videos"]
    length = console.duration(content["hours"] * 3600)
    split = ", ".join(
        f"{name} {n['segments']} from {console.count(n['videos'], 'video')}" for name, n in content["splits"].items()
    )
    rows = [
        ("videos", f"{videos['accepted']} of {videos['all']} used"),
        ("segments", f"{content['segments']} ({split})"),
        *_group_row(content["groups"]),
        ("frames", f"{content['frames']} ({length}), crops {content['crop_width']} px wide"),
        ("landmarks", ", ".join(f"{name} ({console.count(n, 'video')})" for name, n in content["landmarks"].items())),
        ("features", ", ".join(f"{name} ({dim})" for name, dim in content["extractors"].items())),
    ]
    lines = console.columns(rows)
    lines += _member_lines(content["members"])
    lines += _score_lines(content.get("scores", {}))
    if len(content["funnel"]) > 1:
        lines += ["segments left after each rule:", *funnel_lines(content["funnel"])]
    if content["stages"]:
        seconds = (f"{stage} {console.duration(value)}" for stage, value in content["stages"].items())
        lines.append(f"processing time: {', '.join(seconds)}")
    if content["reasons"]:
        lines.append(f"not used: {videos['rejected']} rejected, {videos['failed']} failed")
    lines += reason_lines(content["reasons"])
    if content["lacking"]:
        lines.append(
            "features that could not be added (run the same `lawdnet build` again, or `lawdnet select --has`):"
        )
    return lines + reason_lines(content["lacking"])


def _group_row(groups: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the row that shows how groups are split; none if no video is in a group."""
    if not groups["named"]:
        return []
    alone = f"; {console.count(groups['alone'], 'video')} in no group" if groups["alone"] else ""
    return [("groups", f"{groups['all']} (train {groups['train']}, val {groups['val']}{alone})")]


def _member_lines(members: Mapping[str, Sequence[str]]) -> list[str]:
    lines = []
    for name, paths in list(members.items())[:GROUPS]:
        more = f", … and {len(paths) - EXAMPLES} more" if len(paths) > EXAMPLES else ""
        lines.append(f"  {name[:40]}: {', '.join(paths[:EXAMPLES])}{more}")
    return lines + ([f"  … and {len(members) - GROUPS} more groups"] if len(members) > GROUPS else [])


def _score_lines(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    measured = {name: marks for name, marks in scores.items() if len(marks) > 1}
    if not measured:
        return []
    heads = [mark for mark in next(iter(measured.values())) if mark != "not_measured"]
    table = [["score", *heads]]
    for name, marks in measured.items():
        note = f"  ({marks['not_measured']} not measured)" if marks["not_measured"] else ""
        table.append([name, *(f"{marks[head]:.4g}" for head in heads), note])
    return _aligned(table)


def funnel_lines(funnel: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line per rule of a funnel: how many segments it dropped, and how many were left."""
    table = [["rule", "dropped", "left"]]
    for step in funnel:
        came = step["left"] + step["dropped"]
        missing = step.get("not_measured", 0)
        share = f" ({100 * step['dropped'] / came:.1f} %)" if came else ""
        note = f"  {missing} of them not measured" if missing else ""
        dropped = f"{step['dropped']}{share}" if step["rule"] else ""
        table.append([step["rule"] or "measured", dropped, str(step["left"]), note])
    return _aligned(table)


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Align rows below a header: the first column left, numbers right, and a note after the last column."""
    columns = len(table[0])
    widths = [max(len(row[i]) for row in table) for i in range(columns)]
    lines = []
    for first, *rest in table:
        cells = (f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=False))
        lines.append(f"  {first:<{widths[0]}}  {'  '.join(cells)}{''.join(rest[columns - 1 :])}".rstrip())
    return lines


if __name__ == "__main__":
    console.run(inspect)
