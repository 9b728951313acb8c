"""Makes the person of a video say the words of a sound file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from jobs import console


def infer(
    checkpoint: Annotated[Path, typer.Argument(help="A run, or a stage or epoch folder in it.")],
    video: Annotated[Path, typer.Option(help="The person. Never changed.", show_default=False)],
    audio: Annotated[Path, typer.Option(help="What to say: any file with sound.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="O.mp4", help="The video to write.", show_default=False)],
    landmarks: Annotated[
        str,
        typer.Option(
            help="openface, face-alignment, mediapipe, or auto: the CSV beside the video, else what is there."
        ),
    ] = "auto",
    face: Annotated[str, typer.Option(help="Of several people: largest, or a number from 0.")] = "largest",
    weights_dir: Annotated[Path | None, typer.Option(help="Folder of weights for landmarks and features.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: console.Json = False,
) -> None:
    """Lip-sync a video to a sound: the picture of one, the words of the other, as long as the sound.

    Example: `lawdnet infer run --video anna.mp4 --audio hello.wav --out anna-hello.mp4`
    """
    for path in (checkpoint, video, audio):
        console.existing(path)
    from lawdnet.face.track import one_face
    from lawdnet.inference.engine import Engine
    from lawdnet.landmarks import source_for

    with console.options():
        one_face(face)
        source = source_for(video, landmarks, weights_dir)
    engine = Engine(checkpoint, device=device, weights_dir=weights_dir)
    with console.Meter("infer", "frames") as meter:
        template = engine.prepare(video, source, face=face)
        made = engine.render(template, audio, out, on_progress=lambda done, total: _show(meter, done, total))
    content = {"out": str(out), **dataclasses.asdict(made)}
    lines = [f"wrote {out}: {made.frames} frames in {console.duration(made.seconds)} ({made.fps:.1f} frames/s)"]
    if made.passed_through:
        lines.append(f"  as they were, for want of a face: {console.count(made.passed_through, 'frame')}")
    console.result(content, lines, as_json)


def _show(meter: console.Meter, done: int, total: int) -> None:
    meter.update(done, total, note=f"{done / max(meter.seconds, 1e-3):.1f} frames/s")


if __name__ == "__main__":
    console.run(infer)
