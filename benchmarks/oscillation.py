"""Does the sync loss swing? The clip stage trained from the same weights on the same batches: as published (one
learning rate for all stages, sync loss whole from the first step, nothing bounded or clipped, the last weights count),
the same with this stage's rate of the small preset, and as here (that rate; ramped in, bounded, clipped, averaged).

    lawdnet quickstart --out q
    lawdnet synth people --videos 16 --seconds 5 --seed 77
    lawdnet build people --out held_out --crop-width 160 --set val_fraction=0.9
    python benchmarks/oscillation.py q/dataset q/run held_out --out figure

Measured on people that were never trained on: the sync loss and the error of the mouth on eight clips after every third
step, and at the end the correlation of the mouth's opening with the truth's. `oscillation` is the standard deviation of
a curve about a straight line, over the second half of the steps. Writes oscillation.json, after every training, and
oscillation.png; a training that oscillation.json holds already is not repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from lawdnet.data.manifest import Dataset
from lawdnet.data.sampling import SampleSpec, draw_batches, plan_epoch
from lawdnet.data.segment_list import SegmentRef
from lawdnet.evaluation import validation
from lawdnet.models.saved import find_checkpoint, load_syncnet
from lawdnet.report.charts import nice_ticks
from lawdnet.training import checkpoint
from lawdnet.training.config import TrainConfig, make_config
from lawdnet.training.loop import to_batch
from lawdnet.training.losses import mouth_l1
from lawdnet.training.shapes import mouth_square
from lawdnet.training.stages import Stage
from lawdnet.training.steps import GanStep
from lawdnet.types import TrainBatch, UInt8

CPU = torch.device("cpu")
EVERY = 3
"""Steps between two measurements."""
PUBLISHED = [
    "sync_ramp=0",
    "sync_share=1",
    "grad_clip=0",
    "ema_decay=0",
    "clip_96.weights.gan=1",
    "clip_96.weights.clip_gan=1",
]
RECIPES = {"published": PUBLISHED, "published, our rate": PUBLISHED, "here": ["sync_ramp=50"]}
SHOWN = {
    "published": ("published", "last"),
    "published, our rate": ("published, our rate", "last"),
    "here": ("here", "last"),
    "here, running mean": ("here", "mean"),
}
"""Curve → recipe, and which of its weights generate."""
PANEL = (560, 420)
"""Width and height, px."""
LEFT, RIGHT, TOP, BOTTOM = 70, 16, 44, 44
INK, GRID = (105, 85, 71), (240, 232, 226)
COLOURS = {
    "published": (12, 65, 194),
    "published, our rate": (60, 170, 240),
    "here": (216, 78, 29),
    "here, running mean": (61, 128, 21),
}


def batches(segments: Sequence[SegmentRef], spec: SampleSpec, width: int, seed: int) -> Iterator[TrainBatch]:
    """Yield batches without end."""
    for epoch in range(1_000_000):
        for work in plan_epoch(segments, spec, seed=seed, epoch=epoch, rank=0, world=1):
            yield from (to_batch(arrays, CPU) for arrays in draw_batches(work, spec, seed=seed, stored_width=width))


def recipe(name: str, seed: int, sync: float) -> tuple[TrainConfig, Stage]:
    """The small preset's clip stage at the size of its first stage. The published recipe has its own weights of the two
    discriminators; both recipes use the preset's absolute errors in place of VGG19's features."""
    config = make_config("small", settings=[f"seed={seed}", f"clip_96.weights.sync={sync}", *RECIPES[name]])
    stage, first = config.stage("clip_96"), config.stage("frame_32")
    return config, replace(stage, mouth_px=first.mouth_px, lr=first.lr if name == "published" else stage.lr)


@dataclass(frozen=True)
class Evaluator:
    """Measures on eight held-out clips for the curves, and on all held-out people at the end."""

    clips: TrainBatch
    segments: list[SegmentRef]
    stored_width: int

    @torch.no_grad()
    def __call__(self, step: GanStep, network: torch.nn.Module) -> tuple[float, float]:
        """Squared distance of the sync network's score from 1, and the mean absolute error of the mouth."""
        assert step.syncnet
        assert self.clips.sync_audio_BC9 is not None
        generated_M3HW = step.generate(self.clips, network)
        generated_BN3HW = generated_M3HW.unflatten(0, self.clips.source_BN3HW.shape[:2])
        square = mouth_square(generated_BN3HW, step.stage.mouth_px, step.syncnet.config.face_px)
        sync = (step.syncnet(square, self.clips.sync_audio_BC9).mean((1, 2, 3)) - 1).square().mean()
        return float(sync), float(mouth_l1(generated_M3HW, self.clips.source_BN3HW.flatten(0, 1), 1 - step.keep_HW))

    def correlation(self, step: GanStep, network: torch.nn.Module) -> float:
        """Correlation of the mouth's opening with the truth's."""
        sums = validation.validate(
            network, self.segments, mouth_px=step.stage.mouth_px, audio="mel", stored_width=self.stored_width
        )
        return validation.metrics(sums)["mouth_correlation"]


def train(
    name: str, dataset: Dataset, run: Path, others: Dataset, *, seed: int, sync: float, steps: int
) -> dict[str, Any]:
    """The curves of one recipe for its `last` weights, and for their running `mean` if there is one."""
    config, stage = recipe(name, seed, sync)
    spec = config.sample_spec(stage)
    torch.manual_seed(seed)
    step = GanStep(
        config,
        stage,
        CPU,
        lambda network: network,
        audio_dim=dataset.feature_dim("mel"),
        syncnet=load_syncnet(find_checkpoint(run, "syncnet")),
    )
    checkpoint.start_from(find_checkpoint(run / "frame_32"), step)
    held_out = others.segments("val")
    clips = next(batches(held_out, replace(spec, batch_size=8), others.crop_width, 1))
    evaluate = Evaluator(clips, validation.plan(held_out), others.crop_width)
    networks = {"last": step.networks["generator"]} | ({"mean": step.evaluated} if step.ema else {})
    curves: dict[str, dict[str, list[float]]] = {which: {"sync": [], "mouth": []} for which in networks}
    stream = batches(dataset.segments("train"), spec, dataset.crop_width, seed)
    for number, batch in zip(range(steps), stream, strict=False):
        step(batch)
        if number % EVERY == 0:
            for which, network in networks.items():
                for key, value in zip(("sync", "mouth"), evaluate(step, network), strict=True):
                    curves[which][key].append(value)
    return {
        which: curves[which] | {"correlation": evaluate.correlation(step, network)}
        for which, network in networks.items()
    }


def summary(found: dict[str, Any]) -> dict[str, float]:
    """Unrest of the second half and level of its last third, of one network of one training."""
    figures = {"correlation": found["correlation"]}
    for key in ("sync", "mouth"):
        late = np.asarray(found[key][len(found[key]) // 2 :])
        steps = np.arange(len(late))
        figures[f"{key}_oscillation"] = float((late - np.polyval(np.polyfit(steps, late, 1), steps)).std())
        figures[f"{key}_worst"] = float(late.max())
        figures[f"{key}_level"] = float(late[-len(late) // 3 :].mean())
    return figures


def plot(title: str, curves: dict[str, list[float]], top: float) -> UInt8:
    """One panel: sync loss over steps, up to `top`."""
    width, height = PANEL
    panel = np.full((height, width, 3), 255, np.uint8)
    steps = EVERY * (max(map(len, curves.values())) - 1)

    def point(step: float, value: float) -> tuple[int, int]:
        down = (height - BOTTOM) - min(value, top) / top * (height - BOTTOM - TOP)
        return round(LEFT + step / steps * (width - LEFT - RIGHT)), round(down)

    def write(text: str, x: int, y: int, colour: tuple[int, int, int] = INK, size: float = 0.45) -> None:
        cv2.putText(panel, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)

    for value in nice_ticks(0, top):
        if value <= top:
            cv2.line(panel, point(0, value), point(steps, value), GRID, 1)
            write(f"{value:.2g}", 20, point(0, value)[1] + 5)
    for tick in nice_ticks(0, steps):
        if tick <= steps:
            write(f"{tick:.0f}", point(tick, 0)[0] - 10, height - BOTTOM + 20)
    write("step", width - RIGHT - 36, height - 8)
    write(title, LEFT, 24, size=0.55)
    for row, (label, curve) in enumerate(curves.items()):
        points = np.array([point(EVERY * i, value) for i, value in enumerate(curve)], np.int32)
        cv2.polylines(panel, [points], False, COLOURS[label], 2 if "mean" in label else 1, cv2.LINE_AA)
        write(label, width - 190, TOP + 18 + 20 * row, COLOURS[label], 0.5)
    return panel


def figure(results: dict[str, Any], seeds: Sequence[int], weights: Sequence[float]) -> UInt8:
    """A row of panels for each weight of the sync loss, a panel for each seed."""
    rows = []
    for weight in weights:
        panels = [
            {label: results[f"{name} {weight:g} {seed}"][which]["sync"] for label, (name, which) in SHOWN.items()}
            for seed in seeds
        ]
        top = float(max(max(curve[5:]) for panel in panels for curve in panel.values()))
        rows.append(
            np.hstack(
                [
                    plot(f"held-out sync loss, weight {weight:g}, seed {seed}", panel, top)
                    for seed, panel in zip(seeds, panels, strict=True)
                ]
            )
        )
    return np.vstack(rows)


def table(results: dict[str, Any], seeds: Sequence[int], weights: Sequence[float]) -> str:
    """Means over the seeds as Markdown."""
    rows = [
        "| sync weight | recipe | sync oscillation | sync loss | mouth oscillation | mouth error | correlation |",
        "|---|---|---|---|---|---|---|",
    ]
    for weight in weights:
        for label, (name, which) in SHOWN.items():
            found = [summary(results[f"{name} {weight:g} {seed}"][which]) for seed in seeds]
            mean = {key: np.mean([row[key] for row in found]) for key in found[0]}
            wanted = ("sync_oscillation", "sync_level", "mouth_oscillation", "mouth_level", "correlation")
            cells = [f"{mean[key]:.4f}" for key in wanted]
            rows.append(f"| {weight:g} | {label} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Trains by all recipes and writes the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("run", type=Path, help="with a finished syncnet and frame_32")
    parser.add_argument("held_out", type=Path, help="dataset of other people, marked val")
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--sync-weights", type=float, nargs="+", default=[1.0])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    file, dataset, others = options.out / "oscillation.json", Dataset(options.dataset), Dataset(options.held_out)
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for weight in options.sync_weights:
        for seed in options.seeds:
            for name in RECIPES:
                if (key := f"{name} {weight:g} {seed}") not in results:
                    results[key] = train(
                        name, dataset, options.run, others, seed=seed, sync=weight, steps=options.steps
                    )
                    file.write_text(json.dumps(results), encoding="utf8")
                    print(key, {which: summary(found) for which, found in results[key].items()}, flush=True)
    image = figure(results, options.seeds, options.sync_weights)
    (options.out / "oscillation.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    print(table(results, options.seeds, options.sync_weights))


if __name__ == "__main__":
    main()
