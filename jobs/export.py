"""Writes a checkpoint as a file of the published code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs import console
from jobs.evaluate import find_network


def export(
    run: Annotated[Path, typer.Argument(help="A run, or a stage or epoch folder in it.")],
    out: Annotated[Path, typer.Option(metavar="FILE.pth", help="The file to write.", show_default=False)],
    module: Annotated[
        bool, typer.Option("--module/--no-module", help="Names begin with module., as the published inference expects.")
    ] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Write even what the published code cannot use as it is.")
    ] = False,
    as_json: console.Json = False,
) -> None:
    """Write a trained network in the format of the published code (LawDNet 2024).

    That code reads its warp's field in a wrong order, and weights trained there have learnt to live with it. Weights
    trained here have not: the published code as it is draws garbage with them, so they are only written with --force,
    for code in which that is repaired. What was fine-tuned from a published file keeps its warp and goes back as it is.
    `lawdnet infer` reads either kind, since the file says which it is.

    Example: `lawdnet export run --out netG_model_epoch_170.pth`
    """
    console.existing(run)
    with console.options():
        if out.suffix != ".pth" or out.is_dir():
            raise ValueError(f"{out}: name a file that ends in .pth")
    import torch

    from lawdnet.models.export import incompatibilities, options, to_legacy
    from lawdnet.models.saved import read_meta
    from lawdnet.storage import atomic

    folder = find_network(run)
    problems, meta = incompatibilities(folder), read_meta(folder)
    if problems and not force:
        reasons = "; ".join(problems)
        raise ValueError(f"{folder}: the published code cannot use this network: {reasons}; --force writes it anyway")
    content = to_legacy(folder, prefix="module." if module else "")
    with atomic(out) as temporary:
        torch.save(content, temporary)
    networks = {name: sum(value.numel() for value in state.values()) for name, state in content["state_dict"].items()}
    needed = options(folder)
    sizes = [(name, f"{numbers / 1e6:.1f} M numbers") for name, numbers in networks.items()]
    lines = [f"wrote {out}: {meta['stage']}, epoch {meta['epoch']}", *console.columns(sizes)]
    lines += [f"warning: {problem}" for problem in problems]
    if needed:
        lines.append(f"start the published code with {' '.join(needed)}")
    result = {"out": str(out), "checkpoint": str(folder), "stage": meta["stage"], "epoch": meta["epoch"],
              "networks": networks, "problems": problems, "options": needed}  # fmt: skip
    console.result(result, lines, as_json)


if __name__ == "__main__":
    console.run(export)
