"""Lip-syncs one video to one audio file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from jobs import console, options


def infer(
    checkpoint: options.Checkpoint,
    video: Annotated[Path, typer.Option(help="Video of the person. Never changed.", show_default=False)],
    audio: Annotated[Path, typer.Option(help="What to say: an audio file, or a video with audio.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="O.mp4", help="Video file to write.", show_default=False)],
    landmarks: options.Landmarks = "auto",
    face: options.Face = "largest",
    weights_dir: options.WeightsDir = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Lip-sync a video to an audio file. The result is as long as the audio.

    A network knows the kind of faces that it was trained on: that of the quickstart knows drawn heads, and smears the
    mouth of a real person.

    Example: `lawdnet infer run --video anna.mp4 --audio hello.wav --out anna-hello.mp4`
    """
    for path in (checkpoint, video, audio):
        console.existing(path)
    from lawdnet.face.track import one_face
    from lawdnet.inference.engine import Engine
    from lawdnet.landmarks import source_for

    with console.parsing_options():
        one_face(face)
        weights = console.located(weights_dir)
        source = source_for(video, landmarks, weights)
    engine = Engine(checkpoint, device=device, weights_dir=weights)
    with console.Meter("infer", "frames") as meter:
        template = engine.prepare(video, source, face=face)
        made = engine.render(template, audio, out, on_progress=lambda done, total: _show(meter, done, total))
    content = {"out": str(out), **dataclasses.asdict(made)}
    lines = [f"wrote {out}: {made.frames} frames in {console.duration(made.seconds)} ({made.fps:.1f} frames/s)"]
    if made.passed_through:
        lines.append(f"  without a face, left unchanged: {console.count(made.passed_through, 'frame')}")
    console.result(content, lines, as_json)


def _show(meter: console.Meter, done: int, total: int) -> None:
    meter.update(done, total, note=f"{done / max(meter.seconds, 1e-3):.1f} frames/s")


if __name__ == "__main__":
    console.run(infer)
