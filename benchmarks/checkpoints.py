"""What a checkpoint costs a training of the preset `full`: how long training waits, how long writing takes, its size.

    python -m benchmarks.checkpoints [--repeats 5] [--every-seconds 300]

The networks have their real sizes, on the CPU; one step on small images fills the optimisers' states. On a GPU the copy
to the host comes on top, at some 10 GB/s. Prints a JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.gpu import AUDIO_DIM, arrays, make_step
from lawdnet.training import checkpoint
from lawdnet.training.checkpoint import Lineage
from lawdnet.training.config import make_config
from lawdnet.training.loop import HostBatch
from lawdnet.training.position import Position

SETTINGS = ("stages.mouth_px=32", "stages.batch_size=1", "stages.weights.perceptual=0")
LINEAGE = Lineage(dataset_hash="", crop_width=320, landmarks="", features={"mel": {"dim": AUDIO_DIM}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--every-seconds", type=float, default=300, help="time between two checkpoints")
    options = parser.parse_args()
    report: dict[str, dict[str, float]] = {}
    config = make_config("full", settings=SETTINGS)
    for stage in config.stages:
        step = make_step(config, stage, torch.device("cpu"), "ours")
        step(HostBatch(arrays(stage, config, seed=0)))
        copied, written = [], []
        with tempfile.TemporaryDirectory() as folder:
            for number in range(options.repeats):
                began = time.perf_counter()
                taken = checkpoint.snapshot(step, Position(1, 0))
                copied.append(time.perf_counter() - began)
                place = Path(folder) / str(number)
                place.mkdir()
                checkpoint.write(place, taken=taken, stage=stage, config=config, lineage=LINEAGE)
                written.append(time.perf_counter() - began - copied[-1])
            size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        waits = statistics.median(copied)
        report[stage.name] = {
            "training waits ms": round(1000 * waits, 1),
            "of the time %": round(100 * waits / options.every_seconds, 4),
            "written beside it ms": round(1000 * statistics.median(written), 1),
            "MB": round(size / 1e6, 1),
        }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
