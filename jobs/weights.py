"""Lists and fetches the published weights of networks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs import console, options

if TYPE_CHECKING:
    from lawdnet.weights import Weights


def weights(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]…", help="Weights to fetch; without a name, all are listed.")
    ] = None,
    show_list: Annotated[
        bool, typer.Option("--list", help="List what there is, where it comes from, and whether it is here.")
    ] = False,
    weights_dir: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder to fetch into, instead of the cache.", show_default=False),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Fetch published weights of networks, or list them.

    Commands fetch what they need at first use. Use this to prepare a machine without internet, or to replace a damaged
    file. A file whose SHA-256 is known is checked against it.

    Example: `lawdnet weights face_landmarker`
    """
    from lawdnet.fetch import FetchError
    from lawdnet.weights import TABLE, fetch, published

    with console.parsing_options():
        wanted = [published(name) for name in names or []]
    try:
        lines = [f"{entry.name}: {fetch(entry, weights_dir)}" for entry in wanted]
    except FetchError as error:
        raise ValueError(str(error)) from error
    rows = [describe(entry, weights_dir) for entry in wanted or TABLE]
    if show_list or not wanted:
        lines += console.columns([(row["name"], _line(row)) for row in rows])
    console.result(rows, lines, as_json)


def describe(entry: Weights, weights_dir: Path | None = None) -> dict[str, Any]:
    """Return an entry of the table, with where its file is, or what is wrong with it."""
    from lawdnet.weights import find_local

    path, problem = None, "not here"
    try:
        path = find_local(entry.file, weights_dir)
    except ValueError as error:
        problem = str(error)
    row = dataclasses.asdict(entry) | {"sources": [str(source) for source in entry.sources]}
    return row | {"path": str(path) if path else None, "problem": None if path else problem}


def _line(row: dict[str, Any]) -> str:
    size = f"{row['size'] / 1e6:.1f} MB, " if row["size"] else ""
    where = row["path"] or f"{row['problem']}; from {row['sources'][0]}"
    return f"{row['purpose']} ({size}{row['licence']}): {where}"


if __name__ == "__main__":
    console.run(weights)
