"""Everything in a row: a dataset, all stages, and people who say what they never said.

`quickstart` does it on drawn people, which proves that an installation works; `curriculum` on anybody's videos.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray
import torch

from lawdnet.audio.io import load_audio, write_wav
from lawdnet.data.config import BuildConfig
from lawdnet.data.manifest import MANIFEST, Dataset
from lawdnet.data.transfer import refuse_inside, source_folder
from lawdnet.evaluation.protocol import MouthMotion, compare, mouth_motion
from lawdnet.inference.engine import Engine
from lawdnet.landmarks.openface import OpenFace, read_csv
from lawdnet.report import (
    CurriculumContent,
    QuickstartContent,
    curriculum_report,
    inspect_report,
    quickstart_report,
    run_report,
)
from lawdnet.storage import Location, locate, write_json
from lawdnet.synthetic import write_member, write_talking_head
from lawdnet.training import checkpoint
from lawdnet.training.config import TrainConfig, make_config
from lawdnet.training.loggers import read_jsonl
from lawdnet.training.steps import GanStep
from lawdnet.types import FPS
from pipelines import parents, resources
from pipelines.background import repeated
from pipelines.checkpoints import Shelf, metrics_of
from pipelines.dataset import build
from pipelines.inputs import list_inputs, named, resolve
from pipelines.pairs import pair, with_names
from pipelines.rendering import render
from pipelines.running import Running
from pipelines.training import METRICS, SAMPLES, check_workers, lineage, train

OnEvent = Callable[[str], None]
Begin = Callable[[str, str], AbstractContextManager[Any]]
"""Called with the name of a step and what it does; gives, while it lasts, what the step's pipeline is to call as it
gets on (`on_row` of a build and of renders, `on_epoch` of training), or None."""
Row = dict[str, Any]

VIDEOS, SECONDS = 24, 5.0
CROP_WIDTH = 160
"""The drawn faces are no larger."""
HELD_OUT = {"identity": 90_001, "motion": 7, "seconds": SECONDS}
"""A person that training never sees; the seeds of what it says are those below."""
SAID, TO_SAY = 502, 501

MOST_RENDERED = 8
"""Held-out videos that a curriculum renders, each with its own speech and with another's."""


@dataclass
class _Steps:
    """Seconds per step and the peak memory of this process and its children."""

    begin: Begin
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0

    @contextmanager
    def step(self, name: str, text: str) -> Iterator[Any]:
        began = time.perf_counter()
        with self.begin(name, text) as on_progress:
            yield on_progress
        self.seconds[name] = round(time.perf_counter() - began, 2)

    def watch_memory(self) -> AbstractContextManager[None]:
        """Samples the resident memory of the whole process tree; shared pages count in each process."""
        us = psutil.Process()

        def sample() -> None:
            self.peak_bytes = max(self.peak_bytes, sum(map(_resident, [us, *us.children(recursive=True)])))

        return repeated(sample)


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:  # it has ended meanwhile
        return 0


def quickstart(out: Path, *, on_event: OnEvent) -> dict[str, Any]:
    """Draws, builds, trains, renders, evaluates and reports; what is already there is kept and gone on with.

    A second run after a finished one only renders and evaluates again; its seconds say so.

    Args:
        out: gets videos/, held_out/, dataset/, run/, rendered/, report.html and summary.json.
        on_event: called with a line of text at each step and epoch.

    Returns:
        The content of summary.json.
    """

    @contextmanager
    def begin(name: str, text: str) -> Iterator[Any]:
        on_event(text)
        yield (lambda stage, row: on_event(_epoch_line(stage.name, row))) if name == "train" else None

    out, steps = out.resolve(), _Steps(begin)  # tasks run in folders of their own
    config = make_config("small")
    with steps.watch_memory():
        with resources.cluster():
            with steps.step("synth", f"drawing {VIDEOS} people who talk for {SECONDS:.0f} s"):
                _draw(out)
            dataset = _build(out / "videos", out / "dataset", BuildConfig(crop_width=CROP_WIDTH), steps)
            _train(dataset, out / "run", config, Running(), steps)
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


def curriculum(
    source: Location,
    out: Location,
    build_config: BuildConfig,
    config: TrainConfig,
    running: Running,
    *,
    weights_dir: Path | None = None,
    sync: Path | None = None,
    gpu: float = 0.0,
    begin: Begin,
) -> Row:
    """From videos, or a dataset, to a trained run and renders of people whom it has not seen; goes on where it stopped.

    Args:
        source: videos as `build` takes them, or a dataset, which is used as it is.
        out: gets dataset/ (unless there is one), run/, renders/, report.html with its parts, and summary.json.
        build_config, weights_dir, sync: as `build` takes them; landmarks and weights are those of the renders too.
        config, running: as `train` takes them.
        gpu: share of a GPU for each worker that builds or renders.

    Returns:
        The content of summary.json: `dataset`, `run`, `stage`, `figures` (the last validation of the last generator
        stage, with `truth_…` and `baseline_…`), `renders` (rows of `render`), `seconds` of each step, `report`.

    Raises:
        ValueError: what `build`, `train` or `render` refuse, or no video is held out.
    """
    source, out, steps = locate(source), locate(out), _Steps(begin)
    refuse_inside(out, [source])
    _check(source, build_config, config, running)
    with resources.cluster(running.workers.most + 1):
        if (source / MANIFEST).exists():
            dataset = Dataset(source)
        else:
            options = {"weights_dir": weights_dir, "sync": sync, "gpu": gpu}
            dataset = _build(source, out / "dataset", build_config, steps, **options)
        held_out = _held_out(dataset)
        _train(dataset, out / "run", config, running, steps)
        with steps.step("render", "lip-syncing people who were held out, to their own words and to others'") as on_row:
            face = build_config.face if build_config.face.isdigit() else "largest"
            given: Row = {"landmarks": build_config.landmarks, "face": face, "weights_dir": weights_dir, "gpu": gpu}
            rows = render(out / "run", held_out, out / "renders", on_row=on_row, **given) if held_out else []
    stage = [stage.name for stage in config.stages if stage.kind == "gan"][-1]
    summary = {
        "dataset": str(dataset.root),
        "run": str(out / "run"),
        "stage": stage,
        "figures": metrics_of(Shelf(out / "run" / stage).complete()[-1]),
        "renders": rows,
        "seconds": steps.seconds,
        "report": str(out / "report.html"),
    }
    write_json(out / "summary.json", summary)
    _report_curriculum(out, dataset, summary, held_out)
    return summary


def _check(source: Location, build_config: BuildConfig, config: TrainConfig, running: Running) -> None:
    """What would stop the training is said before a build of days.

    Raises:
        ValueError: it would stop.
    """
    parents.with_perceptual(config)
    if running.init and not locate(running.init).exists():
        raise ValueError(f"--init {running.init}: no such file or folder")
    check_workers(running.workers)
    if (source / MANIFEST).exists():
        return
    list_inputs(source)
    if missing := {config.audio_feature, config.sync_feature} - {*build_config.features}:
        names = ", ".join(sorted(missing))
        raise ValueError(f"--features: training hears {names}, which would not be stored; add it, or --set "
                         "train.audio_feature=… and train.sync_feature=…")  # fmt: skip
    if not build_config.val_fraction:
        raise ValueError("--set build.val_fraction: no video would be held out; leave it above 0")


def _build(source: Location, root: Location, config: BuildConfig, steps: _Steps, **options: Any) -> Dataset:
    with steps.step("build", f"building the dataset: decode, align, crop, {', '.join(config.features)}") as on_row:
        return build(source, root, config, on_row=on_row, **options)


def _train(dataset: Dataset, run: Location, config: TrainConfig, running: Running, steps: _Steps) -> None:
    with steps.step("train", f"training {', '.join(stage.name for stage in config.stages)}") as on_epoch:
        train(dataset, run, config, running, on_epoch=on_epoch)


def _held_out(dataset: Dataset) -> list[Row]:
    """Some videos that training does not see, each with its own speech and with that of the next one.

    None where the dataset does not say where its videos are, or they are gone.

    Raises:
        ValueError: no video is held out.
    """
    rows = [row for row in dataset.videos().to_pylist() if row["status"] == "accepted"]
    held_out = [row for row in rows if row["split"] == "val"]
    if not held_out:
        raise ValueError(f"{dataset.root}: no video is held out to render; give two or more that can be used, with "
                         "val_fraction above 0, or use `lawdnet train` and `lawdnet infer`")  # fmt: skip
    others = held_out[1:] + [row for row in [*held_out, *rows] if row["video_id"] != held_out[-1]["video_id"]][:1]
    shown = list(zip(held_out, others, strict=False))[:MOST_RENDERED]
    folder = source_folder(dataset)
    couples = [(_place(own["path"], folder), _place(other["path"], folder)) for own, other in shown]
    there = [place for couple in couples if all(place and place.exists() for place in couple) for place in couple]
    if not there:
        return []
    inputs = list(named([place for place in there if place], folder or locate(".")))
    both = zip(inputs[::2], inputs[1::2], strict=True)
    return with_names([pair(own, speaker) for own, other in both for speaker in (own, other)])


def _place(path: str, folder: Location | None) -> Location | None:
    """Where a video of a dataset is; a merged dataset has no folder and names them as a whole."""
    if folder:
        return resolve(path, folder)
    return locate(path) if path.startswith("/") or "://" in path else None


def _draw(out: Path) -> None:
    """The corpus, and one more person twice: as the template, and saying what the template is to say (the truth)."""
    done = out / "held_out" / "speech.wav"
    if done.exists():
        return
    done.parent.mkdir(parents=True, exist_ok=True)
    member, person = ray.remote(write_member), ray.remote(write_talking_head)
    truth = done.with_name("truth.mp4")
    tasks = [member.remote(out / "videos", index, seconds=SECONDS, seed=1) for index in range(VIDEOS)]
    tasks += [person.remote(done.with_name("template.mp4"), speech=SAID, **HELD_OUT)]
    tasks += [person.remote(truth, speech=TO_SAY, **HELD_OUT)]
    ray.get(tasks)
    write_wav(done, load_audio(truth, num_frames=round(SECONDS * FPS)))


def _save_untrained(folder: Path, dataset: Dataset, config: TrainConfig) -> None:
    """The last stage's generator before its first step, for comparison."""
    stage = config.stages[-2]
    torch.manual_seed(config.seed)
    dim = dataset.feature_dim(config.audio_feature)
    step = GanStep(config, stage, torch.device("cpu"), lambda network: network, audio_dim=dim)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save(folder, step, stage, config, lineage(dataset), epoch=0)


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


def _report_curriculum(out: Location, dataset: Dataset, summary: Row, held_out: list[Row]) -> None:
    """The page with the table and the videos, and one each for the dataset and the run."""
    inspect_report(dataset, out / "dataset.html")
    run_report(out / "run", out / "run.html")
    people: dict[str, dict[str, Location]] = {}
    for given, row in zip(held_out, summary["renders"], strict=True):
        truth, speech = (locate(os.fsdecode(given[name])) for name in ("video_source", "speech_source"))
        shown = people.setdefault(row["video"], {"truth": truth})
        if row["status"] == "rendered":
            shown["own words" if truth == speech else f"words of {row['speech']}"] = out / "renders" / row["out"]
    counts = dataset.info["counts"]
    curriculum_report(
        out / "report.html",
        CurriculumContent(
            stage=summary["stage"],
            figures=summary["figures"],
            people=people,
            seconds=summary["seconds"],
            refused={row["out"]: row["detail"] for row in summary["renders"] if row["status"] != "rendered"},
            facts={
                "Dataset": f"{counts['accepted']} videos, {counts['segments']} segments, {counts['frames']} frames",
                "Run": summary["run"],
            },
            pages={"the dataset": out / "dataset.html", "the training": out / "run.html"},
        ),
    )


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
            pictures={f"{name}: masked, reference, generated, truth": p[0] for name, p in last.items() if p},
            seconds=summary["seconds"],
            facts={
                "Dataset": f"{counts['accepted']} videos, {counts['segments']} segments, {counts['frames']} frames",
                "Machine": f"{platform.machine()}, {psutil.cpu_count()} cores, torch {torch.__version__}",
                "Peak memory": f"{summary['peak_rss_mb']} MB (resident, all processes)",
                "Generator": f"small preset, base_channels {config.base_channels}",
            },
        ),
    )
