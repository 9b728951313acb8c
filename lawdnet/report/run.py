"""The report of a training run: what was trained on what, how it went, and what to do next.

It needs only the files in the run's folder, so it can be written at any time, on another machine, and for a run that
was interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from typing import Any

from lawdnet.data.manifest import MANIFEST
from lawdnet.report import run_charts
from lawdnet.report.advice import advise
from lawdnet.report.charts import Chart, Histogram
from lawdnet.report.page import image_uri, write_page
from lawdnet.report.run_charts import POSITION, Measured
from lawdnet.report.stage_log import LogRow, StageLog, read_run
from lawdnet.storage import Location, locate, read_json
from lawdnet.training.gates import Gate, check_gates, parse_gate
from lawdnet.types import FPS


@dataclass(frozen=True, kw_only=True)
class StagePart:
    """What the page shows of one stage."""

    log: StageLog
    facts: list[tuple[str, str]]
    losses: list[tuple[str, Chart]]
    shares: Chart | None
    measured: list[Measured]
    offsets: Histogram | None
    """For a sync network."""
    gates: list[tuple[str, str]]
    """Gates of the stage, and whether they were passed."""
    resources: list[tuple[str, Chart]]
    sheets: list[tuple[str, str]]
    """(caption, `data:` URI)."""
    columns: str
    """What the sheets show, from left to right."""
    events: list[tuple[str, str, bool]]
    """(when, what, whether it is an alarm)."""

    @property
    def has_truth(self) -> bool:
        """Whether some metric is compared with the truth."""
        return any(isfinite(metric.truth) for metric in self.measured)

    @property
    def has_baseline(self) -> bool:
        """Whether some metric is compared with a mouth that ignores the audio."""
        return any(isfinite(metric.baseline) for metric in self.measured)


@dataclass(frozen=True)
class Best:
    """The best value of a metric."""

    epoch: int
    value: float


@dataclass(frozen=True, kw_only=True)
class StageSummary:
    """What became of a stage."""

    state: str
    """See `StageLog.state`."""
    epochs: int
    """Number of complete epochs."""
    of: int
    """Number of epochs to do; 0 if unknown."""
    seconds: float
    device_seconds: float
    """`seconds` summed over the workers."""
    checkpoint: str | None
    """Name of the newest one."""
    best: Mapping[str, Best]
    """Metric → its best value."""
    alarms: Sequence[str]


@dataclass(frozen=True)
class RunSummary:
    """What became of a run, and what to do next."""

    stages: Mapping[str, StageSummary]
    advice: Sequence[str]


def run_report(run: Location, out: Location) -> RunSummary:
    """Write the report of a run as one HTML file, and return its summary.

    Args:
        run: the folder that `lawdnet train --out` wrote, or is still writing.
        out: the HTML file; an existing one is replaced.

    Raises:
        ValueError: the folder contains no run.
    """
    info, logs, problems = read_run(run)
    gates = [parse_gate(text) for text in info.get("gates", ())]
    parts = [_stage_part(log, gates) for log in logs]
    advice = advise(run, logs, {part.log.name: {m.name: m.best_epoch for m in part.measured} for part in parts})
    write_page(
        out,
        "run.html.j2",
        name=run.name,
        about=_about(info, logs),
        cards=_cards(parts),
        parts=parts,
        lineage=[_link(log) for log in logs],
        hardware=_hardware(logs),
        problems=problems,
        advice=advice,
        written=_when(max(log.now for log in logs)),
    )
    return RunSummary({part.log.name: _summary(part) for part in parts}, advice)


def _summary(part: StagePart) -> StageSummary:
    log = part.log
    return StageSummary(
        state=log.state,
        epochs=log.epochs_done,
        of=log.epochs,
        seconds=round(log.wall_seconds, 1),
        device_seconds=round(log.device_seconds, 1),
        checkpoint=log.checkpoint,
        best={m.name: Best(m.best_epoch, m.best) for m in part.measured if m.best_epoch},
        alarms=[text for _, text, is_alarm in part.events if is_alarm],
    )


def _stage_part(log: StageLog, gates: Sequence[Gate]) -> StagePart:
    return StagePart(
        log=log,
        facts=_facts(log),
        losses=run_charts.losses(log),
        shares=run_charts.shares(log),
        measured=run_charts.measured(log),
        offsets=run_charts.offsets(log),
        gates=_gates(log, gates),
        resources=run_charts.resources(log),
        sheets=_sheets(log),
        columns=_columns(log),
        events=_events(log),
    )


def _gates(log: StageLog, gates: Sequence[Gate]) -> list[tuple[str, str]]:
    rows, kind = log.of_kind("validation"), log.row.get("kind", "gan")
    if not rows:
        return [(f"{gate}", "not measured yet") for gate in gates if gate.kind == kind]
    failed = {gate: check_gates([gate], rows[-1], kind) for gate in gates if gate.kind == kind}
    return [(f"{gate}", "not passed: " + "; ".join(why) if why else "passed") for gate, why in failed.items()]


def _sheets(log: StageLog) -> list[tuple[str, str]]:
    """Return the first, the middle and the last sheet."""
    epochs = list(log.sheets)
    chosen = dict.fromkeys([epochs[0], epochs[(len(epochs) - 1) // 2], epochs[-1]] if epochs else [])
    return [(f"after epoch {epoch}", image_uri(log.sheets[epoch])) for epoch in chosen]


def _columns(log: StageLog) -> str:
    labels = [row["labels"] for row in log.of_kind("pictures") if isinstance(row.get("labels"), list)]
    return ", ".join(map(str, labels[-1])) if labels and labels[-1] else "masked source, reference, generated, truth"


def _events(log: StageLog) -> list[tuple[str, str, bool]]:
    found = []
    for row in log.rows:
        kind = row.get("kind")
        when = _position(row)
        if kind == "alarm":
            found.append((when, str(row.get("text", "no reason given")), True))
        elif kind == "resume":
            others = {name: value for name, value in row.items() if name not in (*POSITION, "text")}
            rest = [f"{name.replace('_', ' ')} {value}" for name, value in others.items()]
            found.append((when, str(row.get("text") or ", ".join(["resumed", *rest])), False))
    if log.stopped:
        found.append(("at the end", log.stopped, True))
    return found


def _position(row: LogRow) -> str:
    """Return the epoch and step of a row, or else its time."""
    epoch, step = row.get("epoch"), row.get("step")
    parts = ([] if epoch is None else [f"epoch {epoch}"]) + ([] if step is None else [f"step {step}"])
    return ", ".join(parts) or (_when(row["time"]) if isinstance(row.get("time"), int | float) else "")


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _facts(log: StageLog) -> list[tuple[str, str]]:
    row = log.row
    meta = log.meta
    facts = [("mouth", f"{row['mouth_px']} px")] if "mouth_px" in row else []
    if "batch_size" in row:
        clip = f" × {row['num_frames']} frames" if row.get("num_frames", 1) > 1 else ""
        facts.append(("batch", f"{row['batch_size']}{clip}"))
    if "lr" in row:
        facts.append(("learning rate", f"{row['lr']:g}"))
    weights = {name: value for name, value in row.get("weights", {}).items() if value}
    if weights and row.get("kind") == "gan":
        facts.append(("weights", ", ".join(f"{name} {value:g}" for name, value in weights.items())))
    if log.checkpoint:
        facts.append(("newest checkpoint", f"{log.name}/{log.checkpoint}"))
    if "code_version" in meta:
        facts.append(("lawdnet", str(meta["code_version"])))
    return facts


def _about(info: Mapping[str, Any], logs: Sequence[StageLog]) -> list[tuple[str, str]]:
    """Return what was trained, on what, and when."""
    config = info.get("config", {})
    about = []
    if config:
        networks = f"{config['preset']} preset, generator of {config['base_channels']} base channels"
        about.append(("What", f"{networks}, audio feature {config['audio_feature']}, seed {config['seed']}"))
    if "dataset" in info:
        about.append(("Dataset", f"{info['dataset']} ({info['dataset_hash']}){_size(info)}"))
    times = [float(row["time"]) for log in logs for row in log.rows if isinstance(row.get("time"), int | float)]
    if times:
        about.append(("When", f"{_when(min(times))} to {_when(max(times))}"))
    return about


def _size(info: Mapping[str, Any]) -> str:
    """Return the size of the dataset, if it is still where it was."""
    try:
        found = read_json(locate(info["dataset"]) / MANIFEST)
        counts = found["counts"]
    except (OSError, ValueError, KeyError):
        return ""
    if found.get("hash") != info["dataset_hash"]:
        return ", which has changed since"
    length = f"{counts['frames'] / FPS / 60:.1f} min"
    return f": {counts['accepted']} videos, {counts['segments']} segments, {length} of speech"


def _cards(parts: Sequence[StagePart]) -> list[tuple[str, str]]:
    logs = [part.log for part in parts]
    done = sum(log.state == "finished" for log in logs)
    cards = [(f"{done} of {len(logs)}", "stages finished")]
    for part in reversed(parts):
        if part.measured:
            first = next((m for m in part.measured if m.is_telling), part.measured[0])
            cards.append((f"{first.best:.3f}", f"best {first.name} of {part.log.name}, epoch {first.best_epoch}"))
            break
    cards.append((_hours(sum(log.wall_seconds for log in logs)), "of training, wall clock"))
    gpu = sum(log.device_seconds for log in logs if log.is_gpu)
    rest = sum(log.device_seconds for log in logs if not log.is_gpu)
    if gpu:
        cards.append((f"{gpu / 3600:.2f}", "GPU hours"))
    if rest:
        cards.append((f"{rest / 3600:.2f}", "worker hours on CPUs"))
    return cards


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


@dataclass(frozen=True, kw_only=True)
class Link:
    """A link of the chain of stages: what a stage starts from."""

    name: str
    state: str
    progress: str
    parent: str
    parent_hash: str
    syncnet_hash: str
    dataset_hash: str


def _link(log: StageLog) -> Link:
    meta = log.meta
    return Link(
        name=log.name,
        state=log.state,
        progress=f"{log.epochs_done} of {log.epochs} epochs" if log.epochs else f"{log.epochs_done} epochs",
        parent=meta.get("parent") or log.row.get("init_from") or "",
        parent_hash=(meta.get("parent_hash") or "")[:8],
        syncnet_hash=(meta.get("syncnet_hash") or "")[:8],
        dataset_hash=(meta.get("dataset_hash") or "")[:8],
    )


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Time and machines of a stage."""

    stage: str
    time: str
    worker_hours: str
    steps: int
    restarts: int
    machines: str


def _hardware(logs: Sequence[StageLog]) -> list[Hardware]:
    return [
        Hardware(
            stage=log.name,
            time=_hours(log.wall_seconds),
            worker_hours=f"{log.device_seconds / 3600:.2f}",
            steps=log.steps,
            restarts=max(0, len(log.starts) - 1),
            machines="; ".join(dict.fromkeys(_machine(row) for row in log.starts)) or "unknown",
        )
        for log in logs
        if log.rows
    ]


def _machine(row: LogRow) -> str:
    workers = int(row.get("workers", 1))
    parts = [f"{workers} × " if workers > 1 else "", str(row.get("device", "unknown"))]
    about = [f"{row['cores']} cores"] if "cores" in row else []
    about += [f"{row['memory_gb']:g} GB"] if "memory_gb" in row else []
    about += [f"torch {row['torch']}"] if "torch" in row else []
    return "".join(parts) + (f" ({', '.join(about)})" if about else "")
