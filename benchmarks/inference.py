"""Compare rendering with the whole-crop generator and with the published structure; ratios carry over, not seconds.

    python -m benchmarks.inference [--mouths 64,96,256] [--batches 1,8] [--threads 2] [--seconds 4] [--size 1920x1080]

Prints a JSON object:

- `operations`: billions of multiply-adds of a frame by part of the generator, whole and as inference computes them:
  for a frame of the template that is seen for the first time, and again.
- `network`: ms per frame of the published structure, of `Generator.forward`, and of inference (first time, again).
- `end to end`: frames/s of a whole render (decode, crop, network, paste, encode) of a drawn head, and of its network
  alone on the same frames; with 2 threads both share the same cores.
- `memory`: resident MiB of a new process early and late in a longer render.

Everything is measured in turns, so that a busy machine affects all alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.core_speed import seconds
from benchmarks.published import PublishedGenerator
from lawdnet.inference.engine import Engine
from lawdnet.inference.mouths import Mouths
from lawdnet.inference.template import network_crop
from lawdnet.landmarks.openface import OpenFace
from lawdnet.models.generator import Generator, GeneratorConfig
from lawdnet.synthetic import write_talking_head
from lawdnet.types import SAMPLES_PER_FRAME
from lawdnet.video import decode
from tests.support.tiny_checkpoints import checkpoint

CONFIG = GeneratorConfig(audio_dim=320)
SMALL = GeneratorConfig(audio_dim=320, base_channels=16, warp_grid=12)
CROP_WIDTH = 320
REPORT_EVERY = 25
PARTS = ("source_encoder", "reference_encoder", "pair_encoder", "audio_encoder", "attention", "appearance", "decoder")


def generator(mouth_px: int, kind: type[Generator] = Generator, config: GeneratorConfig = CONFIG) -> Generator:
    torch.manual_seed(mouth_px)
    return kind(config).eval().requires_grad_(False)


def inputs(mouth_px: int, batch: int) -> tuple[Mouths, list[Tensor]]:
    """Return our inference for a new generator, and random frames, references and audio."""
    mouths = Mouths(
        generator(mouth_px), mouth_px=mouth_px, crop_width=CROP_WIDTH, region="lower-face", match_colour=False
    )
    height, width = mouths.size
    source = torch.rand(batch, 3, height, width) * mouths._keep_HW
    return mouths, [source, torch.rand(1, 15, height, width), torch.randn(batch, CONFIG.audio_dim, 5)]


def operations(mouth_px: int) -> dict[str, Any]:
    """Count multiply-adds in billions; those of the warp, which are not products of matrices, are left out.

    The products of Fourier transforms are complex, and counted once.
    """
    mouths, (source, reference, audio) = inputs(mouth_px, 1)
    network = mouths.network
    whole = _count(lambda: network.generator(source, reference, audio))
    references = network.references(reference[0])
    known = network.sources(source, references)
    return {
        "whole": whole,
        "once per template": _count(lambda: network.references(reference[0])),
        "first time": _count(lambda: network.mouths(references, network.sources(source, references), audio)),
        "again": _count(
            lambda: network.mouths(references, network.sources(source, references, known.image_BC86), audio)
        ),
        "floor: decoder of the pasted part": _count(lambda: network.mouths(references, known, audio)),
    }


def _count(run: Callable[[], object]) -> dict[str, float]:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    counts = {name: sum(flops.values()) / 2e9 for name, flops in counter.get_flop_counts().items()}
    parts = {name.removeprefix("Generator."): value for name, value in counts.items() if name.count(".") == 1}
    named = {name: round(value, 2) for name, value in parts.items() if name in PARTS}
    return {**named, "all": round(counts["Global"], 2)}


def network_times(mouth_px: int, batch: int, repeats: int) -> dict[str, float]:
    """Return ms per frame."""
    mouths, (source, reference, audio) = inputs(mouth_px, batch)
    network, published = mouths.network, generator(mouth_px, PublishedGenerator)
    stacked = reference.expand(batch, -1, -1, -1)
    references = network.references(reference[0])
    known = network.sources(source, references).image_BC86
    runs: dict[str, Callable[[bool], None]] = {
        "published": lambda _: _run(published, source, stacked, audio),
        "whole": lambda _: _run(network.generator, source, stacked, audio),
        "first time": lambda _: _run(lambda: network.mouths(references, network.sources(source, references), audio)),
        "again": lambda _: _run(lambda: network.mouths(references, network.sources(source, references, known), audio)),
    }
    took = seconds(runs, False, repeats, "cpu")
    table = {f"ms ({name})": round(1e3 * value / batch, 1) for name, value in took.items()}
    for name in ("first time", "again"):
        table[f"{name}: faster than whole"] = round(took["whole"] / took[name], 2)
        table[f"{name}: faster than published"] = round(took["published"] / took[name], 2)
    return table


def _run(function: Callable[..., object], *arguments: Tensor) -> None:
    with torch.inference_mode():
        function(*arguments)


def end_to_end(folder: Path, mouth_px: int, config: GeneratorConfig, frames: int, repeats: int) -> dict[str, float]:
    """Render a drawn head; the network alone gets the same crops in the same batches."""
    engine = Engine(save(folder / f"run_{mouth_px}_{config.base_channels}", mouth_px, config), device="cpu")
    template = engine.prepare(folder / "head.mp4", OpenFace())
    waveform = (0.1 * np.random.default_rng(0).standard_normal(frames * SAMPLES_PER_FRAME)).astype(np.float32)
    audio_TC5 = engine.audio_windows(waveform)
    shown = [frame for _, frame in decode(template.path, stop=frames)]
    crops = [network_crop(f, m, CROP_WIDTH, mouth_px) for f, m in zip(shown, template.matrix_T33, strict=False)]
    ratios, alone, whole = [], [], []
    for _ in range(repeats):
        engine._mouths._memories.clear()
        began = time.perf_counter()
        for start in range(0, frames, engine.batch_size):
            part = slice(start, start + engine.batch_size)
            ticks = list(range(frames))[part]
            engine._mouths.complete(template, ticks, crops[part], audio_TC5[part], np.zeros(len(ticks), bool))
        alone.append(time.perf_counter() - began)
        engine._mouths._memories.clear()
        whole.append(engine.render(template, waveform, folder / "out.mp4").seconds)
        ratios.append(alone[-1] / whole[-1])
    return {
        "frames/s": round(frames / statistics.median(whole), 2),
        "frames/s (network alone)": round(frames / statistics.median(alone), 2),
        "share of the network's speed": round(statistics.median(ratios), 2),
    }


def save(folder: Path, mouth_px: int, config: GeneratorConfig) -> Path:
    meta = {"mouth_px": mouth_px, "crop_width": CROP_WIDTH, "features": {"mel": {"dim": config.audio_dim}}}
    return checkpoint(folder / "epoch_0001", generator=generator(mouth_px, config=config), meta=meta)


def memory(folder: Path, frames: int) -> dict[str, int]:
    """Render with a small network, and look at the resident memory every second of video."""
    engine = Engine(save(folder / "memory", 32, SMALL), device="cpu")
    template = engine.prepare(folder / "head.mp4", OpenFace())
    waveform = np.zeros(frames * SAMPLES_PER_FRAME, np.float32)
    seen: list[int] = []

    def look(done: int, _: int) -> None:
        if done % REPORT_EVERY == 0:
            seen.append(resident())

    engine.render(template, waveform, folder / "memory.mp4", look)
    return {"early": max(seen[: len(seen) // 4]), "late": max(seen[len(seen) * 3 // 4 :]), "frames": frames}


def resident() -> int:
    """Return the resident memory of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) >> 10


def memory_in_new_process(folder: Path, frames: int) -> Any:
    code = f"from benchmarks.inference import *; print(json.dumps(memory(Path({str(folder)!r}), {frames})))"
    return json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mouths", default="64,96,256")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="length of the rendered video")
    parser.add_argument("--size", default="1920x1080", help="height x width of the rendered video")
    parser.add_argument("--memory-seconds", type=float, default=60)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    mouths = [int(text) for text in options.mouths.split(",")]
    height, width = (int(text) for text in options.size.split("x"))
    report: dict[str, Any] = {"torch": torch.__version__, "threads": options.threads, "size": options.size}
    report["operations"] = {f"m={mouth_px}": operations(mouth_px) for mouth_px in mouths}
    report["network"] = {
        f"m={mouth_px} batch {batch}": network_times(mouth_px, batch, options.repeats)
        for mouth_px in mouths
        for batch in map(int, options.batches.split(","))
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_talking_head(
            folder / "head.mp4", identity=1, motion=1, speech=1, seconds=options.seconds, size=(height, width)
        )
        frames = round(options.seconds * 25)
        cases = [(32, SMALL), *((mouth_px, CONFIG) for mouth_px in mouths)]
        report["end to end"] = {
            f"m={mouth_px} base {config.base_channels}": end_to_end(folder, mouth_px, config, frames, 2)
            for mouth_px, config in cases
        }
        report["memory"] = memory_in_new_process(folder, round(options.memory_seconds * 25))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
