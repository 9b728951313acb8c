"""Merges datasets."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Annotated

import typer

from jobs import console, options

SHOWN = 5
"""Most videos listed by name in each line of the summary."""


def merge(
    datasets: Annotated[list[str], typer.Argument(metavar="DATASET…", help="At least two datasets. Never changed.")],
    out: options.LocalDataset,
    as_json: options.Json = False,
) -> None:
    """Merge several datasets into one that holds every video once, in the split (train or val) it was in.

    A group of `lawdnet build --group-by` that several datasets have is on the side that it has in the first of them.

    A video that several datasets hold is taken from the one named first. All must have the same crop size and features.
    Segments that rules dropped stay dropped; a score that a dataset did not measure stays empty.

    Example: `lawdnet merge hdtf bilibili --out all`
    """
    if len(datasets) < 2:
        raise console.WrongUsage("merge: give at least two datasets")
    from lawdnet.data.merge import merge as merge_datasets
    from lawdnet.data.transfer import local_folder
    from lawdnet.storage import locate

    folder = local_folder(out)
    with console.Meter("merge", "files") as meter:
        merged = merge_datasets([locate(name) for name in datasets], folder, on_file=meter.update)
        seconds = meter.seconds
    content = {"dataset": out, "seconds": round(seconds, 3), **dataclasses.asdict(merged)}
    taken = f"{console.count(merged.videos, 'video')} with {console.count(merged.segments, 'segment')}"
    lines = [f"merged {len(datasets)} datasets into {out} in {console.duration(seconds)}: {taken}"]
    lines += _named("in several datasets, taken from the first", merged.twins)
    lines += _named("in another split there", merged.changed_sides)
    lines += _named("renamed", [f"{old} → {new}" for old, new in merged.renamed.items()])
    console.result(content, [*lines, f"next: lawdnet inspect {shlex.quote(out)}"], as_json)


def _named(title: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = [f"      … and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return [f"  {len(names)} {title}", *(f"      {name}" for name in names[:SHOWN]), *more]


if __name__ == "__main__":
    console.run(merge)
