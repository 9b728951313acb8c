"""Writes a page about a training run."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jobs import console


def report(
    run: Annotated[str, typer.Argument(help="What `lawdnet train --out` wrote or is writing: a folder, or s3://….")],
    out: Annotated[
        str, typer.Option(metavar="FILE", help="The HTML file; without it RUN/report.html.", show_default=False)
    ] = "",
    as_json: console.Json = False,
) -> None:
    """Show how a training run went: curves, validation, pictures, lineage, time, alarms, and what to do next.

    The page is one file that needs nothing else. A run in progress can be looked at as well.

    Example: `lawdnet report run --out report.html`
    """
    from lawdnet.report import run_report
    from lawdnet.storage import locate

    folder = locate(run)
    page = locate(out) if out else folder / "report.html"
    content = {"run": run, **run_report(folder, page), "report": str(page)}
    lines = [run, *console.columns([(name, _line(stage)) for name, stage in content["stages"].items()])]
    lines += [f"next: {text}" for text in content["advice"]]
    console.result(content, [*lines, f"report: {page}"], as_json)


def _line(stage: dict[str, Any]) -> str:
    """Its state, and those of its best figures that a mouth which ignores the sound could not have."""
    from lawdnet.training.gates import MEASURES

    of = f"{stage['epochs']} of " if stage["of"] else ""
    parts = [stage["state"], of + console.count(stage["of"] or stage["epochs"], "epoch")]
    if stage["seconds"]:
        parts.append(console.duration(stage["seconds"]))
    parts += [f"best {name} {best['value']:.4g} (epoch {best['epoch']})" for name, best in stage["best"].items()
              if MEASURES[name].needs_sound]  # fmt: skip
    parts += [console.count(len(stage["alarms"]), "alarm")] if stage["alarms"] else []
    return ", ".join(parts)


if __name__ == "__main__":
    console.run(report)
