"""Lip-syncs one video to one audio file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs import console, options, remote

if TYPE_CHECKING:
    from lawdnet.inference.engine import Engine
    from lawdnet.inference.template import Template
    from lawdnet.storage import Location

DEFAULT_LANDMARKS, DEFAULT_FACE = "auto", "largest"


def infer(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="[CHECKPOINT]",
            help="A run, a stage or checkpoint folder in it, or a published .pth file.",
            show_default=False,
        ),
    ] = "",
    *,
    video_location: Annotated[
        str,
        typer.Option(
            "--video",
            metavar="VIDEO|TEMPLATE",
            help="Video of the person, or a file made of it by `lawdnet template`. Never changed.",
            show_default=False,
        ),
    ] = "",
    audio: Annotated[str, typer.Option(help="What to say: an audio file, or a video with audio.", show_default=False)],
    out: Annotated[str, typer.Option(metavar="O.mp4", help="Video file to write.", show_default=False)],
    landmarks: options.Landmarks = DEFAULT_LANDMARKS,
    face: options.Face = DEFAULT_FACE,
    region: Annotated[
        str, typer.Option(help="What is changed: lower-face, or mouth, which leaves cheeks and jaw as they are.")
    ] = "lower-face",
    match_colour: Annotated[
        bool, typer.Option(help="Give the generated part the colour that the video has around it.")
    ] = True,
    still_silence: Annotated[
        bool, typer.Option(help="Show the mouth at rest where the audio is silent; it is drawn once per frame.")
    ] = False,
    weights_dir: options.WeightsDir = None,
    device: options.Device = "auto",
    url: remote.Url = "",
    template: remote.Template = "",
    as_json: options.Json = False,
) -> None:
    """Lip-sync a video to an audio file. The result is as long as the audio.

    A network knows the kind of faces that it was trained on: that of the quickstart knows drawn heads, and smears the
    mouth of a real person. All files may be s3://… or gs://… URIs.

    Example: `lawdnet infer run --video anna.mp4 --audio hello.wav --out anna-hello.mp4`
    """
    remote.check_usage(checkpoint, video_location, url, template)
    if url:
        video_path = Path(video_location) if video_location else None
        remote.infer(url, video_path, template, face, Path(audio), Path(out), as_json)
        return
    from lawdnet import storage
    from lawdnet.face.mask import check_region
    from lawdnet.face.track import one_face
    from lawdnet.inference.engine import Engine
    from lawdnet.landmarks.base import make_with_weights
    from lawdnet.tasks.inputs import opened
    from lawdnet.types import no_beat

    with console.parsing_options():
        one_face(face)
        check_region(region)
        weights = console.located(weights_dir)
        if landmarks != DEFAULT_LANDMARKS:
            make_with_weights(landmarks, weights)
        network, video, speech, target = (storage.locate(text) for text in (checkpoint, video_location, audio, out))
    for location in (network, video, speech):
        console.existing(location)
    engine = Engine(network, device=device, weights_dir=weights, region=region, match_colour=match_colour)
    with (
        console.Meter("infer", "frames") as meter,
        _template(engine, video, landmarks, face, weights) as prepared,
        opened(speech, beat=no_beat) as local_audio,
        _local(target) as local_out,
    ):
        made = engine.render(
            prepared,
            local_audio,
            local_out,
            on_progress=lambda done, total: _show(meter, done, total),
            still_silence=still_silence,
        )
    remote.result(str(target), dataclasses.asdict(made), as_json)


@contextmanager
def _template(
    engine: Engine, video: Location, landmarks: str, face: str, weights_dir: Location | None
) -> Iterator[Template]:
    """Give the template in a file, or prepare a video."""
    from lawdnet.inference.template_file import is_template, opened_template
    from lawdnet.landmarks import source_for
    from lawdnet.tasks.inputs import CSV_SUFFIXES, opened
    from lawdnet.types import no_beat

    if is_template(video):
        if (landmarks, face) != (DEFAULT_LANDMARKS, DEFAULT_FACE):
            raise console.WrongUsage(f"{video}: is a template; --landmarks and --face were chosen when it was made")
        with opened_template(video, mouth_px=engine.mouth_px, crop_width=engine.crop_width) as template:
            yield template
        return
    with opened(video, CSV_SUFFIXES, beat=no_beat) as local:
        with console.parsing_options():
            source = source_for(local, landmarks, weights_dir)
        yield engine.prepare(local, source, face=face)


@contextmanager
def _local(target: Location) -> Iterator[Path]:
    """Give a path to write to: the target itself, or a file that is uploaded to it."""
    from lawdnet.storage import atomic

    if isinstance(target, Path):
        yield target
        return
    with atomic(target) as temporary:
        video = temporary.with_suffix(".mp4")
        yield video
        video.replace(temporary)


def _show(meter: console.Meter, done: int, total: int) -> None:
    if done == 1:  # the audio's features were computed before it
        meter.restart(done)
    meter.update(done, total, note=f"{(done - 1) / max(meter.seconds, 1e-3):.1f} frames/s" if done > 1 else "")


if __name__ == "__main__":
    console.run(infer)
