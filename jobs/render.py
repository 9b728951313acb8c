"""Lip-syncs many videos to many audio files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs import console, options
from jobs.inspect_dataset import reason_lines, reasons

if TYPE_CHECKING:
    from lawdnet.tasks.task import Progress
    from pipelines.render.pairs import PairRecord


def render(
    checkpoint: Annotated[
        str,
        typer.Argument(help="A run, or a stage or checkpoint folder in it: a path, or an s3://… or gs://… URI."),
    ],
    out: Annotated[
        str,
        typer.Option(metavar="FOLDER", help="Folder for the results, or an s3://… or gs://… URI.", show_default=False),
    ],
    videos: Annotated[
        str,
        typer.Option(
            help="The people: a folder of videos, one video, a list file, or an s3://… or gs://… URI. Never changed."
        ),
    ] = "",
    speeches: Annotated[
        str,
        typer.Option(
            help="What they say: a folder of audio files or videos, one file, a list file, or an s3://… or gs://… URI."
        ),
    ] = "",
    pairs: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="A file with lines of video,speech or video,speech,out, to render only these pairs instead of every "
            "audio file with every video.",
        ),
    ] = "",
    landmarks: options.Landmarks = "auto",
    face: options.Face = "largest",
    weights_dir: options.WeightsDir = None,
    gpu: options.GpuShare = 0.0,
    as_json: options.Json = False,
) -> None:
    """Render every audio file with every video, as FOLDER/VIDEO--SPEECH.mp4.

    FOLDER/renders.json lists the result of each pair. A pair that cannot be rendered is left out with a reason, and the
    others continue. Run the same command again to resume; pairs with changed files or another network are rendered
    again.

    Example: `lawdnet render run --videos people --speeches words --out rendered`
    """
    if bool(pairs) == bool(videos or speeches) or bool(videos) != bool(speeches):
        raise console.WrongUsage("give --videos and --speeches, or --pairs")
    from lawdnet.storage import locate

    with console.parsing_options():
        network = locate(checkpoint)
        root = locate(out)
        given = [locate(text) for text in (videos, speeches, pairs) if text]
    from pipelines.render.pairs import all_pairs, listed_pairs
    from pipelines.render.render import render as render_pairs

    wanted = listed_pairs(given[0]) if pairs else all_pairs(given[0], given[1], root)
    with console.Meter("render", "pairs") as meter:
        records = render_pairs(
            network,
            wanted,
            root,
            landmarks=landmarks,
            face=face,
            weights_dir=console.located(weights_dir),
            gpu=gpu,
            on_progress=Watch(meter),
        )
        seconds = meter.seconds
    content = {"out": out, "seconds": round(seconds, 3), **describe([record.columns() for record in records])}
    lines = [f"rendered {out} in {console.duration(seconds)}", *summary(content)]
    console.result(content, lines, as_json)
    if not content["rendered"]:
        raise ValueError(f"{out}: no pair was rendered; see the reasons above and in {out}/renders.json")


class Watch:
    """Shows the result of each pair."""

    def __init__(self, meter: console.Meter) -> None:
        self.meter = meter
        self.frames = 0
        self.refused = 0

    def __call__(self, progress: Progress[PairRecord]) -> None:
        record = progress.record
        self.refused += not record.is_rendered
        if progress.is_stored:
            self.meter.skip(progress.done)
        else:
            self.frames += record.frames
        frames = console.count(record.frames, "frame")
        result = frames if record.is_rendered else f"{record.status}, {record.reason}: {record.detail}"
        rate = f"{self.frames / max(self.meter.seconds, 1e-3):.0f} frames/s, " if self.frames else ""
        note = f"{rate}{self.refused} not rendered"
        self.meter.update(progress.done, progress.total, note=note, event=f"{record.out}: {result}")


def describe(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Count rendered pairs, their frames, and the reasons of those that were not rendered."""
    refused = [row | {"path": row["out"]} for row in rows if row["status"] != "rendered"]
    return {
        "pairs": len(rows),
        **{status: sum(row["status"] == status for row in rows) for status in ("rendered", "rejected", "failed")},
        "frames": sum(row["frames"] for row in rows),
        "passed_through": sum(row["passed_through"] for row in rows),
        "reasons": reasons(refused),
    }


def summary(content: dict[str, Any]) -> list[str]:
    """Return the lines that show what `describe` counted."""
    from lawdnet.types import FPS

    frames = content["frames"]
    passed = content["passed_through"]
    rows = [
        ("pairs", f"{content['rendered']} of {content['pairs']} rendered"),
        ("frames", f"{frames} ({console.duration(frames / FPS)})"),
        ("without a face, left unchanged", console.count(passed, "frame")),
    ]
    lines = console.columns(rows if passed else rows[:2])
    if content["reasons"]:
        lines.append(f"not rendered: {content['rejected']} rejected, {content['failed']} failed")
    return lines + reason_lines(content["reasons"])


if __name__ == "__main__":
    console.run(render)
