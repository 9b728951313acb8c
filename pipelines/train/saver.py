"""When a worker saves its stage, and what training waits for then."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from lawdnet.models.saved import checkpoint_name
from lawdnet.training import checkpoint
from lawdnet.training.checkpoint import Lineage
from lawdnet.training.checkpoint_store import CheckpointStore
from lawdnet.training.checkpoint_writer import CheckpointWriter
from lawdnet.training.options import RunOptions
from lawdnet.training.position import Position
from lawdnet.training.steps import Step
from pipelines.train.notice import HOLD_SECONDS, LEAVING_SECONDS, STOPPING, Request, is_leaving


class Saver:
    """Copies the state of a stage to the host and writes it in a thread; for the first worker.

    Args:
        stack: ends what is begun here.
    """

    def __init__(self, store: CheckpointStore, options: RunOptions, lineage: Lineage, stack: ExitStack) -> None:
        self.store, self.options, self.lineage = store, options, lineage
        self.writer = CheckpointWriter(store, self._committed)
        stack.callback(self.writer.close)
        self.request = Request(store.folder)
        stack.enter_context(self.request.watched())
        self._answering = ""
        self._kind = ""
        self._saved = self._reported = time.monotonic()
        self._blocked = 0.0

    def is_wanted(self) -> bool:
        """Whether it is time, or somebody asks."""
        if self.writer.is_busy:
            return False
        if self.request.content or STOPPING.is_set():
            return True
        every = min(self.options.save_every or math.inf, LEAVING_SECONDS if is_leaving() else math.inf)
        return time.monotonic() - self._saved >= every

    def save(self, step: Step, position: Position, validated: dict[str, float] | None) -> None:
        """Begin to write the state as it is, when the checkpoint before has been written."""
        with self._blocking():
            self.writer.wait()
            self._answering, self._kind, self._saved = self.request.content, step.stage.kind, time.monotonic()
            taken = checkpoint.snapshot(step, position)
            write = partial(checkpoint.write, taken=taken, stage=step.stage, config=step.config, lineage=self.lineage)
            self.writer.save(checkpoint_name(position.epoch, position.step), write, validated)

    def wait(self) -> None:
        """Wait until the last checkpoint has been written."""
        with self._blocking():
            self.writer.wait()

    def hold(self) -> None:
        """Give whoever asked for the checkpoint time to stop the workers, who need not repeat anything then.

        Raises:
            SystemExit: this process itself was asked to stop.
        """
        if self._answering:
            self.writer.wait()
            time.sleep(HOLD_SECONDS)
        if STOPPING.is_set():
            self.writer.wait()
            raise SystemExit(128 + signal.SIGTERM)

    def share(self) -> float:
        """The share of time since the last call that training waited for checkpoints."""
        now = time.monotonic()
        share = self._blocked / (now - self._reported)
        self._blocked, self._reported = 0.0, now
        return share

    @contextmanager
    def _blocking(self) -> Iterator[None]:
        """Count the time of a block that training waits for."""
        began = time.monotonic()
        yield
        self._blocked += time.monotonic() - began

    def _committed(self) -> None:
        """After every checkpoint, in the writer's thread."""
        self.store.tidy(self.options.keep_last, self.options.best_by(self._kind))
        self.request.answer(self._answering)
