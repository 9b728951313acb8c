"""Runs everything once on drawn people, to show that an installation works from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs import console, options


def quickstart(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for all results.")] = Path("quickstart"),
    as_json: options.Json = False,
) -> None:
    """Draw people, build a dataset, train a small generator, lip-sync an unseen person, and write report.html.

    Needs no data, GPU or network. Example: `lawdnet quickstart`, then open quickstart/report.html.
    """
    from pipelines.workflows.quickstart import quickstart as run_quickstart

    steps = _Steps()
    content = run_quickstart(out, on_event=steps)
    console.result(
        content, console.columns([(name.replace("_", " "), _text(v)) for name, v in content.items()]), as_json
    )


class _Steps:
    """Prints each event with the time since the start."""

    def __init__(self) -> None:
        self.meter = console.Meter("quickstart", "steps")

    def __call__(self, text: str) -> None:
        console.say(f"[{console.duration(self.meter.seconds):>12}] {text}")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(entry)}" for name, entry in value.items())
    return str(value)


if __name__ == "__main__":
    console.run(quickstart)
