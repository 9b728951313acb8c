"""Serves lip-synced videos over HTTP, with a page for people."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from jobs import console, options
from lawdnet.install import install_hint

NEEDS = ("fastapi", "uvicorn", "python_multipart")


def serve(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A run, a stage or checkpoint folder in it, or a published .pth: a path, or an s3://… or gs://… URI."
        ),
    ],
    template: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=VIDEO",
            help="A person who can speak, under a name; may be repeated, the first is the default. Never changed.",
            show_default=False,
        ),
    ] = [],  # noqa: B006 typer copies it
    model: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=CHECKPOINT",
            help="Another checkpoint that clients may ask for by its name; may be repeated.",
            show_default=False,
        ),
    ] = [],  # noqa: B006 typer copies it
    host: Annotated[str, typer.Option(help="Address to listen at; other machines need a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 takes a free one.")] = 8000,
    data: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for uploads, results and the record of all jobs.")
    ] = Path("lawdnet-serve"),
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keys that clients must send, one per line; or one key in the variable LAWDNET_API_KEY.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        list[str],
        typer.Option(
            metavar="HOST",
            help="A name that a proxy on this machine calls the server by; may be repeated.",
            show_default=False,
        ),
    ] = [],  # noqa: B006 typer copies it
    workers: Annotated[int, typer.Option(min=1, help="Videos that are rendered at the same time.")] = 1,
    landmarks: options.Landmarks = "auto",
    weights_dir: options.WeightsDir = None,
    device: options.Device = "auto",
    settings: options.Settings = [],  # noqa: B006 typer copies it
) -> None:
    """Serve lip-synced videos: an HTTP API, and a page for people at its address.

    Jobs, results and templates are kept in --data: after a restart finished videos are still there, and unfinished ones
    are rendered. --set changes a limit, such as audio_seconds. Ctrl-C ends the server.

    Example: `lawdnet serve run --template anna=anna.mp4`
    """
    if missing := [package for package in NEEDS if importlib.util.find_spec(package) is None]:
        raise ValueError(f"serve needs {', '.join(missing)}; {install_hint('serve')}")
    from lawdnet.settings import parse_setting
    from pipelines.serve.config import ServeConfig, parse_limits, read_keys
    from pipelines.serve.local import access_for
    from pipelines.serve.local import serve as run

    with console.parsing_options():
        access = access_for(host, read_keys(api_key_file), tuple(name))
        config = ServeConfig(
            models={"default": checkpoint} | pairs(model, "--model"),
            data=str(data),
            templates=pairs(template, "--template"),
            landmarks=landmarks,
            weights_dir=str(weights_dir) if weights_dir else None,
            device=device,
            workers=workers,
            limits=parse_limits(dict(map(parse_setting, settings))),
        )
    run(config, access, host=host, port=port, on_ready=lambda url: console.say(f"serving at {url} (Ctrl-C ends it)"))


def pairs(words: list[str], option: str) -> dict[str, str]:
    """Options of the form NAME=VALUE.

    Raises:
        ValueError: one has another form, or a name is given twice.
    """
    found: dict[str, str] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not (name and sign and value):
            raise ValueError(f"{option} {word}: write NAME=VALUE")
        if name in found:
            raise ValueError(f"{option} {name}: given twice")
        found[name] = value
    return found


if __name__ == "__main__":
    console.run(serve)
