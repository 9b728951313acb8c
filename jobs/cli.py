"""The `lawdnet` command: every job under one name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.build_dataset import build
from jobs.compare import compare
from jobs.console import WrongUsage, command, failures
from jobs.curriculum import curriculum
from jobs.doctor import doctor
from jobs.evaluate import evaluate
from jobs.export import export
from jobs.export_segments import export_segments
from jobs.import_lawdnet import import_lawdnet
from jobs.infer import infer
from jobs.inspect_dataset import inspect
from jobs.merge import merge
from jobs.quickstart import quickstart
from jobs.render import render
from jobs.report import report
from jobs.select_dataset import select
from jobs.submit import Cluster, Command
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
    curriculum,
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
    render,
    evaluate,
    compare,
    export,
    doctor,
):
    app.command(cls=Command)(command(function))


def _version(wanted: bool) -> None:
    if wanted:
        from lawdnet import __version__

        typer.echo(f"lawdnet {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    context: typer.Context,
    address: Annotated[
        str,
        typer.Option(
            envvar="LAWDNET_ADDRESS",
            metavar="http://HEAD:8265",
            help="Run the command as a job of this Ray cluster and follow it; without it, on this machine.",
            show_default=False,
        ),
    ] = "",
    runtime_env: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="With --address: what the machines lack, such as the project's jobs/runtime_env.yaml."
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="With --address: print the job's id and leave it.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """From a folder of talking-head videos to a lip-sync generator.

    Start with `lawdnet quickstart`. With your own videos: build, inspect, select, train, infer.
    On a cluster: the same commands after `lawdnet --address http://HEAD:8265`.
    """
    with failures(debug=False):
        if address:
            context.obj = Cluster(address, runtime_env, detach)
        elif runtime_env or detach:
            raise WrongUsage("--runtime-env and --detach are for jobs; add --address http://HEAD:8265")


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped."""
    app()
