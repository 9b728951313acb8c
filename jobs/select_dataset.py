"""Makes a dataset out of a built one by rules over its scores."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs import console
from jobs.inspect_dataset import funnel_lines

if TYPE_CHECKING:
    from lawdnet.data.selection import Selection


def select(
    dataset: Annotated[str, typer.Argument(help="A built dataset. Never changed.")],
    out: Annotated[
        str | None,
        typer.Option(metavar="DATASET2", help="Folder to write to; without it, only the counts are shown."),
    ] = None,
    where: Annotated[
        list[str],
        typer.Option(metavar="RULE", help="What a segment must satisfy; may be repeated.", show_default=False),
    ] = [],  # noqa: B006 typer copies it
    max_per_video: Annotated[
        int | None, typer.Option(min=1, help="Keep at most this many segments of a video, spread evenly over it.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget the dataset's own rules; begin with all that was measured.")
    ] = False,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy the segments; otherwise DATASET2 points into DATASET's files.")
    ] = False,
    as_json: console.Json = False,
) -> None:
    """Choose segments of a dataset by their scores, in seconds: nothing is decoded.

    A rule is NAME OP VALUE, with a score's name, num_frames, start_frame, track, split or video_id; OP is one of
    `>= <= > < == !=`; abs(NAME) and `and` may be used. A segment whose score was not measured falls.

    Example: `lawdnet select dataset --out good --where 'face_px>=100' --where 'abs(yaw)<30 and speech_ratio>0.5'`
    """
    from lawdnet.data.manifest import Dataset
    from lawdnet.data.rules import parse_rules, score_names
    from lawdnet.data.selection import advice, choose, write_selection
    from lawdnet.storage import locate

    opened = Dataset(locate(dataset))
    names = score_names(opened.index())
    with console.options():
        rules = parse_rules(where, names)
        if not rules and max_per_video is None and not fresh:
            raise ValueError("nothing to select by; give --where, --max-per-video or --fresh")
    selection = choose(opened, rules, max_per_video=max_per_video, is_fresh=fresh)
    content = describe(selection)
    lines = [*funnel_lines(content["funnel"]), *_left(content)]
    if not content["segments"]:
        content["values"] = advice(selection, rules)
        console.result(content, [*lines, *_values(content["values"])], as_json)
        raise ValueError(f"{dataset}: no segment is left; loosen a rule")
    if out is None:
        lines.append("nothing is written; add --out DATASET2 to make it a dataset")
    else:
        with console.Meter("select", "videos") as meter:
            made = write_selection(selection, locate(out), copy=copy, on_video=meter.update)
        content |= {"out": out, "hash": made.hash, "copy": copy}
        lines += [f"wrote {out}, {'a copy' if copy else f'which points into {dataset}: keep both'}"]
        lines.append(f"next: lawdnet train {shlex.quote(out)} --out RUN")
    console.result(content, lines, as_json)


def describe(selection: Selection) -> dict[str, Any]:
    """The funnel and what is left, in segments, videos and hours, by split."""
    from lawdnet.types import FPS

    kept = selection.kept.select(["video_id", "split", "num_frames"])
    wanted = [("num_frames", "sum"), ("num_frames", "count"), ("video_id", "count_distinct")]
    sums = kept.group_by("split").aggregate(wanted)
    splits = {
        row["split"]: {
            "videos": row["video_id_count_distinct"],
            "segments": row["num_frames_count"],
            "frames": row["num_frames_sum"],
        }
        for row in sums.to_pylist()
    }
    totals = {name: sum(split[name] for split in splits.values()) for name in ("videos", "segments", "frames")}
    return {
        "dataset": str(selection.source.root),
        "funnel": [asdict(step) for step in selection.funnel],
        **totals,
        "hours": round(totals["frames"] / FPS / 3600, 4),
        "splits": splits,
    }


def _left(content: Mapping[str, Any]) -> list[str]:
    splits = ", ".join(f"{name} {split['segments']}" for name, split in sorted(content["splits"].items()))
    length = console.duration(content["hours"] * 3600)
    text = f"{console.count(content['segments'], 'segment')} from {console.count(content['videos'], 'video')}, {length}"
    return [f"{text} ({splits})" if splits else text]


def _values(values: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Where the scores lie that nothing passed by."""
    lines = [
        f"{name} here: {', '.join(f'{mark} {value:.4g}' for mark, value in marks.items()) or 'not measured'}"
        for name, marks in values.items()
    ]
    return ["the last rule left nothing; of the segments that came to it (quantiles):", *lines] if lines else []


if __name__ == "__main__":
    console.run(select)
