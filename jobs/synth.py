"""Draws a corpus of talking heads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs import console, options


def synth(
    out: Annotated[Path, typer.Argument(help="Folder for the videos and their landmark CSV files.")],
    videos: Annotated[int, typer.Option(min=1, help="Number of people, one video each.")] = 8,
    seconds: Annotated[float, typer.Option(min=0.04, max=3600, help="Length of each video in seconds.")] = 6.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same videos.")] = 0,
    as_json: options.Json = False,
) -> None:
    """Draw talking heads with synthesised speech and exact landmarks, to try lawdnet without any data.

    Example: `lawdnet synth corpus --videos 8 --seconds 6`, then `lawdnet build corpus --out dataset`.
    """
    from lawdnet.synthetic import write_corpus

    paths = write_corpus(out, videos=videos, seconds=seconds, seed=seed)
    content = {"out": str(out), "videos": len(paths), "seconds": seconds, "seed": seed}
    lines = [
        f"drew {console.count(len(paths), 'video')} of {seconds:g} s in {out}",
        f"next: lawdnet build {out} --out DATASET",
    ]
    console.result(content, lines, as_json)


if __name__ == "__main__":
    console.run(synth)
