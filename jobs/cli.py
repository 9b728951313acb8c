"""The `lawdnet` command: every job under one name."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.build_dataset import build
from jobs.compare import compare
from jobs.console import command
from jobs.doctor import doctor
from jobs.evaluate import evaluate
from jobs.export import export
from jobs.export_segments import export_segments
from jobs.import_lawdnet import import_lawdnet
from jobs.infer import infer
from jobs.inspect_dataset import inspect
from jobs.merge import merge
from jobs.quickstart import quickstart
from jobs.report import report
from jobs.select_dataset import select
from jobs.synth import synth
from jobs.train import train

app = typer.Typer(
    name="lawdnet",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    add_completion=False,
)
for function in (
    quickstart,
    synth,
    build,
    inspect,
    select,
    merge,
    import_lawdnet,
    export_segments,
    train,
    report,
    infer,
    evaluate,
    compare,
    export,
    doctor,
):
    app.command()(command(function))


def _version(wanted: bool) -> None:
    if wanted:
        from lawdnet import __version__

        typer.echo(f"lawdnet {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """From a folder of talking-head videos to a lip-sync generator.

    Start with `lawdnet quickstart`. With your own videos: build, inspect, select, train, infer.
    """


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped."""
    app()
