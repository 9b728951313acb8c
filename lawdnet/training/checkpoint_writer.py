"""Checkpoints written in a thread beside training."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from lawdnet.training.checkpoint_store import CheckpointStore


class CheckpointWriter:
    """Writes one checkpoint at a time; whoever brings the next one waits for the one before.

    Args:
        tidy: called after every checkpoint.
    """

    def __init__(self, store: CheckpointStore, tidy: Callable[[], None]) -> None:
        self.store, self.tidy = store, tidy
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._writing is not None and not self._writing.done()

    def save(self, name: str, write: Callable[[Path], None], metrics: dict[str, float] | None = None) -> None:
        """Begin to write a checkpoint as `CheckpointStore.save` does.

        Raises:
            OSError: the checkpoint before could not be written.
        """
        self.wait()
        self._writing = self._thread.submit(self._save, name, write, metrics)

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            OSError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def close(self) -> None:
        """End the thread, after what it is writing."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _save(self, name: str, write: Callable[[Path], None], metrics: dict[str, float] | None) -> None:
        self.store.save(name, write, metrics)
        self.tidy()
