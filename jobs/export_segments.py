"""Writes segments of a dataset as videos."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs import console, options


def export_segments(
    dataset: options.Dataset,
    out: Annotated[str, typer.Option(metavar="DIR", help="Local folder for the videos.", show_default=False)],
    video: Annotated[
        list[str], typer.Option(metavar="ID", help="Export only this video's segments; may be repeated.")
    ] = [],  # noqa: B006 typer copies it
    segment: Annotated[
        list[str],
        typer.Option(metavar="ID", help="Export only this segment, even if a rule dropped it; may be repeated."),
    ] = [],  # noqa: B006 typer copies it
    where: options.Where = [],  # noqa: B006 typer copies it
    as_json: options.Json = False,
) -> None:
    """Write segments as MP4 files to watch: the stored crops with the audio of the source video.

    If the source video is gone, its segments are silent.

    Example: `lawdnet export-segments dataset --out clips --where "sync_confidence<2"`
    """
    with console.parsing_options():
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
        console.say(f"warning: no audio for {number}, such as {name} ({why})")
    content = {"out": out, "segments": [str(path) for path in exported.paths], "silent": exported.silent}
    number = console.count(len(exported.paths), "segment")
    console.result(content, [f"wrote {number} to {out} in {console.duration(seconds)}"], as_json)


if __name__ == "__main__":
    console.run(export_segments)
