"""Writes segments of a dataset as videos."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs import console


def export_segments(
    dataset: Annotated[str, typer.Argument(help="A dataset. Never changed.")],
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder for the videos.", show_default=False)],
    video: Annotated[list[str], typer.Option(metavar="ID", help="Only this video's segments; may be repeated.")] = [],  # noqa: B006 typer copies it
    segment: Annotated[
        list[str],
        typer.Option(metavar="ID", help="Only this segment, even if a rule left it out; may be repeated."),
    ] = [],  # noqa: B006 typer copies it
    where: Annotated[
        list[str], typer.Option(metavar="RULE", help="Only segments that meet this, as `select` takes it.")
    ] = [],  # noqa: B006 typer copies it
    as_json: console.Json = False,
) -> None:
    """Write segments as MP4, to look at and to hear: the stored crops with the sound of the source video.

    Where the source is no longer there, its segments are silent.

    Example: `lawdnet export-segments dataset --out clips --where "sync_confidence<2"`
    """
    with console.options():
        from lawdnet.data.rules import parse_rule

        rules = [parse_rule(text) for text in where]
    from lawdnet.data.export import export_segments as export
    from lawdnet.data.manifest import Dataset
    from lawdnet.data.transfer import local_folder
    from lawdnet.storage import locate

    folder = local_folder(out)
    with console.Meter("export", "segments") as meter:
        exported = export(
            Dataset(locate(dataset)), folder, videos=video, segments=segment, rules=rules, on_segment=meter.update
        )
        seconds = meter.seconds
    if exported.silent:
        name, why = next(iter(exported.silent.items()))
        number = console.count(len(exported.silent), "video")
        console.say(f"warning: silent, for want of the source's sound: {number}, such as {name} ({why})")
    content = {"out": out, "segments": [str(path) for path in exported.paths], "silent": exported.silent}
    number = console.count(len(exported.paths), "segment")
    console.result(content, [f"wrote {number} to {out} in {console.duration(seconds)}"], as_json)


if __name__ == "__main__":
    console.run(export_segments)
