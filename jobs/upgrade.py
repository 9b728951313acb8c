"""Upgrades a dataset to the format of today."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from jobs import console, options

if TYPE_CHECKING:
    from lawdnet.tasks.task import Progress
    from pipelines.build.upgrade import FileRecord


def upgrade(
    dataset: Annotated[str, typer.Argument(help="A dataset of an older format: a folder, or an s3://… or gs://… URI.")],
    out: Annotated[
        str | None,
        typer.Option(metavar="DATASET2", help="Write an upgraded copy here; without it, DATASET itself is upgraded."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Upgrade a dataset of an older format: add small versions of its frames, from which small stages draw faster.

    No video is needed or decoded, and no id, hash or score changes. The dataset grows by about half. Each file is
    replaced as a whole, so training may continue to read; run the same command again to resume an upgrade.

    Example: `lawdnet upgrade dataset`
    """
    from lawdnet.storage import locate
    from pipelines.build.upgrade import upgrade as upgrade_dataset

    with console.Meter("upgrade", "files") as meter:
        done = upgrade_dataset(locate(dataset), console.located(out), on_progress=Watch(meter))
        seconds = meter.seconds
    content = {"dataset": out or dataset, "seconds": round(seconds, 3), **asdict(done)}
    grown = f", which grew by {100 * (done.bytes_after / done.bytes_before - 1):.0f} %" if done.bytes_before else ""
    text = f"{console.count(done.files, 'file')} upgraded{grown}, {done.ready} had nothing to do"
    console.result(content, [f"upgraded {out or dataset} in {console.duration(seconds)}: {text}"], as_json)


class Watch:
    """Shows the result of each file."""

    def __init__(self, meter: console.Meter) -> None:
        self.meter = meter

    def __call__(self, progress: Progress[FileRecord]) -> None:
        record = progress.record
        if progress.is_stored:
            self.meter.skip(progress.done)
        failure = f"{record.name}: {record.status}, {record.detail}" if record.reason else ""
        self.meter.update(progress.done, progress.total, event=failure)


if __name__ == "__main__":
    console.run(upgrade)
