"""Prepares a video once, so that renders with it begin at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs import console, options


def template(
    checkpoint: options.Checkpoint,
    source: Annotated[str, typer.Argument(metavar="VIDEO", help="Video of the person: a file, s3://… or gs://….")],
    out: Annotated[str, typer.Option(metavar="FILE", help="Template file to write.", show_default=False)],
    landmarks: options.Landmarks = "auto",
    face: options.Face = "largest",
    weights_dir: options.WeightsDir = None,
    as_json: options.Json = False,
) -> None:
    """Find the face of a video and choose its references, and keep both in a file for `lawdnet infer --video`.

    The file fits all networks with the same mouth size and crop width. It does not hold the video: leave that where it
    is, or beside the template. It is refused if the video has changed.

    Example: `lawdnet template run anna.mp4 --out anna.template`
    """
    from lawdnet.face.track import one_face
    from lawdnet.inference.loading import generator_info
    from lawdnet.inference.template import prepare
    from lawdnet.inference.template_file import save_template
    from lawdnet.landmarks import source_for
    from lawdnet.storage import locate
    from lawdnet.tasks.inputs import CSV_SUFFIXES, opened
    from lawdnet.types import no_beat

    with console.parsing_options():
        one_face(face)
        network, video, target = locate(checkpoint), locate(source), locate(out)
        if isinstance(target, Path) and target.is_dir():
            raise ValueError(f"{out}: is a folder; name a file in it")
        if target == video:
            raise ValueError(f"{out}: is the video; choose another file for the template")
    for location in (network, video):
        console.existing(location)
    info = generator_info(network)
    with opened(video, CSV_SUFFIXES, beat=no_beat) as local, console.Meter("template", "frames"):
        with console.parsing_options():
            landmark_source = source_for(local, landmarks, console.located(weights_dir))
        made = prepare(local, landmark_source, mouth_px=info.mouth_px, crop_width=info.crop_width, face=face)
        save_template(target, made, video, mouth_px=info.mouth_px, crop_width=info.crop_width)
    frames, faces = len(made.usable_T), int(made.usable_T.sum())
    content = {"out": str(target), "frames": frames, "with_face": faces, "references": list(made.reference_ticks)}
    lines = [f"wrote {out}: {console.count(frames, 'frame')}, {faces} with a face"]
    console.result(content, lines, as_json)


if __name__ == "__main__":
    console.run(template)
