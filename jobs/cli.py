"""The `lawdnet` program, which has every command of `jobs/`."""

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
from jobs.serve import serve
from jobs.submit import Cluster, Command
from jobs.synth import synth
from jobs.template import template
from jobs.train import train
from jobs.upgrade import upgrade
from jobs.weights import weights

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
    upgrade,
    train,
    report,
    infer,
    template,
    render,
    serve,
    evaluate,
    compare,
    export,
    weights,
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
            help="URL of a Ray cluster's job server: run the command there as a job and follow its log. Without it, "
            "the command runs on this machine.",
            show_default=False,
        ),
    ] = "",
    runtime_env: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --address: a Ray runtime environment that installs what the machines lack, such as "
            "jobs/runtime_env.yaml.",
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="With --address: submit the job, print its id, and do not follow it.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train a lip-sync generator on your own talking-head videos.

    Start with `lawdnet quickstart`. For your own videos: build, inspect, select, train, infer.
    On a cluster: the same commands after `lawdnet --address http://HEAD:8265`.
    """
    with failures(debug=False):
        if address:
            context.obj = Cluster(address, runtime_env, detach)
        elif runtime_env or detach:
            raise WrongUsage("--runtime-env and --detach need a cluster; add --address http://HEAD:8265")


def main() -> None:
    """Run the program. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped."""
    app()


if __name__ == "__main__":
    main()
