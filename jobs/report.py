"""Writes an HTML report about a training run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from jobs import console, options


def report(
    run: Annotated[
        str,
        typer.Argument(help="A run of `lawdnet train`, finished or not: a folder, or an s3://… or gs://… URI."),
    ],
    out: Annotated[
        str, typer.Option(metavar="FILE", help="HTML file to write; RUN/report.html if empty.", show_default=False)
    ] = "",
    as_json: options.Json = False,
) -> None:
    """Show how a training run went: curves, validation, images, lineage, time, alarms, and what to do next.

    The page is a single file. It also works for a run in progress.

    Example: `lawdnet report run --out report.html`
    """
    from lawdnet.report import run_report
    from lawdnet.storage import locate

    folder = locate(run)
    page = locate(out) if out else folder / "report.html"
    content = {"run": run, **asdict(run_report(folder, page)), "report": str(page)}
    lines = [run, *console.columns([(name, _line(stage)) for name, stage in content["stages"].items()])]
    lines += [f"next: {text}" for text in content["advice"]]
    console.result(content, [*lines, f"report: {page}"], as_json)


def _line(stage: dict[str, Any]) -> str:
    """Return a stage's state and its best metrics, of those that may choose a checkpoint."""
    from lawdnet.training.options import DEFAULT_BEST

    of = f"{stage['epochs']} of " if stage["of"] else ""
    parts = [stage["state"], of + console.count(stage["of"] or stage["epochs"], "epoch")]
    if stage["seconds"]:
        parts.append(console.duration(stage["seconds"]))
    parts += [
        f"best {name} {best['value']:.4g} (epoch {best['epoch']})"
        for name, best in stage["best"].items()
        if name in DEFAULT_BEST
    ]
    parts += [console.count(len(stage["alarms"]), "alarm")] if stage["alarms"] else []
    return ", ".join(parts)


if __name__ == "__main__":
    console.run(report)
