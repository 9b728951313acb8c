"""`lawdnet infer --url`: renders on a server, without a checkpoint on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs import console

Url = Annotated[
    str,
    typer.Option(
        metavar="http://HOST:8000",
        help="Render on a `lawdnet serve` instead, without a checkpoint here; its key is in LAWDNET_API_KEY.",
        show_default=False,
    ),
]
Template = Annotated[str, typer.Option(metavar="NAME", help="With --url: a template of the server instead of --video.")]


def check_usage(checkpoint: object, video: object, url: str, template: str) -> None:
    """Check which of `infer`'s options are given together.

    Raises:
        WrongUsage: they do not fit.
    """
    if url and checkpoint:
        raise console.WrongUsage("the server of --url has its own checkpoint; leave it out")
    if url and bool(video) == bool(template):
        raise console.WrongUsage("with --url give either --video, which is sent there, or --template")
    if not url and (template or not checkpoint or not video):
        raise console.WrongUsage("give a checkpoint and --video; or --url with --video or --template")


def infer(url: str, video: Path | None, template: str, face: str, audio: Path, out: Path, as_json: bool) -> None:
    """Render on a server, and write the video here.

    Raises:
        ValueError: the server cannot do it, or does not answer.
    """
    from lawdnet.serving.client import Client

    for path in filter(None, (video, audio)):
        console.existing(path)
    if out.suffix.lower() != ".mp4":
        raise ValueError(f"{out}: the result is an MP4; name it .mp4")
    with Client(url, key=os.environ.get("LAWDNET_API_KEY", "")) as client, console.Meter("infer", "frames") as meter:
        name = client.add_template(video, face=face) if video else template
        made = client.render(name, audio, out, on_progress=meter.update)
    result(out, made, as_json)


def result(out: Path | str, made: dict[str, Any], as_json: bool) -> None:
    """Say what was rendered, here or there."""
    rate = f"{console.duration(made['seconds'])} ({made['fps']:.1f} frames/s)"
    lines = [f"wrote {out}: {made['frames']} frames in {rate}"]
    if made["passed_through"]:
        lines.append(f"  without a face, left unchanged: {console.count(made['passed_through'], 'frame')}")
    console.result({"out": str(out), **made}, lines, as_json)
