"""Command lines in examples and manifests, read by the commands themselves without running any."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import typer

from jobs.console import command


def parse(app: typer.Typer, words: Sequence[str]) -> str:
    """The command that `lawdnet WORDS` would run.

    Raises:
        click.UsageError: there is no such command, or it does not take these words.
    """
    group: Any = typer.main.get_command(app)
    context = group.make_context("lawdnet", list(words), resilient_parsing=False)
    name, found, rest = group.resolve_command(context, [*context._protected_args, *context.args])
    found.make_context(name, rest, parent=context)
    return str(name)


def parse_module(line: str) -> dict[str, Any]:
    """The arguments of a line `python -m jobs.…`, as its command takes them.

    Raises:
        click.UsageError: it does not take them.
    """
    python, flag, module, *words = shlex.split(line)
    assert (python, flag) == ("python", "-m"), line
    function: Callable[..., None] = getattr(import_module(module), module.removeprefix("jobs.").split("_")[0])
    app = typer.Typer()
    app.command()(command(function))
    found: Any = typer.main.get_command(app)
    params: dict[str, Any] = found.make_context(module, words).params
    return params
