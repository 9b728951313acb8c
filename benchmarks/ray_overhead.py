"""What Ray costs a training: a stage of `lawdnet train` against the same loop in a plain process.

    python -m benchmarks.ray_overhead DATASET [--stage frame_32] [--epochs 2] [--preset small] [--set KEY=VALUE …]

Both draw their samples in the trainer's process (`--loaders 0`), use one thread, and neither validates. The plain loop
has the stage's step, batches and optimiser, and neither checkpoints, nor logs, nor watches. They run in turn, each in a
process of its own, and the first epoch of each is not counted. Prints a JSON object: steps per second of both and their
`ratio`, and the seconds that the whole command takes beside its epochs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from lawdnet.data.manifest import Dataset
from lawdnet.data.sampling import batches_per_epoch
from lawdnet.training.config import make_config
from lawdnet.training.loader import rank_batches
from lawdnet.training.loggers import METRICS
from lawdnet.training.loop import Loop
from lawdnet.training.steps import GanStep


def plain(dataset: Path, preset: str, stage_name: str, settings: list[str], epochs: int) -> float:
    """Steps per second of the loop alone, after its first epoch."""
    torch.set_num_threads(1)
    data, config = Dataset(dataset), make_config(preset, [stage_name], settings)
    stage, segments = config.stage(stage_name), data.segments("train")
    spec = config.sample_spec(stage)
    step = GanStep(
        config,
        stage,
        torch.device("cpu"),
        lambda network: network,
        audio_dim=data.info["extractors"][config.audio_feature]["dim"],
    )
    ended = [0.0]
    steps = batches_per_epoch(len(segments), 1, spec)
    loop = Loop(
        stage=stage,
        step=step,
        device=torch.device("cpu"),
        batches=lambda start: rank_batches(
            segments,
            spec,
            seed=config.seed,
            rank=0,
            world=1,
            stored_width=data.crop_width,
            epochs=stage.epochs,
            start=start,
        ),
        steps_per_epoch=steps,
        report=lambda metrics, epoch: ended.append(time.perf_counter()),
        log=lambda metrics: None,
    )
    loop.run()
    return steps * (epochs - 1) / (ended[-1] - ended[1])


def with_ray(dataset: Path, preset: str, stage_name: str, settings: list[str]) -> dict[str, float]:
    """Steps per second of the command after its first epoch, and what it takes beside its epochs."""
    words = [word for setting in settings for word in ("--set", setting)]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        command = [sys.executable, "-m", "jobs.train", str(dataset), "--out", f"{folder}/run", "--preset", preset,
                   "--stages", stage_name, "--loaders", "0", "--validate-every", "0", *words]  # fmt: skip
        subprocess.run(command, check=True, stdout=sys.stderr)
        seconds = time.perf_counter() - began
        lines = (Path(folder) / "run" / stage_name / METRICS).read_text(encoding="utf8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == "epoch"]
    counted = rows[1:]
    return {
        "steps": sum(row["steps_per_second"] * row["seconds"] for row in counted) / sum(r["seconds"] for r in counted),
        "beside": seconds - sum(row["seconds"] for row in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--stage", default="frame_32")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], help="as of `lawdnet train`")
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error("--epochs: at least 2, as the first is not counted")
    length = {"epochs_constant": options.epochs, "epochs_decay": 0, "warmup_steps": 0}
    settings = [*options.set, *(f"{options.stage}.{name}={value}" for name, value in length.items())]
    stage = (options.dataset, options.preset, options.stage, settings)
    found: dict[str, Any] = {"ray": with_ray(*stage)}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found["plain"] = {"steps": pool.apply(plain, (*stage, options.epochs))}
    found["ratio"] = found["ray"]["steps"] / found["plain"]["steps"]
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
