"""Where numbers go while a run trains. The jsonl file is always written; its lines are what reports draw."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from torch import Tensor


class MetricLogger(Protocol):
    """A place for numbers."""

    def log(self, metrics: dict[str, float]) -> None:
        """One line of numbers."""
        ...


class JsonlLogger:
    """Appends a JSON object per call to a file; a line is written at once, so a crash loses none."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            with path.open("a", encoding="utf8") as file:
                file.write("\n")  # a line that a crash cut short must not swallow the next
        self.path = path

    def log(self, metrics: dict[str, float]) -> None:
        """Adds the wall clock time and writes."""
        with self.path.open("a", encoding="utf8") as file:
            file.write(json.dumps({"time": round(time.time(), 3), **metrics}) + "\n")


class JsonlTail:
    """What is added to a file of JSON lines from now on; the file may not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = path.stat().st_size if path.exists() else 0

    def rows(self) -> list[dict[str, Any]]:
        """The complete lines added since the last call."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._read)
            added = file.read()
        complete = added[: added.rfind(b"\n") + 1]
        self._read += len(complete)
        return _parse(complete)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All complete lines; one cut short by a crash is left out."""
    return _parse(path.read_bytes())


def _parse(lines: bytes) -> list[dict[str, Any]]:
    rows = []
    for line in lines.splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # no JSON, or no UTF-8
            continue
    return rows


def write_pictures(path: Path, rows_R3HW: Tensor) -> None:
    """Pictures in [0, 1] below each other as one PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet_HW3 = rows_R3HW.permute(0, 2, 3, 1).flatten(0, 1).float().cpu().numpy()
    cv2.imwrite(str(path), cv2.cvtColor(np.rint(sheet_HW3 * 255).astype(np.uint8), cv2.COLOR_RGB2BGR))
