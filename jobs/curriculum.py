"""From videos to a trained run, and to people who say what they never said."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs import build_dataset, console, evaluate, render, train

PARTS = ("build", "train")


def curriculum(
    source: Annotated[
        str, typer.Argument(help="Videos: a folder, a list file, or s3://…; or a built dataset. Never changed.")
    ],
    out: Annotated[
        str,
        typer.Option(
            metavar="FOLDER", help="Gets dataset, run, renders and report.html; or s3://….", show_default=False
        ),
    ],
    preset: Annotated[str, typer.Option(help="full: the published networks; small: trains on a laptop.")] = "full",
    landmarks: Annotated[
        str,
        typer.Option(help="openface, face-alignment, mediapipe, or auto: the CSV beside a video, else what is there."),
    ] = "auto",
    features: Annotated[str, typer.Option(help="Audio features to store, separated by commas.")] = "mel",
    sync: Annotated[Path | None, typer.Option(help="Sync network that scores segments while they are built.")] = None,
    weights_dir: Annotated[
        Path | None, typer.Option(help="Folder of weights for landmarks and features, looked in first.")
    ] = None,
    workers: Annotated[
        str, typer.Option(metavar="N|MIN:MAX", help="Processes that train together, one CPU or GPU each.")
    ] = "1",
    gpu: Annotated[
        float,
        typer.Option(min=0, help="Share of a GPU to build and to render with; training takes whole ones. 0: CPUs."),
    ] = 0.0,
    init: Annotated[str, typer.Option(metavar="OLD.pth|RUN", help="What the first generator stage starts from.")] = "",
    gate: Annotated[
        list[str],
        typer.Option(
            metavar="RULE",
            show_default=False,
            help="What a stage must show on held-out videos before the next begins; may be repeated.",
        ),
    ] = [],  # noqa: B006 typer copies it
    logger: Annotated[
        str, typer.Option(help="Where figures go, separated by commas: jsonl (always), wandb, tensorboard.")
    ] = "jsonl",
    settings: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="PART.KEY=VALUE",
            help="A setting of a part, as its own --set takes it: build.val_fraction=0.1, train.frame_64.batch_size=8.",
            show_default=False,
        ),
    ] = [],  # noqa: B006 typer copies it
    as_json: console.Json = False,
) -> None:
    """Build a dataset, train all stages, and lip-sync held-out people to their own words and to others'.

    The same as build, train and render one after the other, on one cluster; when the same command runs again, what is
    done stays. The table at the end is the last validation, with the truth and a baseline that ignores the sound.

    Example: `lawdnet curriculum corpus --out everything --preset small --set build.val_fraction=0.1`
    """
    from lawdnet.storage import locate

    with console.options():
        from lawdnet.training.config import make_config

        given = _by_part(settings)
        stored = build_dataset.split(features)
        build_config = build_dataset.build_config(given["build"], landmarks=landmarks, features=stored)
        config = make_config(preset, None, given["train"])
        from lawdnet.training.options import RunOptions
        from lawdnet.training.virtual_ranks import Workers

        running = RunOptions(
            workers=Workers.parse(workers), gpu=gpu > 0, init=init, gates=tuple(gate),
            loggers=build_dataset.split(logger),
        )  # fmt: skip
        place, folder = locate(source), locate(out)
    train.check_gpu(running.gpu)
    from pipelines.workflows.curriculum import curriculum as run_curriculum

    @contextmanager
    def begin(name: str, text: str) -> Iterator[Any]:
        unit, watch = {
            "build": ("videos", build_dataset.Watch),
            "train": ("epochs", lambda meter: train.Watch(meter, config)),
            "render": ("pairs", render.Watch),
        }[name]
        console.say(text)
        with console.Meter(name, unit) as meter:
            yield watch(meter)

    content = run_curriculum(
        place, folder, build_config, config, running, weights_dir=weights_dir, sync=sync, gpu=gpu, begin=begin
    )  # fmt: skip
    console.result(content, _lines(content), as_json)


def _by_part(settings: Iterable[str]) -> dict[str, list[str]]:
    """`build.key=value` → build → `key=value`.

    Raises:
        ValueError: a setting of no part.
    """
    found: dict[str, list[str]] = {part: [] for part in PARTS}
    for setting in settings:
        part, _, rest = setting.partition(".")
        if part not in PARTS:
            raise ValueError(f"--set {setting!r}: begin with the part that it is for, {' or '.join(PARTS)}")
        found[part].append(rest)
    return found


def _lines(content: dict[str, Any]) -> list[str]:
    """The table, and what was rendered, on one screen."""
    times = ", ".join(f"{name} {console.duration(seconds)}" for name, seconds in content["seconds"].items())
    lines = [f"time: {times}", f"{content['stage']} of {content['run']} on held-out videos"]
    lines += evaluate.table({"kind": "gan", "figures": content["figures"]})
    if content["renders"]:
        lines += ["people who were held out:", *render.summary(render.describe(content["renders"]))]
    else:
        lines.append("nothing was rendered: the videos of this dataset are not where they were")
    return [*lines, f"report: {content['report']}"]


if __name__ == "__main__":
    console.run(curriculum)
