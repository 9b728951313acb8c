"""Compare warp and generator with the published structure; ratios, not seconds, carry over to other machines.

    python -m benchmarks.core_speed [--threads 2] [--repeats 5] [--device cpu] [--compile]

Prints a JSON object. `memory` is how much one forward and backward pass, not compiled, raises the peak of a new
process's resident memory (CPU) or of the allocator (GPU). `--compile` runs our warp through torch.compile, alone and in
the generator; compilation itself is not timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.published import PublishedGenerator, PublishedWarp
from lawdnet.face.geometry import stage_size
from lawdnet.models.generator import Generator, GeneratorConfig
from lawdnet.models.warp import LocalAffineWarp

WARP_SIZES = ((26, 20), (104, 80))
MOUTHS = (64, 128, 256)
CONFIG = GeneratorConfig(audio_dim=29)


def warp(kind: str, size: tuple[int, int], device: str) -> Callable[[bool], None]:
    """Return a function that runs a warp, with or without gradients."""
    torch.manual_seed(0)
    made = PublishedWarp(layout="correct") if kind == "published" else LocalAffineWarp(256, 256, 5, 60, "correct")
    feature, code = torch.randn(1, 256, *size, device=device), torch.randn(1, 256, device=device)
    made = made.to(device)
    if kind == "compiled":
        made.compile()

    def run(backward: bool) -> None:
        with torch.set_grad_enabled(backward):
            out = made(feature.requires_grad_(backward), code)
            if backward:
                out.square().mean().backward()

    return run


def generator(kind: str, mouth_px: int, device: str) -> Callable[[bool], None]:
    """Return a function that runs a whole generator, with or without gradients."""
    torch.manual_seed(0)
    made = (PublishedGenerator if kind == "published" else Generator)(CONFIG).to(device)
    if kind == "compiled":
        made.warp.compile()
    height, width = stage_size(mouth_px)
    inputs = [torch.rand(1, channels, height, width, device=device) for channels in (3, 15)]
    audio = torch.randn(1, 29, 5, device=device)

    def run(backward: bool) -> None:
        with torch.set_grad_enabled(backward):
            out = made(*inputs, audio)
            if backward:
                out.square().mean().backward()

    return run


def seconds(runs: dict[str, Callable[[bool], None]], backward: bool, repeats: int, device: str) -> dict[str, float]:
    """Return the median time of each, measured in turns so that a busy machine affects all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run(backward)
            if device != "cpu":
                torch.cuda.synchronize()
            if turn:  # the first turn is for warm-up
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def peak(kind: str, size: tuple[int, int], device: str) -> int:
    """Return the MiB of one forward and backward pass of a warp, in this process."""
    run = warp(kind, size, device)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(True)
        return (torch.cuda.max_memory_allocated() - before) >> 20
    before = high_water()
    run(True)
    return (high_water() - before) >> 10


def high_water() -> int:
    """Return the peak resident memory of this process in KiB; `getrusage` would include the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def peak_in_new_process(kind: str, size: tuple[int, int], device: str) -> int:
    """Run `peak` in a new process."""
    code = f"from benchmarks.core_speed import peak; print(peak({kind!r}, {size!r}, {device!r}))"
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def compare(
    make: Callable[..., Callable[[bool], None]], ours: str, size: object, repeats: int, device: str
) -> dict[str, float]:
    runs = {kind: make(kind, size, device) for kind in ("published", ours)}
    result: dict[str, float] = {}
    for name, backward in (("forward", False), ("forward+backward", True)):
        took = seconds(runs, backward, repeats, device)
        result |= {f"{name} ms ({kind})": round(1e3 * value, 1) for kind, value in took.items()}
        result[f"{name} ratio"] = round(took["published"] / took[ours], 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ours = "compiled" if options.compile else "ours"
    report: dict[str, object] = {"torch": torch.__version__, "threads": options.threads, "device": options.device}
    for size in WARP_SIZES:
        entry = compare(warp, ours, size, options.repeats, options.device)
        peaks = {kind: peak_in_new_process(kind, size, options.device) for kind in ("published", "ours")}
        entry |= {f"memory MiB ({kind})": value for kind, value in peaks.items()}
        entry["memory ratio"] = round(peaks["ours"] / max(1, peaks["published"]), 3)
        report[f"warp {size[0]}x{size[1]}"] = entry
    for mouth_px in MOUTHS:
        report[f"generator m={mouth_px}"] = compare(generator, ours, mouth_px, options.repeats, options.device)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
