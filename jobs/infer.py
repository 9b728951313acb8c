"""Lip-syncs one video to one audio file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from jobs import console, options, remote


def infer(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(help="A run, a stage or checkpoint folder in it, or a published .pth file.", show_default=False),
    ] = None,
    *,
    video: Annotated[Path | None, typer.Option(help="Video of the person. Never changed.", show_default=False)] = None,
    audio: Annotated[Path, typer.Option(help="What to say: an audio file, or a video with audio.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="O.mp4", help="Video file to write.", show_default=False)],
    landmarks: options.Landmarks = "auto",
    face: options.Face = "largest",
    weights_dir: options.WeightsDir = None,
    device: options.Device = "auto",
    url: remote.Url = "",
    template: remote.Template = "",
    as_json: options.Json = False,
) -> None:
    """Lip-sync a video to an audio file. The result is as long as the audio.

    Example: `lawdnet infer run --video anna.mp4 --audio hello.wav --out anna-hello.mp4`
    """
    remote.check_usage(checkpoint, video, url, template)
    if url:
        remote.infer(url, video, template, face, audio, out, as_json)
        return
    assert checkpoint
    assert video
    for path in (checkpoint, video, audio):
        console.existing(path)
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
    remote.result(out, dataclasses.asdict(made), as_json)


def _show(meter: console.Meter, done: int, total: int) -> None:
    meter.update(done, total, note=f"{done / max(meter.seconds, 1e-3):.1f} frames/s")


if __name__ == "__main__":
    console.run(infer)
