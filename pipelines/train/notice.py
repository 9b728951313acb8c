"""When workers write a checkpoint that is not due yet: before they are stopped, moved, or joined by others."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from uuid import uuid4

from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2._internal.execution.controller.state import ResizingState, TrainControllerState

from lawdnet.storage import Location, is_remote, locate
from lawdnet.tasks.background import repeated

log = logging.getLogger(__name__)

REQUEST = ".save"
"""File in a stage's folder: whoever writes it waits for a checkpoint. The first worker removes it afterwards."""
LEAVING_SECONDS = 10.0
"""Time between two checkpoints while a node is leaving."""
STOPPING = threading.Event()
"""Set when this process is told to stop and trains itself, without Ray."""
ANSWER_SECONDS = 60.0
"""Longest wait for a checkpoint before workers are stopped."""
HOLD_SECONDS = 10.0
"""How long workers wait to be stopped by whoever asked, so that they need not repeat steps; then they go on."""
LOOK_SECONDS, LOOK_REMOTE_SECONDS = 0.5, 5.0


def is_leaving() -> bool:
    """Whether Ray has been told that a node of this worker group will be taken away.

    `ray.train.get_preemption_info` says the same, but is a barrier of all workers (Ray 2.60).
    """
    with suppress(RuntimeError, AttributeError):  # without Ray there is no context, and no node that leaves
        return get_train_context().preemption_context.preemption_info is not None
    return False


class Request:
    """A stage's request file, as the worker sees that writes checkpoints."""

    def __init__(self, folder: Location) -> None:
        self.path = folder / REQUEST
        self.content = ""
        """What is in the file; empty if there is none."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look for the file in a thread while the block runs."""
        with repeated(self._look, LOOK_REMOTE_SECONDS if is_remote(self.path) else LOOK_SECONDS):
            yield

    def answer(self, content: str) -> None:
        """Remove the file, unless another request has taken its place."""
        self._look()
        if content and content == self.content:
            self.content = ""
            with suppress(OSError):
                self.path.unlink(missing_ok=True)

    def _look(self) -> None:
        try:
            self.content = self.path.read_text(encoding="utf8") if self.path.exists() else ""
        except OSError:  # it has just been removed, or the store does not answer: the next look will tell
            self.content = ""


def request_checkpoint(folder: Location, seconds: float = ANSWER_SECONDS) -> bool:
    """Ask the workers of a stage for a checkpoint, and wait for it; returns whether it came in time."""
    path, mine = folder / REQUEST, uuid4().hex
    path.write_text(mine, encoding="utf8")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(OSError):
            if not path.exists():
                return True
        time.sleep(0.1)
    with suppress(OSError):
        path.unlink(missing_ok=True)
    return False


class SaveBeforeResize(ControllerCallback):
    """Lets the workers of a stage save before Ray Train stops them all to start another number of them."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def after_controller_state_update(
        self, previous_state: TrainControllerState, current_state: TrainControllerState
    ) -> None:
        """Called by Ray Train's controller; workers are still running when it begins to resize."""
        if isinstance(current_state, ResizingState) and not request_checkpoint(locate(self.folder)):
            log.warning("%s: no checkpoint within %.0f s before workers change", self.folder, ANSWER_SECONDS)


@contextmanager
def saved_when_stopped(folder: Location, *, trains_here: bool) -> Iterator[None]:
    """If this process is told to stop (SIGTERM) while the block runs, the stage is saved first.

    `ray job stop` gives a driver RAY_JOB_STOP_WAIT_TIME_S seconds.

    Args:
        trains_here: whether this process trains itself, without Ray.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends it at once
        log.warning("asked to stop; writing a checkpoint first")
        if trains_here:
            STOPPING.set()  # the worker ends after its step
            return
        if not request_checkpoint(folder):
            log.warning("%s: no checkpoint within %.0f s", folder, ANSWER_SECONDS)
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        STOPPING.clear()
