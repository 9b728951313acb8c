"""Does the sync loss swing? The clip stage trained twice from the same weights on the same batches: as published (sync
loss whole from the first step, nothing clipped, the last weights count) and as here (ramped in, clipped, averaged).

    lawdnet synth videos && lawdnet build videos --out dataset --crop-width 160
    lawdnet train dataset --out run --preset small --stages syncnet,frame_64
    python benchmarks/oscillation.py dataset run --out figure

Writes oscillation.svg and oscillation.json: the sync loss of eight held-out clips after every second step, and as
`oscillation` the standard deviation of its changes from one measurement to the next once the ramp has ended.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lawdnet.data.manifest import Dataset, SegmentRef
from lawdnet.data.sampling import SampleSpec, draw_batches, plan_epoch
from lawdnet.models.saved import find_checkpoint, load_syncnet
from lawdnet.report.charts import Chart, chart
from lawdnet.training import checkpoint
from lawdnet.training.config import TrainConfig, make_config
from lawdnet.training.loop import to_batch
from lawdnet.training.shapes import mouth_square
from lawdnet.training.stages import Stage
from lawdnet.training.steps import GanStep, NonFiniteLoss
from lawdnet.types import TrainBatch

CPU = torch.device("cpu")
RAMP = 50
EVERY = 2
"""Steps between two measurements."""
RECIPES = {"published": ["sync_ramp=0", "grad_clip=0", "ema_decay=0"], "here": [f"sync_ramp={RAMP}"]}
TEXT = '<text x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>'
GRID = '<line x1="{x1}" x2="{x2}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e2e8f0"/>'
COLOURS = ("#c2410c", "#1d4ed8", "#15803d")


def batches(segments: Sequence[SegmentRef], spec: SampleSpec, width: int, seed: int) -> Iterator[TrainBatch]:
    """Without end."""
    for epoch in range(1_000_000):
        for work in plan_epoch(segments, spec, seed=seed, epoch=epoch, rank=0, world=1):
            yield from (to_batch(arrays, CPU) for arrays in draw_batches(work, spec, seed=seed, stored_width=width))


def recipe(name: str, mouth_px: int, sync: float, lr: float) -> tuple[TrainConfig, Stage]:
    """The small preset's clip stage at a frame stage's size, with one recipe's settings."""
    config = make_config("small", settings=["share_every=1", *RECIPES[name]])
    stage = config.stage("clip_256")
    weights = replace(stage.weights, gan=1.0, clip_gan=1.0, sync=sync)
    return config, replace(stage, mouth_px=mouth_px, lr=lr, weights=weights)


@torch.no_grad()
def sync_loss(step: GanStep, batch: TrainBatch, network: torch.nn.Module) -> float:
    """Mean squared distance from 1 of the sync network's score for what a generator draws."""
    assert step.syncnet
    assert batch.sync_audio_BC9 is not None
    made_BN3HW = step.generate(batch, network).unflatten(0, batch.source_BN3HW.shape[:2])
    square = mouth_square(made_BN3HW, step.stage.mouth_px, step.syncnet.config.face_px)
    return float((step.syncnet(square, batch.sync_audio_BC9).mean((1, 2, 3)) - 1).square().mean())


def train(name: str, dataset: Dataset, run: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Sync loss of the last weights and, where there is one, of their running mean; share of the gradient."""
    config, stage = recipe(name, options.mouth, options.sync_weight, options.lr)
    spec = config.sample_spec(stage)
    torch.manual_seed(config.seed)
    step = GanStep(config, stage, CPU, lambda network: network, audio_dim=dataset.feature_dim("mel"),
                   syncnet=load_syncnet(find_checkpoint(run, "syncnet")))  # fmt: skip
    checkpoint.start_from(find_checkpoint(run / "frame_64"), step)
    held_out = next(batches(dataset.segments("val"), replace(spec, batch_size=8), dataset.crop_width, 1))
    stream = batches(dataset.segments("train"), spec, dataset.crop_width, config.seed)
    curves: dict[str, list[float]] = {"last": [], "mean": [], "share": []}
    for number, batch in zip(range(options.steps), stream, strict=False):
        try:
            metrics = step(batch)
        except NonFiniteLoss as error:
            print(f"{name}: step {number}: {error}")
            break
        if number % EVERY == 0:
            curves["last"].append(sync_loss(step, held_out, step.networks["generator"]))
            curves["share"].append(float(metrics.get("share_sync", 0.0)))
            if step.ema:
                curves["mean"].append(sync_loss(step, held_out, step.judged))
    return curves


def summary(curve: Sequence[float]) -> dict[str, float]:
    """Level and unrest of a curve after the ramp."""
    late = np.asarray(curve[(RAMP + 20) // EVERY :])
    return {"oscillation": float(np.diff(late).std()), "mean": float(late.mean()), "worst": float(late.max()),
            "last": float(late[-10:].mean())}  # fmt: skip


def draw(curves: dict[str, list[float]]) -> str:
    """The curves as a picture that stands alone."""
    longest = max(map(len, curves.values()))
    plot: Chart = chart(curves, EVERY * np.arange(longest), x_label="step", size=(720, 300))
    size = f"{plot.width} {plot.height}"
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="sans-serif" font-size="12">']
    parts += ['<rect width="100%" height="100%" fill="white"/><g fill="#475569">']
    parts += [GRID.format(x1=plot.left, x2=plot.right, y=t.place) + TEXT.format(plot.left - 8, t.place + 4, t.text)
              for t in plot.y_ticks]  # fmt: skip
    parts += [TEXT.format(tick.place + 8, plot.bottom + 16, tick.text) for tick in plot.x_ticks]
    parts += [TEXT.format(plot.right, plot.height - 3, "step"), "</g>"]
    for row, ((label, path), colour) in enumerate(zip(plot.paths.items(), COLOURS, strict=False)):
        name = TEXT.format(plot.right - 8, 24 + 16 * row, label)
        parts += [f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/><g fill="{colour}">{name}</g>']
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """Trains by both recipes and writes the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("run", type=Path, help="with a finished syncnet and frame_64")
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--mouth", type=int, default=32, help="mouth size, of the run's frame_64")
    parser.add_argument("--sync-weight", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dataset = Dataset(options.dataset)
    curves = {name: train(name, dataset, options.run, options) for name in RECIPES}
    shown = {"as published": curves["published"]["last"], "here": curves["here"]["last"],
             "here, running mean of the weights": curves["here"]["mean"]}  # fmt: skip
    result: dict[str, Any] = {
        "settings": {"steps": options.steps, "mouth_px": options.mouth, "sync_weight": options.sync_weight,
                     "lr": options.lr, "recipes": RECIPES},
        "summary": {label: summary(curve) for label, curve in shown.items()},
        "curves": curves,
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "oscillation.svg").write_text(draw(shown), encoding="utf8")
    (options.out / "oscillation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")
    print(json.dumps(result["summary"], indent=1))


if __name__ == "__main__":
    main()
