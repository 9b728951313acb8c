"""Trains the stages of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs import console
from jobs.build_dataset import split

if TYPE_CHECKING:
    from lawdnet.training.config import TrainConfig
    from lawdnet.training.stages import Stage


def train(
    dataset: Annotated[Path, typer.Argument(help="A folder made by `lawdnet build`.")],
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the run.", show_default=False)],
    stages: Annotated[str, typer.Option(help="Stages by name, separated by commas; all where empty.")] = "",
    preset: Annotated[str, typer.Option(help="full: the published networks; small: trains on a laptop.")] = "full",
    workers: Annotated[int, typer.Option(min=1, help="Processes that train together, one CPU or GPU each.")] = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="A GPU for each worker.")] = False,
    settings: console.Settings = [],  # noqa: B006 typer copies it
    as_json: console.Json = False,
) -> None:
    """Train the generator, stage after stage, and the sync network that judges it.

    Finished stages are skipped and a stage that was stopped goes on from its last epoch, when the same command runs
    again. `--set` takes a key of the run (seed=1) or of a stage (frame_64.batch_size=8, stages.lr=1e-4).

    Example: `lawdnet train dataset --out run --preset small --stages syncnet,frame_64`
    """
    with console.options():
        from lawdnet.training.config import make_config

        config = make_config(preset, split(stages), settings)
    _check_gpu(gpu)
    from lawdnet.data.manifest import Dataset
    from pipelines import training

    opened = Dataset(dataset)
    with console.Meter("train", "epochs") as meter:
        training.train(opened, out, config, workers=workers, gpu=gpu, on_epoch=_Watch(meter, config))
        seconds = meter.seconds
    outcome = _outcome(out, config)
    content = {"run": str(out), "seconds": round(seconds, 3), "stages": outcome}
    lines = [f"trained {out} in {console.duration(seconds)}", *_lines(outcome)]
    if any(stage.kind == "gan" for stage in config.stages):
        lines.append(f"next: lawdnet infer {out} --video V --audio A --out O.mp4")
    console.result(content, lines, as_json)


def _check_gpu(gpu: bool) -> None:
    """Without a cluster to ask, a GPU is here or nowhere, and Ray would wait for it for ever."""
    import torch

    if gpu and "RAY_ADDRESS" not in os.environ and not torch.cuda.is_available():
        raise ValueError("--gpu: no CUDA GPU on this machine; leave --gpu out, or name a cluster in RAY_ADDRESS")


class _Watch:
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


def _outcome(run: Path, config: TrainConfig) -> dict[str, dict[str, Any]]:
    from lawdnet.models.saved import read_meta, stage_checkpoints

    newest = {stage.name: stage_checkpoints(run / stage.name)[-1] for stage in config.stages}
    return {
        name: {"epochs": int(read_meta(folder)["epoch"]), "checkpoint": str(folder), "loss": _last_loss(run / name)}
        for name, folder in newest.items()
    }


def _last_loss(folder: Path) -> float | None:
    from lawdnet.training.loggers import read_jsonl
    from pipelines.training import METRICS

    rows = read_jsonl(folder / METRICS) if (folder / METRICS).exists() else []
    losses = [float(row["total"]) for row in rows if row.get("kind") == "epoch"]
    return losses[-1] if losses else None


def _lines(stages: dict[str, dict[str, Any]]) -> list[str]:
    def text(entry: dict[str, Any]) -> str:
        loss = "" if entry["loss"] is None else f", loss {entry['loss']:.4f}"
        return f"{console.count(entry['epochs'], 'epoch')}{loss}, {entry['checkpoint']}"

    return console.columns([(name, text(entry)) for name, entry in stages.items()])


if __name__ == "__main__":
    console.run(train)
