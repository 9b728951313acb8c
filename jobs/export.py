"""Writes a checkpoint in the format of the published code."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs import console, options
from jobs.evaluate import find_network


def export(
    run: Annotated[
        str, typer.Argument(help="A run, or a stage or checkpoint folder in it; also as an s3://… or gs://… URI.")
    ],
    out: Annotated[str, typer.Option(metavar="FILE.pth", help="File or URI to write.", show_default=False)],
    module: Annotated[
        bool,
        typer.Option(
            "--module/--no-module", help="Prefix parameter names with module., as the published inference expects."
        ),
    ] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Write the file even if the published code cannot use it unchanged.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Write a trained network in the format of the published code (LawDNet 2024).

    The published code reads its warp field in the wrong order, and its weights were trained that way. Weights trained
    here expect the right order: the unchanged published code draws garbage with them, so they need --force and a
    repaired copy of that code. A network that was fine-tuned from a published file keeps that file's order and needs
    neither. `lawdnet infer` reads both, since the file says which order it uses.

    Example: `lawdnet export run --out netG_model_epoch_170.pth`
    """
    from lawdnet.storage import atomic, locate

    with console.parsing_options():
        source, target = locate(run), locate(out)
        if target.suffix != ".pth" or target.is_dir():
            raise ValueError(f"{out}: must be a file name that ends in .pth")
    console.existing(source)
    import torch

    from lawdnet.models.export import incompatibilities, to_legacy
    from lawdnet.models.export import options as legacy_options
    from lawdnet.models.saved import read_meta

    folder = find_network(source)
    problems = incompatibilities(folder)
    meta = read_meta(folder)
    if problems and not force:
        reasons = "; ".join(problems)
        raise ValueError(f"{folder}: the published code cannot use this network: {reasons}; --force writes it anyway")
    content = to_legacy(folder, prefix="module." if module else "")
    with atomic(target) as temporary:
        torch.save(content, temporary)
    networks = {name: sum(value.numel() for value in state.values()) for name, state in content["state_dict"].items()}
    needed = legacy_options(folder)
    sizes = [(name, f"{numbers / 1e6:.1f} M parameters") for name, numbers in networks.items()]
    lines = [f"wrote {out}: {meta['stage']}, epoch {meta['epoch']}", *console.columns(sizes)]
    lines += [f"warning: {problem}" for problem in problems]
    if needed:
        lines.append(f"start the published code with {' '.join(needed)}")
    result = {
        "out": str(target),
        "checkpoint": str(folder),
        "stage": meta["stage"],
        "epoch": meta["epoch"],
        "networks": networks,
        "problems": problems,
        "options": needed,
    }
    console.result(result, lines, as_json)


if __name__ == "__main__":
    console.run(export)
