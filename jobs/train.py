"""Trains the stages of a run."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs import console, options
from jobs.build_dataset import split

if TYPE_CHECKING:
    from lawdnet.storage import Location
    from lawdnet.training.config import TrainConfig
    from lawdnet.training.options import RunOptions
    from lawdnet.training.stages import Stage


def train(
    dataset: options.Dataset,
    out: Annotated[
        str,
        typer.Option(metavar="RUN", help="Folder of the run, or an s3://… or gs://… URI.", show_default=False),
    ],
    stages: Annotated[str, typer.Option(help="Stages to train, separated by commas; all if empty.")] = "",
    preset: options.Preset = "full",
    workers: options.Workers = "1",
    gpu: Annotated[bool, typer.Option("--gpu", help="Use one GPU for each worker.")] = False,
    loaders: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes of each worker that draw its samples, one CPU each; 0: it draws them itself. By default "
            "what there is room for, up to 12 beside a GPU, else 1.",
            show_default=False,
        ),
    ] = None,
    init: options.Init = "",
    gate: options.Gates = [],  # noqa: B006 typer copies it
    best: Annotated[
        str,
        typer.Option(metavar="METRIC", help="Metric that chooses the best checkpoint; opening_correlation if empty."),
    ] = "",
    validate_every: Annotated[
        int, typer.Option(min=0, help="Epochs between two validations on held-out videos; 0: never.")
    ] = 1,
    save_every: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="Time between two checkpoints (30s, 5m, 1h), about what a crash costs; 0: never.",
        ),
    ] = "5m",
    save_every_epochs: Annotated[int, typer.Option(min=1, help="Epochs between two checkpoints.")] = 1,
    save_every_steps: Annotated[
        int,
        typer.Option(min=0, help="Steps between two checkpoints within an epoch, whatever the time; 0: none."),
    ] = 0,
    keep: Annotated[int, typer.Option(min=1, help="Newest checkpoints to keep per stage, besides the best.")] = 2,
    logger: options.Loggers = "jsonl",
    settings: options.Settings = [],  # noqa: B006 typer copies it
    as_json: options.Json = False,
) -> None:
    """Train the generator stage by stage, and the sync network that its last stage needs.

    Run the same command again to resume: finished stages are skipped, and a stage that was stopped continues from its
    newest checkpoint exactly as if it had not stopped. `--set` takes a key of the run (seed=1) or of a stage
    (frame_64.batch_size=8, stages.lr=1e-4).

    A step takes `batch_size` samples for each of the most workers that --workers allows. With fewer workers, each takes
    several batches, with the same result.

    Example: `lawdnet train dataset --out run --preset small --stages syncnet,frame_32 --gate 'accuracy>=0.95'`
    """
    from lawdnet.storage import locate

    with console.parsing_options():
        from lawdnet.training.config import make_config

        config = make_config(preset, split(stages), settings)
        from lawdnet.training.options import RunOptions, parse_duration
        from lawdnet.training.virtual_ranks import Workers

        run_options = RunOptions(
            workers=Workers.parse(workers),
            gpu=gpu,
            loaders=loaders,
            init=init,
            gates=tuple(gate),
            best=best,
            validate_every=validate_every,
            save_every=parse_duration(save_every),
            save_every_epochs=save_every_epochs,
            save_every_steps=save_every_steps,
            keep_last=keep,
            loggers=split(logger),
        )
        source = locate(dataset)
        run = locate(out)
    check_gpu(gpu)
    seconds = _run(source, run, config, run_options)
    result = _results(run, config)
    content = {"run": out, "seconds": round(seconds, 3), "stages": result}
    lines = [f"trained {out} in {console.duration(seconds)}", *_lines(result)]
    if any(stage.kind == "gan" for stage in config.stages):
        lines.append(f"next: lawdnet infer {out} --video V --audio A --out O.mp4")
    console.result(content, lines, as_json)


def _run(source: Location, run: Location, config: TrainConfig, run_options: RunOptions) -> float:
    """Train all stages and return the seconds it took."""
    from lawdnet.data.config import FORMAT_VERSION
    from lawdnet.data.manifest import Dataset
    from pipelines.train.train import train as train_stages

    dataset = Dataset(source)
    if dataset.format_version < FORMAT_VERSION:
        text = f"{source} has dataset format {dataset.format_version}; small stages draw faster after"
        console.say(f"note: {text}: lawdnet upgrade {shlex.quote(str(source))}")
    with console.Meter("train", "epochs") as meter:
        train_stages(dataset, run, config, run_options, on_epoch=Watch(meter, config))
        return meter.seconds


def check_gpu(gpu: bool) -> None:
    """Check that this machine has a GPU, unless a cluster provides it: Ray would wait for one forever.

    Raises:
        ValueError: there is neither a GPU nor a cluster.
    """
    import torch

    if gpu and "RAY_ADDRESS" not in os.environ and not torch.cuda.is_available():
        where = "use a cluster: lawdnet --address http://HEAD:8265 …"
        raise ValueError(f"--gpu: no CUDA GPU on this machine; leave --gpu out, or {where}")


SHOWN = ("opening_correlation", "mouth_correlation", "sync_confidence", "accuracy", "psnr")
"""Validation metrics shown in the summary, if they were measured."""


class Watch:
    """Shows each finished epoch as progress through all stages."""

    def __init__(self, meter: console.Meter, config: TrainConfig) -> None:
        self.meter = meter
        self.first = True
        self.total = sum(stage.epochs for stage in config.stages)
        ends = [sum(s.epochs for s in config.stages[:n]) for n in range(len(config.stages))]
        self.before = dict(zip((stage.name for stage in config.stages), ends, strict=True))

    def __call__(self, stage: Stage, row: dict[str, Any]) -> None:
        done = self.before[stage.name] + int(row["epoch"])
        if self.first:
            self.meter.skip(done - 1)
            self.first = False
        text = f"{stage.name} {int(row['epoch'])}/{stage.epochs} loss {row['total']:.4f}"
        self.meter.update(done, self.total, note=f"{row['steps_per_second']:.1f} steps/s", event=text)


def _results(run: Location, config: TrainConfig) -> dict[str, dict[str, Any]]:
    from lawdnet.training.checkpoint_store import CheckpointStore, metrics_of, position_of

    newest = {stage.name: CheckpointStore(run / stage.name).complete()[-1] for stage in config.stages}
    return {
        name: {
            "epochs": position_of(folder).epoch,
            "checkpoint": str(folder),
            "loss": _last_loss(run / name),
            "validation": metrics_of(folder),
        }
        for name, folder in newest.items()
    }


def _last_loss(folder: Location) -> float | None:
    from lawdnet.training.loggers import METRICS, parse_jsonl

    rows = parse_jsonl((folder / METRICS).read_bytes()) if (folder / METRICS).exists() else []
    losses = [float(row["total"]) for row in rows if row.get("kind") == "epoch"]
    return losses[-1] if losses else None


def _lines(stages: dict[str, dict[str, Any]]) -> list[str]:
    def text(entry: dict[str, Any]) -> str:
        loss = "" if entry["loss"] is None else f", loss {entry['loss']:.4f}"
        figures = "".join(f", {name} {entry['validation'][name]:.3f}" for name in SHOWN if name in entry["validation"])
        return f"{console.count(entry['epochs'], 'epoch')}{loss}{figures}, {entry['checkpoint']}"

    return console.columns([(name, text(entry)) for name, entry in stages.items()])


if __name__ == "__main__":
    console.run(train)
