"""Selects segments of a dataset by rules over their scores."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs import console, options
from jobs.inspect_dataset import funnel_lines

if TYPE_CHECKING:
    from lawdnet.data.selection import Selection


def select(
    dataset: options.Dataset,
    out: Annotated[
        str | None,
        typer.Option(metavar="DATASET2", help="Folder of the new dataset; without it, only the counts are shown."),
    ] = None,
    where: options.Where = [],  # noqa: B006 typer copies it
    has: Annotated[
        list[str],
        typer.Option(
            metavar="FEATURE",
            help="Keep only segments with this feature, which a build may have failed to add to some; may be repeated.",
            show_default=False,
        ),
    ] = [],  # noqa: B006 typer copies it
    max_per_video: Annotated[
        int | None, typer.Option(min=1, help="Keep at most this many segments of each video, spread evenly over it.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ignore the dataset's own rules and start from all its segments.")
    ] = False,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy the segments instead of pointing to DATASET's files.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Select segments of a dataset by their scores. Takes seconds, since nothing is decoded.

    A rule is NAME OP VALUE. NAME is a score, num_frames, start_frame, track, split or video_id, or abs(NAME); OP is one
    of `>= <= > < == !=`; `and` joins rules. Segments without a measurement of NAME are dropped.

    Example: `lawdnet select dataset --out good --where 'face_px>=100' --where 'abs(yaw)<30 and speech_ratio>0.5'`
    """
    from lawdnet.data.manifest import Dataset
    from lawdnet.data.rules import parse_rules, score_names
    from lawdnet.data.selection import advice, choose, write_selection
    from lawdnet.storage import locate

    opened = Dataset(locate(dataset))
    names = score_names(opened.index())
    with console.parsing_options():
        rules = parse_rules(where, names)
        if not rules and not has and max_per_video is None and not fresh:
            raise ValueError("no rule given; use --where, --has, --max-per-video or --fresh")
    selection = choose(opened, rules, features=has, max_per_video=max_per_video, is_fresh=fresh)
    content = describe(selection)
    lines = [*funnel_lines(content["funnel"]), *_left(content)]
    if not content["segments"]:
        content["values"] = advice(selection, rules)
        console.result(content, [*lines, *_values(content["values"])], as_json)
        raise ValueError(f"{dataset}: no segment is left; loosen a rule")
    if out is None:
        lines.append("nothing was written; add --out DATASET2 to write the new dataset")
    else:
        with console.Meter("select", "files") as meter:
            made = write_selection(selection, locate(out), copy=copy, on_file=meter.update)
        content |= {"out": out, "hash": made.hash, "copy": copy}
        lines += [f"wrote {out}, {'a copy' if copy else f'which points into {dataset}: keep both'}"]
        lines.append(f"next: lawdnet train {shlex.quote(out)} --out RUN")
    console.result(content, lines, as_json)


def describe(selection: Selection) -> dict[str, Any]:
    """Return the funnel, and the segments, videos and hours that are left in each split."""
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
    """Return lines with the quantiles of the scores that left no segment."""
    lines = [
        f"{name} here: {', '.join(f'{mark} {value:.4g}' for mark, value in marks.items()) or 'not measured'}"
        for name, marks in values.items()
    ]
    return ["the last rule dropped every segment; quantiles of their scores:", *lines] if lines else []


if __name__ == "__main__":
    console.run(select)
