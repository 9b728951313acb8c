"""wandb and TensorBoard. Their packages are imported only here, inside the class that uses them."""

from __future__ import annotations

import json
import logging
import math
import netrc
import os
import sys
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np

log = logging.getLogger(__name__)

PROJECT = "lawdnet"
"""Name of the wandb project unless WANDB_PROJECT names another."""
RUN_ID = "wandb_id.txt"
"""File in the stage's folder with the id of its wandb run, in which a resumed stage continues."""
CONNECT_SECONDS = 20
"""How long the start of a stage waits for wandb before it continues offline."""
UPLOAD_SECONDS = 60
"""How long the end of a stage waits for wandb's last uploads; what is missing stays on disk."""
NOT_METRICS = ("time", "kind", "epoch", "step")
"""Keys of a row that are not metrics."""


class Tracker(Protocol):
    """Takes rows and finished sheets of images."""

    def log(self, row: Mapping[str, Any], step: int) -> None:
        """Log a row; `step` counts from the start of the stage."""
        ...

    def image(self, sheet_HW3: np.ndarray, epoch: int, step: int) -> None:
        """Log a sheet (uint8 RGB) after so many complete epochs."""
        ...

    def close(self) -> None:
        """Finish; nothing is logged afterwards."""
        ...


class StepCount:
    """Counts steps through a whole stage from rows that count them within an epoch, however long each epoch is.

    Args:
        rows: the rows that the stage has already written.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._steps: dict[int, int] = {}
        for row in rows:
            self.of(row)

    def of(self, row: Mapping[str, Any]) -> int:
        """Steps since the stage began, from 0; a row without a step belongs to the last step of its complete epochs."""
        epoch, step = row.get("epoch"), row.get("step")
        if not isinstance(epoch, int | float):
            return max(0, sum(self._steps.values()) - 1)
        before = sum(count for past, count in self._steps.items() if past < epoch)
        if not isinstance(step, int | float):
            return max(0, before - 1)
        self._steps[int(epoch)] = max(self._steps.get(int(epoch), 0), int(step) + 1)
        return before + int(step)


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """KIND/NAME → value."""
    kind = row.get("kind", "step")
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float) and name not in NOT_METRICS}
    return {f"{kind}/{name}": float(value) for name, value in numbers.items()}


class WandbLogger:
    """A wandb run per stage, grouped by run; online if there is a key, otherwise a folder for `wandb sync`.

    Steps are plotted over `global_step`, metrics of an epoch over `epoch`. A resumed stage continues its wandb run.
    Only the start and the end of a stage wait for the network, and only briefly.

    Args:
        folder: folder of the stage; gets wandb/ and the id of the run.
        about: configuration and lineage, as plain values.
        run_name: RUN/STAGE; the run is wandb's group.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], run_name: str) -> None:
        import wandb

        self._wandb = wandb
        folder.mkdir(parents=True, exist_ok=True)
        group, _, stage = run_name.rpartition("/")
        options: dict[str, Any] = {
            "mode": wandb_mode(),
            "project": os.environ.get("WANDB_PROJECT", PROJECT),
            "group": group or None,
            "name": run_name,
            "job_type": stage,
            "id": _kept_id(folder / RUN_ID),
            "resume": "allow",
            "dir": str(folder),
            "config": dict(about),
            "settings": wandb.Settings(
                init_timeout=CONNECT_SECONDS,
                finish_timeout=UPLOAD_SECONDS,
                login_timeout=CONNECT_SECONDS,
                console="off",
                silent=True,
                disable_git=True,
            ),
        }
        try:
            self._run = wandb.init(**options)
        except wandb.Error as error:  # no network, a wrong key, a full disk on the server
            if options["mode"] != "online":
                raise
            log.warning("wandb: no connection (%s); writing to %s for `wandb sync`", _line(error), folder / "wandb")
            wandb.teardown()  # its service still holds the id of the run
            self._run = wandb.init(**options | {"mode": "offline"})
        self._run.define_metric("step/*", step_metric="global_step")
        for kind in ("epoch", "validation", "pictures"):
            self._run.define_metric(f"{kind}/*", step_metric="epoch")

    def log(self, row: Mapping[str, Any], step: int) -> None:
        """Log numbers as KIND/NAME, and an alarm also as a wandb alert."""
        if row.get("kind") == "alarm":
            self._run.alert(title=f"{self._run.name}: alarm", text=str(row.get("text", "")))
        numbers = _numbers(row)
        if not numbers or row.get("kind") == "start":
            return
        position = {"global_step": step} if "step" in row else {"epoch": row.get("epoch", 0)}
        self._run.log({**position, **numbers})

    def image(self, sheet_HW3: np.ndarray, epoch: int, step: int) -> None:
        """Log one image per epoch under one name, so that wandb shows a slider."""
        self._run.log({"epoch": epoch, "pictures/samples": self._wandb.Image(sheet_HW3, caption=f"epoch {epoch}")})

    def close(self) -> None:
        """Finish the run; waits for the last uploads, but not forever."""
        self._run.finish()


def wandb_mode() -> str:
    """The value of WANDB_MODE, else online if wandb finds a key (WANDB_API_KEY or ~/.netrc), else offline."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    return "online" if os.environ.get("WANDB_API_KEY") or _in_netrc() else "offline"


def _in_netrc() -> bool:
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        found = netrc.netrc(os.environ.get("NETRC") or None).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return False
    return found is not None


def _kept_id(path: Path) -> str:
    """The id in the file, which is created if it does not exist."""
    if not path.exists() or not path.read_text(encoding="utf8").strip():
        path.write_text(uuid.uuid4().hex[:12] + "\n", encoding="utf8")
    return path.read_text(encoding="utf8").strip()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


class TensorBoardLogger:
    """Event files in STAGE/tensorboard over the steps since the stage began; steps that are repeated are replaced.

    Args:
        folder: folder of the stage.
        about: configuration and lineage, as plain values; shown as text.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self._folder, self._about = folder / "tensorboard", about
        self._writer: Any = None

    def _at(self, step: int) -> Any:
        """The writer; TensorBoard drops what earlier writers wrote at or after its first step."""
        if self._writer is None:
            # TensorBoard's own switch: without it, it imports TensorFlow if that is installed (14 s and 1 GB)
            sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=step, flush_secs=30)
            for name, content in self._about.items():
                text = json.dumps(content, indent=2, default=str).replace("\n", "\n    ")
                self._writer.add_text(name, f"    {text}", step)
        return self._writer

    def log(self, row: Mapping[str, Any], step: int) -> None:
        """Log numbers as KIND/NAME, alarms as text."""
        if row.get("kind") == "start":
            return  # the next row tells this writer's first step
        if row.get("kind") == "alarm":
            self._at(step).add_text("alarm", str(row.get("text", "")), step)
        for name, value in _numbers(row).items():
            if math.isfinite(value):
                self._at(step).add_scalar(name, value, step)

    def image(self, sheet_HW3: np.ndarray, epoch: int, step: int) -> None:
        """Log sheets under one name, so that TensorBoard shows a slider."""
        self._at(step).add_image("samples", sheet_HW3, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is still in memory."""
        if self._writer:
            self._writer.close()
