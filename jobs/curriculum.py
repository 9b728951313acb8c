"""Builds a dataset, trains on it, and renders held-out people, as one command."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs import build_dataset, console, evaluate, options, render, train

if TYPE_CHECKING:
    from lawdnet.training.config import TrainConfig

PARTS = ("build", "train")
"""First words of `--set PART.KEY=VALUE`."""


def curriculum(
    source: Annotated[
        str,
        typer.Argument(
            help="Videos (a folder, a list file, or an s3://… or gs://… URI), or a built dataset. Never changed."
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            metavar="FOLDER",
            help="Folder for the dataset, the run, the renders and report.html, or an s3://… or gs://… URI.",
            show_default=False,
        ),
    ],
    preset: options.Preset = "full",
    landmarks: options.Landmarks = "auto",
    features: options.Features = "mel",
    sync: options.ScoringSync = None,
    weights_dir: options.WeightsDir = None,
    workers: options.Workers = "1",
    gpu: Annotated[
        float,
        typer.Option(
            min=0,
            help="Share of a GPU for each worker that builds or renders; with any share above 0, training uses a whole "
            "GPU for each worker. 0: CPU.",
        ),
    ] = 0.0,
    init: options.Init = "",
    gate: options.Gates = [],  # noqa: B006 typer copies it
    logger: options.Loggers = "jsonl",
    settings: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="PART.KEY=VALUE",
            help="Change one setting of a part, as in build.val_fraction=0.1 or train.seed=1; may be repeated.",
            show_default=False,
        ),
    ] = [],  # noqa: B006 typer copies it
    as_json: options.Json = False,
) -> None:
    """Build a dataset, train all stages, and lip-sync held-out people to their own words and to each other's.

    Does what build, train and render do one after the other, on one cluster. Run the same command again to resume; what
    is done is skipped. The table at the end shows the last validation, beside the real videos and a baseline that
    ignores the audio.

    Example: `lawdnet curriculum corpus --out everything --preset small --set build.val_fraction=0.1`
    """
    from lawdnet.storage import locate

    with console.parsing_options():
        from lawdnet.training.config import make_config

        given = _by_part(settings)
        stored = build_dataset.split(features)
        build_config = build_dataset.build_config(given["build"], landmarks=landmarks, features=stored)
        config = make_config(preset, None, given["train"])
        from lawdnet.training.options import RunOptions
        from lawdnet.training.virtual_ranks import Workers

        run_options = RunOptions(
            workers=Workers.parse(workers),
            gpu=gpu > 0,
            init=init,
            gates=tuple(gate),
            loggers=build_dataset.split(logger),
        )
        videos = locate(source)
        folder = locate(out)
    train.check_gpu(run_options.gpu)
    from pipelines.workflows.curriculum import curriculum as run_curriculum

    content = run_curriculum(
        videos,
        folder,
        build_config,
        config,
        run_options,
        weights_dir=console.located(weights_dir),
        sync=sync,
        gpu=gpu,
        begin=partial(_begin, config),
    )
    console.result(content, _lines(content), as_json)


@contextmanager
def _begin(config: TrainConfig, name: str, text: str) -> Iterator[Any]:
    """Announce a part with a line of text, and yield the callback that shows its progress."""
    units, watch = {
        "build": ("videos", build_dataset.Watch),
        "train": ("epochs", lambda meter: train.Watch(meter, config)),
        "render": ("pairs", render.Watch),
    }[name]
    console.say(text)
    with console.Meter(name, units) as meter:
        yield watch(meter)


def _by_part(settings: Iterable[str]) -> dict[str, list[str]]:
    """Sort settings by their part: `build.key=value` becomes `key=value` under "build".

    Raises:
        ValueError: a setting does not begin with a part.
    """
    found: dict[str, list[str]] = {part: [] for part in PARTS}
    for setting in settings:
        part, _, rest = setting.partition(".")
        if part not in PARTS:
            raise ValueError(f"--set {setting!r}: begin with its part, {' or '.join(PARTS)}, as in build.KEY=VALUE")
        found[part].append(rest)
    return found


def _lines(content: dict[str, Any]) -> list[str]:
    """Return the summary: validation metrics, and what was rendered."""
    times = ", ".join(f"{name} {console.duration(seconds)}" for name, seconds in content["seconds"].items())
    lines = [f"time: {times}", f"{content['stage']} of {content['run']} on held-out videos"]
    lines += evaluate.table({"kind": "gan", "figures": content["figures"], "protocol": {}})
    if content["renders"]:
        lines += ["renders of held-out people:", *render.summary(render.describe(content["renders"]))]
    else:
        lines.append("nothing was rendered: the source videos of this dataset have moved or are gone")
    return [*lines, f"report: {content['report']}"]


if __name__ == "__main__":
    console.run(curriculum)
