"""What a GPU makes of training and inference: one command, at most eight minutes, one JSON file and one table.

    python -m benchmarks.gpu [--out gpu.json] [--minutes 8]
    python -m benchmarks.gpu --device cpu --tiny        the same code on small sizes, without a GPU
    python -m benchmarks.gpu --device cpu --batch 1 --minutes 60        real sizes on a CPU: ratios of the structures

For every stage of the preset `full` (those of `published` have the same sizes), with our networks and with the
published structure (`benchmarks/published.py`): samples per second, peak memory, TFLOP/s and their share of what a
large product of matrices reaches in the same number format, and the share of a step in the warp, convolutions,
optimisers and copies, by the profiler. Then the frames that a generator makes, against 25 per second. VGG19 has random
weights, which take as long as trained ones. Batches are random and lie in memory: drawing them is measured elsewhere.
What the time or the memory does not suffice for is listed as not measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.published import PublishedGenerator, PublishedWarp
from lawdnet.data.sampling import HEARD_FRAMES
from lawdnet.face.geometry import stage_size
from lawdnet.models.generator import Generator
from lawdnet.models.perceptual import VGG19Features
from lawdnet.models.syncnet import SyncNet
from lawdnet.models.warp import LocalAffineWarp
from lawdnet.training.config import TrainConfig, make_config
from lawdnet.training.loop import HostBatch
from lawdnet.training.precision import Precision
from lawdnet.training.shapes import generator_config, syncnet_config
from lawdnet.training.stages import PRESETS, Stage
from lawdnet.training.steps import GanStep, Step, SyncStep
from lawdnet.types import CLIP_FRAMES, FPS

AUDIO_DIM = 80
TINY = (
    "base_channels=4",
    "sync_channels=4",
    "disc_channels=4",
    "warp_grid=6",
    "stages.mouth_px=32",
    "stages.batch_size=2",
    "sync_windows=1",
)
WARM_UP = 3
"""Steps that are not timed: they compile, and choose algorithms."""
KINDS = {
    "warp": ("warp", "CompiledFunction"),
    "optimiser": ("Optimizer.step", "Optimizer.zero_grad", "clip_grad", "get_total_norm", "_foreach_lerp_"),
    "convolutions": ("conv",),
    "copies": ("aten::copy_", "aten::_to_copy", "Memcpy", "aten::_pin_memory"),
}
"""Parts of a step, by what the names of an operation or of those that called it contain; the first that fits counts."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A stage with a structure in a number format."""

    stage: str
    structure: str
    precision: str
    batch: int
    samples_per_second: float = 0.0
    step_ms: float = 0.0
    memory_gb: float = 0.0
    """Peak of the tensors on a GPU; 0 elsewhere."""
    tflop_per_step: float = 0.0
    """Of convolutions and products of matrices, counted."""
    tflops: float = 0.0
    """Per second."""
    roof_share: float = 0.0
    shares: dict[str, float] = field(default_factory=dict)
    """Share of the device's time, by part of the step."""
    failed: str = ""


class PublishedStep(GanStep):
    """Our step with the published structure of the generator."""

    def _add_generator(self, generator: Generator) -> None:
        super()._add_generator(PublishedGenerator(generator.config))


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small networks and images, to try the program")
    parser.add_argument("--batch", type=int, default=0, help="samples per step, if not those of the preset")
    parser.add_argument("--stages", default="", help="names of stages, with commas between; all if none are named")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("benchmarks.gpu: torch finds no GPU here; try the program with --device cpu --tiny", file=sys.stderr)
        return 1
    settings = [*(TINY if options.tiny else ()), *([f"stages.batch_size={options.batch}"] if options.batch else [])]
    wanted = options.stages.split(",") if options.stages else [stage.name for stage in PRESETS["full"]]
    report = measure(device, settings, wanted, seconds=60 * options.minutes)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf8")
    print("\n".join([*table(report), f"written to {options.out}"]))
    return 0


def measure(device: torch.device, settings: Sequence[str], wanted: Sequence[str], *, seconds: float) -> dict[str, Any]:
    """Measure everything that there is time for.

    Args:
        settings: that differ from the preset.
        wanted: names of stages.
    """
    tiny = set(TINY) <= set(settings)
    end = time.monotonic() + seconds
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    roofs = {
        name: roof(name, device, size=8192 if device.type == "cuda" and not tiny else 256)
        for name in ("fp32", "tf32", "bf16")
    }
    report: dict[str, Any] = {"device": name, "torch": torch.__version__, "tiny": tiny, "roof_tflops": roofs}
    rows: list[Row] = []
    for structure, precision, stage in plan(device):
        if stage not in wanted:
            continue
        config = replace(make_config("full", settings=settings), precision=precision)
        row = Row(stage=stage, structure=structure, precision=precision, batch=config.stage(stage).batch_size)
        rows.append(tried(lambda row=row, config=config: measured(row, config, device, roofs), row, end))
        print(line(rows[-1]), file=sys.stderr, flush=True)
    report["stages"] = [asdict(row) for row in rows]
    mouths = (32,) if tiny else (64, 128, 256, 288)
    report["inference"] = [inference(mouth_px, batch, tiny, device) for mouth_px in mouths for batch in (1, 8)]
    return report


def plan(device: torch.device) -> Iterator[tuple[str, str, str]]:
    """Structure, number format and stage of every row, the most wanted first."""
    full, published = PRESETS["full"], PRESETS["published"]
    assert [(s.mouth_px, s.num_frames, s.batch_size) for s in full] == [
        (s.mouth_px, s.num_frames, s.batch_size) for s in published
    ], "one measurement is for both presets"
    best = "bf16" if device.type == "cuda" else "fp32"
    kinds = dict.fromkeys([("ours", best), ("published", "fp32"), ("published", best), ("ours", "fp32")])
    for structure, precision in kinds:
        for stage in full:
            if stage.kind == "gan" or (structure, precision) == ("ours", best):  # the published sync network is ours
                yield structure, precision, stage.name


def tried(action: Callable[[], Row], row: Row, end: float) -> Row:
    """The measured row, or the reason why there is none."""
    if time.monotonic() > end:
        return replace(row, failed="no time left")
    try:
        return action()
    except torch.OutOfMemoryError:
        return replace(row, failed="out of memory")
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def measured(row: Row, config: TrainConfig, device: torch.device, roofs: dict[str, float]) -> Row:
    """Measure one row."""
    stage = config.stage(row.stage)
    batches = [HostBatch(arrays(stage, config, seed)) for seed in range(2)]
    with FlopCounterMode(display=False) as counter:  # what is compiled cannot be counted
        make_step(replace(config, compile=False), stage, device, row.structure)(batches[0])
    tflop = counter.get_total_flops() / 1e12
    is_ours = row.structure == "ours"
    step = make_step(config if is_ours else replace(config, compile=False), stage, device, row.structure)
    for number in range(WARM_UP if device.type == "cuda" else 1):
        step(batches[number % 2])
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    steps = 2 if device.type == "cpu" else 20
    wait(device)
    began = time.perf_counter()
    for number in range(steps):
        step(batches[number % 2])
    wait(device)
    took = (time.perf_counter() - began) / steps
    memory = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0
    reached = tflop / took
    return replace(
        row,
        samples_per_second=round(stage.batch_size / took, 2),
        step_ms=round(1000 * took, 2),
        memory_gb=round(memory, 2),
        tflop_per_step=round(tflop, 6),
        tflops=round(reached, 3),
        roof_share=round(reached / roofs[row.precision], 4),
        shares=shares(step, batches[0], device),
    )


def make_step(config: TrainConfig, stage: Stage, device: torch.device, structure: str) -> Step:
    """A step with random weights, whose sync loss counts."""
    torch.manual_seed(0)
    config = replace(config, sync_ramp=0)
    if stage.kind == "syncnet":
        return SyncStep(config, stage, device, lambda network: network, audio_dim=AUDIO_DIM)
    kind = GanStep if structure == "ours" else PublishedStep
    syncnet = SyncNet(syncnet_config(config, config.stages[0], AUDIO_DIM)) if stage.weights.sync else None
    step = kind(config, stage, device, lambda network: network, audio_dim=AUDIO_DIM, syncnet=syncnet)
    if stage.weights.perceptual:
        step.features = VGG19Features().to(device)
    for module in step.networks["generator"].modules():
        if isinstance(module, LocalAffineWarp | PublishedWarp):
            module.register_forward_pre_hook(_enter)
            module.register_forward_hook(_leave)
    return step


_open: list[record_function] = []


def _enter(*_: object) -> None:
    _open.append(record_function("warp"))
    _open[-1].__enter__()


def _leave(*_: object) -> None:
    _open.pop().__exit__(None, None, None)


def arrays(stage: Stage, config: TrainConfig, seed: int) -> dict[str, np.ndarray]:
    """A batch as the sampler gives it, of noise."""
    rng = np.random.default_rng(seed)
    size, frames = stage.batch_size, stage.num_frames
    shape = (*stage_size(stage.mouth_px), 3)

    def audio(rows: int, *more: int) -> np.ndarray:
        return rng.standard_normal((size, *more, AUDIO_DIM, rows), np.float32)

    batch = {"source": rng.integers(0, 256, (size, frames, *shape), np.uint8), "audio": audio(5, frames)}
    if stage.kind == "gan":
        batch["reference"] = rng.integers(0, 256, (size, frames, 5, *shape), np.uint8)
    if config.sample_spec(stage).lips:
        batch |= {
            "lip_audio": audio(5, HEARD_FRAMES),
            "lips": rng.standard_normal((size, HEARD_FRAMES, 40), np.float32),
            "lip_points": rng.standard_normal((size, frames, 40), np.float32),
        }
    if config.sample_spec(stage).sync:
        batch["sync_audio"] = audio(CLIP_FRAMES)
    if stage.kind == "syncnet":
        batch |= {"other_audio": audio(CLIP_FRAMES), "quiet_audio": audio(CLIP_FRAMES)}
    return batch


def shares(step: Step, batch: HostBatch, device: torch.device) -> dict[str, float]:
    """The share of the device's time in each part of a step."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        step(batch)
        wait(device)
    events = [event for event in profiler.events() or () if event.device_type == torch.autograd.DeviceType.CPU]
    warped = {one.sequence_nr for one in events if one.sequence_nr >= 0 and "warp" in (c.name for c in callers(one))}
    spent: Counter[str] = Counter()
    for event in events:
        time_us = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        spent[kind_of(event, warped)] += time_us
    total = sum(spent.values())
    return {name: round(spent[name] / total, 4) for name in (*KINDS, "other")} if total else {}


def callers(event: FunctionEvent) -> Iterator[FunctionEvent]:
    """An operation, and those that called it."""
    caller: FunctionEvent | None = event
    while caller is not None:
        yield caller
        caller = caller.cpu_parent


def kind_of(event: FunctionEvent, warped: set[int]) -> str:
    """The part of a step that an operation belongs to, by its name and the names of its callers.

    Args:
        warped: sequence numbers of the operations of the warp, which their backward passes share.
    """
    found = list(callers(event))
    if any(one.name.startswith("autograd::") and one.sequence_nr in warped for one in found):
        return "warp"
    for kind, parts in KINDS.items():
        if any(part in one.name for one in found for part in parts):
            return kind
    return "other"


def roof(name: str, device: torch.device, size: int) -> float:
    """TFLOP/s of a large product of matrices, in a number format."""
    precision = Precision(name, device)
    left, right = (torch.randn(size, size, device=device, dtype=precision.dtype) for _ in range(2))
    times: list[float] = []
    for _ in range(6):
        wait(device)
        began = time.perf_counter()
        left @ right
        wait(device)
        times.append(time.perf_counter() - began)
    return round(2 * size**3 / min(times) / 1e12, 3)


@torch.inference_mode()
def inference(mouth_px: int, batch: int, tiny: bool, device: torch.device) -> dict[str, float]:
    """Frames per second of a generator alone, with the images from the host and back."""
    config = make_config("full", settings=TINY if tiny else ())
    precision = Precision("auto", device)
    network = precision.place(Generator(generator_config(config, AUDIO_DIM))).eval()
    height, width = stage_size(mouth_px)
    images = [torch.rand(batch, channels, height, width) for channels in (3, 15)]
    audio = torch.randn(batch, AUDIO_DIM, 5)
    times: list[float] = []
    for _ in range(3 if device.type == "cpu" else 20):
        began = time.perf_counter()
        with precision.autocast():
            made = network(*(image.to(device) for image in images), audio.to(device))
        (made.float().clamp(0, 1) * 255).byte().cpu()
        times.append(time.perf_counter() - began)
    rate = batch / sorted(times)[len(times) // 2]
    return {
        "mouth_px": mouth_px,
        "batch": batch,
        "frames_per_second": round(rate, 1),
        "real_time": round(rate / FPS, 2),
    }


def wait(device: torch.device) -> None:
    """Wait until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def line(row: Row) -> str:
    """A row of the table."""
    head = f"{row.stage:10} {row.structure:9} {row.precision:5} {row.batch:5}"
    if row.failed:
        return f"{head}  not measured: {row.failed}"
    parts = " ".join(f"{name} {100 * share:.0f}%" for name, share in row.shares.items())
    return (
        f"{head} {row.samples_per_second:10.1f} {row.step_ms:9.1f} {row.memory_gb:7.2f} {row.tflops:8.2f} "
        f"{100 * row.roof_share:5.1f}%  {parts}"
    )


def table(report: dict[str, Any]) -> list[str]:
    """The report as lines of text."""
    head = f"{'stage':10} {'structure':9} {'':5} batch  samples/s   ms/step      GB  TFLOP/s  roof   device's time"
    rates = [
        f"inference, mouth {one['mouth_px']} px, {one['batch']} at a time: {one['frames_per_second']:.1f} frames/s, "
        f"{one['real_time']:.2f} times real time (the network alone)"
        for one in report["inference"]
    ]
    roofs = ", ".join(f"{name} {value:.1f}" for name, value in report["roof_tflops"].items())
    first = f"{report['device']}, torch {report['torch']}, roof in TFLOP/s: {roofs}"
    return [first, head, *(line(Row(**row)) for row in report["stages"]), *rates]


if __name__ == "__main__":
    sys.exit(main())
