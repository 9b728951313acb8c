"""Every step in turn, on drawn people: proves that an installation works, and that it learns."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
import torch

from lawdnet.audio.io import load_audio, write_wav
from lawdnet.data.config import BuildConfig
from lawdnet.data.manifest import Dataset
from lawdnet.evaluation.protocol import MouthMotion, compare, mouth_motion
from lawdnet.inference.engine import Engine
from lawdnet.landmarks.openface import OpenFace, read_csv
from lawdnet.report import QuickstartContent, quickstart_report
from lawdnet.storage import write_json
from lawdnet.synthetic import write_member, write_talking_head
from lawdnet.training import checkpoint
from lawdnet.training.config import TrainConfig, make_config
from lawdnet.training.loggers import read_jsonl
from lawdnet.training.options import RunOptions
from lawdnet.training.position import START
from lawdnet.training.steps import GanStep
from lawdnet.types import FPS
from pipelines.cluster import resources
from pipelines.train.train import METRICS, SAMPLES, lineage
from pipelines.workflows.steps import Steps, build_step, train_step

OnEvent = Callable[[str], None]

VIDEOS = 24
SECONDS = 5.0
CROP_WIDTH = 160
"""Drawn faces are no larger."""
HELD_OUT = {"identity": 90_001, "motion": 7, "seconds": SECONDS}
"""A person that training never sees."""
TEMPLATE_SPEECH = 502
"""Seed of what the person says in the template."""
TRUE_SPEECH = 501
"""Seed of what the person is made to say."""


def quickstart(out: Path, *, on_event: OnEvent) -> dict[str, Any]:
    """Synthesise people, build, train, render, evaluate and report; resumes where an earlier run stopped.

    A second run after a finished one only renders and evaluates again, as its seconds show.

    Args:
        out: gets videos/, held_out/, dataset/, run/, rendered/, report.html and summary.json.
        on_event: called with a line of text for each step and epoch.

    Returns:
        The content of summary.json.
    """

    @contextmanager
    def begin(name: str, text: str) -> Iterator[Any]:
        on_event(text)
        yield (lambda stage, row: on_event(_epoch_line(stage.name, row))) if name == "train" else None

    out = out.resolve()  # tasks run in folders of their own
    steps = Steps(begin)
    config = make_config("small")
    with steps.watch_memory():
        with resources.cluster():
            with steps.step("synth", f"drawing {VIDEOS} people who talk for {SECONDS:.0f} s"):
                _synthesise(out)
            dataset = build_step(out / "videos", out / "dataset", BuildConfig(crop_width=CROP_WIDTH), steps)
            train_step(dataset, out / "run", config, RunOptions(), steps)
        _save_untrained(out / "untrained" / "epoch_0000", dataset, config)
        with steps.step("infer", "lip-syncing a person it never saw to speech it never heard"):
            for name, source in (("generated", "run"), ("untrained", "untrained/epoch_0000")):
                _render(out / source, out, out / "rendered" / f"{name}.mp4")
        with steps.step("evaluate", "measuring the mouth"):
            trained, untrained = (_motion(out, name) for name in ("generated", "untrained"))
            quality = _compare(out)
    summary = {
        "mouth_correlation": round(trained.correlation, 4),
        "mouth_correlation_untrained": round(untrained.correlation, 4),
        "mouth_correlation_ceiling": round(trained.ceiling, 4),
        **quality,
        "seconds": steps.seconds,
        "peak_rss_mb": round(steps.peak_bytes / 1e6),
    }
    write_json(out / "summary.json", summary)
    _report(out, dataset, config, summary, trained, untrained)
    return summary | {"report": str(out / "report.html")}


def _synthesise(out: Path) -> None:
    """Write the videos to train on, and one more person twice: the template, and the truth of what it is to say."""
    done = out / "held_out" / "speech.wav"
    if done.exists():
        return
    done.parent.mkdir(parents=True, exist_ok=True)
    member = ray.remote(write_member)
    person = ray.remote(write_talking_head)
    truth = done.with_name("truth.mp4")
    tasks = [member.remote(out / "videos", index, seconds=SECONDS, seed=1) for index in range(VIDEOS)]
    tasks += [person.remote(done.with_name("template.mp4"), speech=TEMPLATE_SPEECH, **HELD_OUT)]
    tasks += [person.remote(truth, speech=TRUE_SPEECH, **HELD_OUT)]
    ray.get(tasks)
    write_wav(done, load_audio(truth, num_frames=round(SECONDS * FPS)))


def _save_untrained(folder: Path, dataset: Dataset, config: TrainConfig) -> None:
    """Save the last stage's generator before its first step, for comparison."""
    stage = config.stages[-2]
    torch.manual_seed(config.seed)
    dim = dataset.feature_dim(config.audio_feature)
    step = GanStep(config, stage, torch.device("cpu"), lambda network: network, audio_dim=dim)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save(folder, step, stage, config, lineage(dataset), position=START)


def _render(source: Path, out: Path, video: Path) -> None:
    engine = Engine(source)
    video.parent.mkdir(exist_ok=True)
    template = engine.prepare(out / "held_out" / "template.mp4", OpenFace())
    engine.render(template, out / "held_out" / "speech.wav", video)


def _motion(out: Path, name: str) -> MouthMotion:
    truth = out / "held_out" / "truth.mp4"
    return mouth_motion(truth, out / "rendered" / f"{name}.mp4", read_csv(truth.with_suffix(".csv")))


def _compare(out: Path) -> dict[str, float]:
    truth = out / "held_out" / "truth.mp4"
    found = compare(truth, out / "rendered" / "generated.mp4", read_csv(truth.with_suffix(".csv")))
    return {"frames": found.frames_generated, "mouth_psnr": round(found.mouth_psnr, 2), "psnr": round(found.psnr, 2)}


def _epoch_line(stage: str, row: dict[str, Any]) -> str:
    losses = {name: row[name] for name in ("total", "mouth", "sync", "accuracy") if name in row}
    numbers = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
    return f"  {stage} epoch {row['epoch']}: {numbers}  ({row['seconds']:.0f} s, data wait {row['data_wait']:.0%})"


def _report(
    out: Path,
    dataset: Dataset,
    config: TrainConfig,
    summary: dict[str, Any],
    trained: MouthMotion,
    untrained: MouthMotion,
) -> None:
    run = out / "run"
    last = {stage.name: sorted((run / stage.name / SAMPLES).glob("*.png"))[-1:] for stage in config.stages}
    counts = dataset.info["counts"]
    quickstart_report(
        out / "report.html",
        QuickstartContent(
            correlation=trained.correlation,
            untrained=untrained.correlation,
            ceiling=trained.ceiling,
            openings={
                "truth": trained.real_T.tolist(),
                "generated": trained.generated_T.tolist(),
                "untrained": untrained.generated_T.tolist(),
            },
            metrics={stage.name: read_jsonl(run / stage.name / METRICS) for stage in config.stages},
            videos={
                "Truth: what the person really did": out / "held_out" / "truth.mp4",
                "Generated from other footage and this speech": out / "rendered" / "generated.mp4",
                "Untrained": out / "rendered" / "untrained.mp4",
            },
            images={f"{name}: masked, reference, generated, truth": p[0] for name, p in last.items() if p},
            seconds=summary["seconds"],
            facts={
                "Dataset": f"{counts['accepted']} videos, {counts['segments']} segments, {counts['frames']} frames",
                "Machine": f"{platform.machine()}, {psutil.cpu_count()} cores, torch {torch.__version__}",
                "Peak memory": f"{summary['peak_rss_mb']} MB (resident, all processes)",
                "Generator": f"small preset, base_channels {config.base_channels}",
            },
        ),
    )
