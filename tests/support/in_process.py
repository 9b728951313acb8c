"""Tasks without Ray, in the process of the test."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from lawdnet.tasks.task import Job, Task, TaskRunner


def map_in_process(
    task: type[Task[Any, Any]], job: Job, items: Sequence[Any], *, name: str, gpu: float
) -> Generator[tuple[str, Any], None, None]:
    """What `pipelines.executor.map_items` does; an item that kills its process is not survived."""
    runner = TaskRunner(task, job)
    for batch in task.batches(items, workers=1):
        yield from ((item.key, record) for item, record in runner(batch))
