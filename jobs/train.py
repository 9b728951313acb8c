"""Trains the stages of a run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs import console
from jobs.build_dataset import split

if TYPE_CHECKING:
    from lawdnet.storage import Location
    from lawdnet.training.config import TrainConfig
    from lawdnet.training.stages import Stage


def train(
    dataset: Annotated[str, typer.Argument(help="A folder made by `lawdnet build`, or s3://… or gs://….")],
    out: Annotated[
        str, typer.Option(metavar="RUN", help="Folder of the run, or s3://… or gs://….", show_default=False)
    ],
    stages: Annotated[str, typer.Option(help="Stages by name, separated by commas; all where empty.")] = "",
    preset: Annotated[str, typer.Option(help="full: the published networks; small: trains on a laptop.")] = "full",
    workers: Annotated[
        str,
        typer.Option(
            metavar="N|MIN:MAX",
            help="Processes that train together, one CPU or GPU each; MIN:MAX takes what the cluster has at the moment "
            "and gives back what it loses, without changing what is learnt; 0: in this process, without Ray.",
        ),
    ] = "1",
    gpu: Annotated[bool, typer.Option("--gpu", help="A GPU for each worker.")] = False,
    init: Annotated[
        str,
        typer.Option(
            metavar="OLD.pth|RUN", help="A published file or another run that the first generator stage starts from."
        ),
    ] = "",
    gate: Annotated[
        list[str],
        typer.Option(
            metavar="RULE",
            show_default=False,
            help="What a stage must show on held-out videos before the next begins, such as mouth_correlation>=0.8; "
            "may be repeated.",
        ),
    ] = [],  # noqa: B006 typer copies it
    best: Annotated[
        str, typer.Option(metavar="MEASURE", help="Keep the best checkpoint by this; by default mouth_correlation.")
    ] = "",
    validate_every: Annotated[
        int, typer.Option(min=0, help="Epochs between two validations on held-out videos; 0: none.")
    ] = 1,
    save_every_epochs: Annotated[int, typer.Option(min=1, help="Epochs between two checkpoints.")] = 1,
    save_every_steps: Annotated[
        int, typer.Option(min=0, help="Steps between two checkpoints within an epoch, the most that a crash costs.")
    ] = 0,
    keep: Annotated[int, typer.Option(min=1, help="Newest checkpoints of a stage that stay, beside the best.")] = 2,
    logger: Annotated[
        str, typer.Option(help="Where figures go, separated by commas: jsonl (always), wandb, tensorboard.")
    ] = "jsonl",
    settings: console.Settings = [],  # noqa: B006 typer copies it
    as_json: console.Json = False,
) -> None:
    """Train the generator, stage after stage, and the sync network that judges it.

    When the same command runs again, finished stages are skipped and a stage that was stopped, by whatever, goes on
    from its newest checkpoint, exactly as if it had not stopped. `--set` takes a key of the run (seed=1) or of a stage
    (frame_64.batch_size=8, stages.lr=1e-4).

    The batch of a step is `batch_size` for each of the most workers; fewer take several each, with the same result.

    Example: `lawdnet train dataset --out run --preset small --stages syncnet,frame_32 --gate 'accuracy>=0.95'`
    """
    from lawdnet.storage import locate

    with console.options():
        from lawdnet.training.config import make_config

        config = make_config(preset, split(stages), settings)
        from lawdnet.training.options import RunOptions
        from lawdnet.training.virtual_ranks import Workers

        running = RunOptions(
            workers=Workers.parse(workers), gpu=gpu, init=init, gates=tuple(gate), best=best,
            validate_every=validate_every, save_every_epochs=save_every_epochs, save_every_steps=save_every_steps,
            keep_last=keep, loggers=split(logger),
        )  # fmt: skip
        place, run = locate(dataset), locate(out)
    check_gpu(gpu)
    from lawdnet.data.manifest import Dataset
    from pipelines.train.train import train as train_stages

    opened = Dataset(place)
    with console.Meter("train", "epochs") as meter:
        train_stages(opened, run, config, running, on_epoch=Watch(meter, config))
        seconds = meter.seconds
    outcome = _outcome(run, config)
    content = {"run": out, "seconds": round(seconds, 3), "stages": outcome}
    lines = [f"trained {out} in {console.duration(seconds)}", *_lines(outcome)]
    if any(stage.kind == "gan" for stage in config.stages):
        lines.append(f"next: lawdnet infer {out} --video V --audio A --out O.mp4")
    console.result(content, lines, as_json)


def check_gpu(gpu: bool) -> None:
    """Without a cluster to ask, a GPU is here or nowhere, and Ray would wait for it for ever."""
    import torch

    if gpu and "RAY_ADDRESS" not in os.environ and not torch.cuda.is_available():
        where = "name a cluster: lawdnet --address http://HEAD:8265 …"
        raise ValueError(f"--gpu: no CUDA GPU on this machine; leave --gpu out, or {where}")


class Watch:
    """Shows every epoch as a step through all stages."""

    def __init__(self, meter: console.Meter, config: TrainConfig) -> None:
        self.meter, self.first = meter, True
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


def _outcome(run: Location, config: TrainConfig) -> dict[str, dict[str, Any]]:
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


SHOWN = ("mouth_correlation", "sync_confidence", "accuracy", "psnr")


def _lines(stages: dict[str, dict[str, Any]]) -> list[str]:
    def text(entry: dict[str, Any]) -> str:
        loss = "" if entry["loss"] is None else f", loss {entry['loss']:.4f}"
        figures = "".join(f", {name} {entry['validation'][name]:.3f}" for name in SHOWN if name in entry["validation"])
        return f"{console.count(entry['epochs'], 'epoch')}{loss}{figures}, {entry['checkpoint']}"

    return console.columns([(name, text(entry)) for name, entry in stages.items()])


if __name__ == "__main__":
    console.run(train)
