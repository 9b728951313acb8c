"""Lip-syncs many videos to many speeches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs import console
from jobs.inspect_dataset import reason_lines, reasons

if TYPE_CHECKING:
    from lawdnet.tasks.task import Progress
    from pipelines.render.pairs import PairRecord


def render(
    checkpoint: Annotated[str, typer.Argument(help="A run, or a stage or epoch folder in it, here or in s3://….")],
    out: Annotated[str, typer.Option(metavar="FOLDER", help="Of the results, or s3://….", show_default=False)],
    videos: Annotated[
        str, typer.Option(help="The people: a folder, a video, a list file, or s3://…. Never changed.")
    ] = "",
    speeches: Annotated[
        str, typer.Option(help="What they say: the same of files with sound, which may be videos.")
    ] = "",
    pairs: Annotated[
        str,
        typer.Option(
            metavar="FILE", help="Instead of every video with every speech: lines of video,speech or video,speech,out."
        ),
    ] = "",
    landmarks: Annotated[
        str,
        typer.Option(help="openface, face-alignment, mediapipe, or auto: the CSV beside a video, else what is there."),
    ] = "auto",
    face: Annotated[str, typer.Option(help="Of several people: largest, or a number from 0.")] = "largest",
    weights_dir: Annotated[
        Path | None, typer.Option(help="Folder of weights for landmarks and features, looked in first.")
    ] = None,
    gpu: Annotated[float, typer.Option(min=0, help="Share of a GPU for each worker; 0 works on CPUs.")] = 0.0,
    as_json: console.Json = False,
) -> None:
    """Lip-sync every video to every speech: FOLDER/VIDEO--SPEECH.mp4, and what became of each in FOLDER/renders.json.

    A pair that cannot be rendered is left out with a reason and the others go on. A job that was stopped goes on where
    it was when the same command runs again; what has new files or another network is rendered again.

    Example: `lawdnet render run --videos people --speeches words --out rendered`
    """
    if bool(pairs) == bool(videos or speeches) or bool(videos) != bool(speeches):
        raise console.WrongUsage("give --videos and --speeches, or --pairs")
    from lawdnet.storage import locate

    with console.options():
        network, root = locate(checkpoint), locate(out)
        given = [locate(text) for text in (videos, speeches, pairs) if text]
    from pipelines.render.pairs import all_pairs, listed_pairs
    from pipelines.render.render import render as render_pairs

    wanted = listed_pairs(given[0]) if pairs else all_pairs(given[0], given[1], root)
    with console.Meter("render", "pairs") as meter:
        records = render_pairs(
            network, wanted, root, landmarks=landmarks, face=face, weights_dir=weights_dir, gpu=gpu,
            on_progress=Watch(meter),
        )  # fmt: skip
        seconds = meter.seconds
    content = {"out": out, "seconds": round(seconds, 3), **describe([record.columns() for record in records])}
    lines = [f"rendered {out} in {console.duration(seconds)}", *summary(content)]
    console.result(content, lines, as_json)
    if not content["rendered"]:
        raise ValueError(f"{out}: no pair was rendered; the reasons are above and in {out}/renders.json")


class Watch:
    """Shows each pair's outcome."""

    def __init__(self, meter: console.Meter) -> None:
        self.meter, self.frames, self.refused = meter, 0, 0

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
    """Counts, frames and reasons of rendered pairs."""
    refused = [row | {"path": row["out"]} for row in rows if row["status"] != "rendered"]
    return {
        "pairs": len(rows),
        **{status: sum(row["status"] == status for row in rows) for status in ("rendered", "rejected", "failed")},
        "frames": sum(row["frames"] for row in rows),
        "passed_through": sum(row["passed_through"] for row in rows),
        "reasons": reasons(refused),
    }


def summary(content: dict[str, Any]) -> list[str]:
    """What `describe` found, on one screen."""
    from lawdnet.types import FPS

    frames, passed = content["frames"], content["passed_through"]
    rows = [
        ("pairs", f"{content['rendered']} of {content['pairs']} rendered"),
        ("frames", f"{frames} ({console.duration(frames / FPS)})"),
        ("as they were, for want of a face", console.count(passed, "frame")),
    ]
    lines = console.columns(rows if passed else rows[:2])
    if content["reasons"]:
        lines.append(f"not rendered: {content['rejected']} rejected, {content['failed']} failed")
    return lines + reason_lines(content["reasons"])


if __name__ == "__main__":
    console.run(render)
