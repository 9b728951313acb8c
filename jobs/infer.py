"""Lip-syncs one video to one audio file."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs import console, options


def infer(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(help="A run, a stage or checkpoint folder in it, or a published .pth file.", show_default=False),
    ] = None,
    *,
    video: Annotated[Path | None, typer.Option(help="Video of the person. Never changed.", show_default=False)] = None,
    audio: Annotated[Path, typer.Option(help="What to say: an audio file, or a video with audio.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="O.mp4", help="Video file to write.", show_default=False)],
    url: Annotated[
        str,
        typer.Option(
            metavar="http://HOST:8000",
            help="Render on a `lawdnet serve` instead, without a checkpoint here; its key is in LAWDNET_API_KEY.",
            show_default=False,
        ),
    ] = "",
    template: Annotated[
        str, typer.Option(metavar="NAME", help="With --url: a template of the server instead of --video.")
    ] = "",
    landmarks: options.Landmarks = "auto",
    face: options.Face = "largest",
    weights_dir: options.WeightsDir = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Lip-sync a video to an audio file. The result is as long as the audio.

    Example: `lawdnet infer run --video anna.mp4 --audio hello.wav --out anna-hello.mp4`
    """
    _check_usage(checkpoint, video, url, template)
    for path in filter(None, (checkpoint, video, audio)):
        console.existing(path)
    if url:
        made = _remote(url, video, template, face, audio, out)
    else:
        assert checkpoint
        assert video
        made = _local(checkpoint, video, audio, out, landmarks, face, weights_dir, device)
    content = {"out": str(out), **made}
    rate = f"{console.duration(made['seconds'])} ({made['fps']:.1f} frames/s)"
    lines = [f"wrote {out}: {made['frames']} frames in {rate}"]
    if made["passed_through"]:
        lines.append(f"  without a face, left unchanged: {console.count(made['passed_through'], 'frame')}")
    console.result(content, lines, as_json)


def _check_usage(checkpoint: Path | None, video: Path | None, url: str, template: str) -> None:
    if url and checkpoint:
        raise console.WrongUsage("the server of --url has its own checkpoint; leave it out")
    if url and bool(video) == bool(template):
        raise console.WrongUsage("with --url give either --video, which is sent there, or --template")
    if not url and (template or checkpoint is None or video is None):
        raise console.WrongUsage("give a checkpoint and --video; or --url with --video or --template")


def _local(
    checkpoint: Path,
    video: Path,
    audio: Path,
    out: Path,
    landmarks: str,
    face: str,
    weights_dir: Path | None,
    device: str,
) -> dict[str, Any]:
    from lawdnet.face.track import one_face
    from lawdnet.inference.engine import Engine
    from lawdnet.landmarks import source_for

    with console.parsing_options():
        one_face(face)
        source = source_for(video, landmarks, weights_dir)
    engine = Engine(checkpoint, device=device, weights_dir=weights_dir)
    with console.Meter("infer", "frames") as meter:
        prepared = engine.prepare(video, source, face=face)
        made = engine.render(prepared, audio, out, on_progress=lambda done, total: _show(meter, done, total))
    return dataclasses.asdict(made)


def _remote(url: str, video: Path | None, template: str, face: str, audio: Path, out: Path) -> dict[str, Any]:
    from lawdnet.serving.client import Client

    if out.suffix.lower() != ".mp4":
        raise ValueError(f"{out}: the result is an MP4; name it .mp4")
    with Client(url, key=os.environ.get("LAWDNET_API_KEY", "")) as client, console.Meter("infer", "frames") as meter:
        name = client.add_template(video, face=face) if video else template
        return client.render(name, audio, out, on_progress=lambda done, total: _show(meter, done, total))


def _show(meter: console.Meter, done: int, total: int) -> None:
    meter.update(done, total, note=f"{done / max(meter.seconds, 1e-3):.1f} frames/s")


if __name__ == "__main__":
    console.run(infer)
