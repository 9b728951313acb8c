"""Where metrics and images go while a stage trains: always to its folder, and to wandb and TensorBoard on request.

STAGE/metrics.jsonl      an object per line, of kind start, step, epoch, validation, alarm, resume or pictures
STAGE/samples/*.png      a sheet of images per epoch
STAGE/wandb/, STAGE/tensorboard/

Rows of kind `step` count epochs and optimiser steps from 0; the others count complete epochs. Shape letters: R rows of
a sheet, H W size of a row, h w size of the sheet.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import psutil
import torch
from torch import Tensor

from lawdnet.install import install_hint
from lawdnet.training.trackers import StepCount, TensorBoardLogger, Tracker, WandbLogger

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
SAMPLES = "samples"
LOGGERS = {"jsonl": None, "wandb": "wandb", "tensorboard": "tensorboard"}
"""Name of a logger → package that it needs, which is also the name of the extra."""
MIN_COLUMN = 96
"""Smallest width of a labelled column in px, so that its label can be read."""
STRIP = 20
"""Height of the strip with the labels, in px."""


class MetricLogger(Protocol):
    """Takes metrics and images."""

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Log one row: numbers by name, its `kind`, and the position of training (`epoch`, `step`)."""
        ...

    def images(self, rows_R3HW: Tensor, epoch: int, labels: Sequence[str] = ()) -> None:
        """Log a sheet of images after so many complete epochs; see `draw_grid`."""
        ...

    def close(self) -> None:
        """Finish; nothing is logged afterwards."""
        ...


def make_loggers(
    names: Sequence[str], folder: Path, *, config: Mapping[str, Any], lineage: Mapping[str, Any], run_name: str
) -> MetricLogger:
    """Make one logger of all that a stage's first rank uses, and log the machine in a row of kind `start`.

    Training continues if wandb or TensorBoard fails: there is one warning, and that logger is dropped.

    Args:
        names: names in `LOGGERS`; jsonl is always used.
        folder: folder of the stage, on this machine.
        config: the resolved configuration, as plain values.
        lineage: the fields of `checkpoint.Lineage`, as plain values.
        run_name: RUN/STAGE, as wandb shows it.

    Raises:
        ValueError: a name is unknown (the message lists the choices), or a package is not installed.
    """
    check_loggers(names)
    files = JsonlLogger(folder / METRICS)
    count = StepCount(read_jsonl(files.path) if files.path.exists() else [])
    about = {"config": config, "lineage": lineage}
    makers: dict[str, Callable[[], Tracker]] = {
        "wandb": lambda: WandbLogger(folder, about, run_name),
        "tensorboard": lambda: TensorBoardLogger(folder, about),
    }
    others = [_Guarded(name, makers[name], count) for name in dict.fromkeys(names) if name in makers]
    together = _All([files, *others])
    together.log({"kind": "start", **machine()})
    return together


def check_loggers(names: Sequence[str]) -> None:
    """Check the names before anything starts.

    Raises:
        ValueError: a name is unknown, or a package is not installed.
    """
    for name in names:
        if name not in LOGGERS:
            raise ValueError(f"logger: unknown {name!r}; choose from {', '.join(LOGGERS)}")
        package = LOGGERS[name]
        if package and not _is_installed(package):
            raise ValueError(f"logger {name}: is not installed; {install_hint(package)}")


def _is_installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # a mere folder of that name has no origin


class _All:
    """Passes everything on to each logger."""

    def __init__(self, loggers: Sequence[MetricLogger]) -> None:
        self.loggers = loggers

    def log(self, metrics: Mapping[str, Any]) -> None:
        for logger in self.loggers:
            logger.log(metrics)

    def images(self, rows_R3HW: Tensor, epoch: int, labels: Sequence[str] = ()) -> None:
        for logger in self.loggers:
            logger.images(rows_R3HW, epoch, labels)

    def close(self) -> None:
        for logger in self.loggers:
            logger.close()


class _Guarded:
    """A tracker that is dropped with one warning when it fails."""

    def __init__(self, name: str, make: Callable[[], Tracker], count: StepCount) -> None:
        self.name, self.count = name, count
        self.tracker: Tracker | None = None
        try:
            self.tracker = make()
        except Exception as error:  # training must not stop, whatever a tracker raises
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        log.warning("%s: stopped (%s); training continues, and %s has everything", self.name, text, METRICS)
        self.tracker = None

    def _attempt(self, call: Callable[[Tracker], object]) -> None:
        if self.tracker:
            try:
                call(self.tracker)
            except Exception as error:
                self._give_up(error)

    def log(self, metrics: Mapping[str, Any]) -> None:
        step = self.count.of(metrics)
        self._attempt(lambda tracker: tracker.log(metrics, step))

    def images(self, rows_R3HW: Tensor, epoch: int, labels: Sequence[str] = ()) -> None:
        step = self.count.of({"epoch": epoch})
        self._attempt(lambda tracker: tracker.image(draw_grid(rows_R3HW, labels), epoch, step))

    def close(self) -> None:
        self._attempt(lambda tracker: tracker.close())


class JsonlLogger:
    """Appends a JSON object per call to a file. Every line is written at once, so a crash loses none."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            with path.open("a", encoding="utf8") as file:
                file.write("\n")  # a line that a crash cut short must not swallow the next
        self.path = path

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append a row with the wall clock time."""
        with self.path.open("a", encoding="utf8") as file:
            file.write(json.dumps({"time": round(time.time(), 3), **metrics}) + "\n")

    def images(self, rows_R3HW: Tensor, epoch: int, labels: Sequence[str] = ()) -> None:
        """Write a PNG, and a row with its labels."""
        name = f"{SAMPLES}/epoch_{epoch:04d}.png"
        write_grid(self.path.parent / name, rows_R3HW, labels)
        self.log({"kind": "pictures", "epoch": epoch, "file": name, "labels": list(labels)})

    def close(self) -> None:
        """Do nothing: every line is already written."""


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All complete rows; a line that a crash cut short is skipped."""
    return parse_jsonl(path.read_bytes())


def parse_jsonl(lines: bytes) -> list[dict[str, Any]]:
    """The rows of lines that are JSON objects; other lines are skipped."""
    rows = []
    for line in lines.splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # neither JSON nor UTF-8
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def machine() -> dict[str, Any]:
    """The hardware, for a row of kind `start`: `device` is the name of this process's GPU, else of its CPU."""
    has_gpu = torch.cuda.is_available()
    has_ranks = torch.distributed.is_available() and torch.distributed.is_initialized()
    return {
        "device": torch.cuda.get_device_name() if has_gpu else _cpu_name(),
        "is_gpu": has_gpu,
        "workers": torch.distributed.get_world_size() if has_ranks else 1,
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "torch": torch.__version__,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def draw_grid(rows_R3HW: Tensor, labels: Sequence[str] = ()) -> np.ndarray:
    """Stack rows of images, under a strip with the labels of their columns.

    Args:
        rows_R3HW: RGB in [0, 1]; each row holds its columns side by side, all of the same width.
        labels: labels of the columns, from the left. With labels, columns narrower than `MIN_COLUMN` are enlarged by a
            whole number; without labels there is no strip, and pixels stay as they are.

    Returns:
        h × w × 3 uint8 RGB.

    Raises:
        ValueError: the labels do not divide the rows into columns.
    """
    sheet_HW3 = rows_R3HW.detach().permute(0, 2, 3, 1).flatten(0, 1).float().cpu().clamp(0, 1).numpy()
    sheet = np.rint(sheet_HW3 * 255).astype(np.uint8)
    if not labels:
        return sheet
    width, rest = divmod(sheet.shape[1], len(labels))
    if rest or not width:
        raise ValueError(f"labels: {len(labels)} of them do not divide rows {sheet.shape[1]} px wide into columns")
    times = -(-MIN_COLUMN // width)
    sheet = np.repeat(np.repeat(sheet, times, 0), times, 1)
    return np.concatenate([_strip(labels, width * times), sheet])


def _strip(labels: Sequence[str], width: int) -> np.ndarray:
    """STRIP × (width · labels) × 3: each label in the middle of its column, smaller if it would not fit."""
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.4
    strip = np.full((STRIP, width * len(labels), 3), 24, np.uint8)
    for column, label in enumerate(labels):
        natural = cv2.getTextSize(label, font, scale, 1)[0][0]
        size = scale * min(1.0, (width - 4) / max(1, natural))
        (across, up), _ = cv2.getTextSize(label, font, size, 1)
        at = (column * width + (width - across) // 2, (STRIP + up) // 2)
        cv2.putText(strip, label, at, font, size, (235, 235, 235), 1, cv2.LINE_AA)
    return strip


def write_grid(path: Path, rows_R3HW: Tensor, labels: Sequence[str] = ()) -> None:
    """Write a sheet of images as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(draw_grid(rows_R3HW, labels), cv2.COLOR_RGB2BGR))
