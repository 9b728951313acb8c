"""A rank's training data: processes of its own draw the samples, and the batches come in the plan's order.

The processes are PyTorch's `DataLoader` workers. Each has some of the segments of every group, which it reads and
decodes alone, and draws what they bring to each batch; the parts are put together here. So a segment is read once per
epoch and a frame is decoded once, however many processes there are, and a group begins as soon as each has read its
part. They live from the first batch of a stage to its last, and end with their rank.

A *turn* is the next batch of every virtual rank of a share (see `lawdnet.training.virtual_ranks`).
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lawdnet.data.sampling import (
    HEARD_FRAMES,
    Loaded,
    SampleSpec,
    Work,
    batches_per_epoch,
    draw_part,
    load_group,
    plan_epoch,
)
from lawdnet.data.segment_list import SegmentList, SegmentRef
from lawdnet.face.geometry import stage_size
from lawdnet.tasks.background import ahead
from lawdnet.training.position import START, Position
from lawdnet.training.virtual_ranks import concatenated, group_by_step, share_of
from lawdnet.types import AUDIO_WINDOW, CLIP_FRAMES, NUM_REFERENCES

log = logging.getLogger(__name__)

TURNS_AHEAD = 4
"""Turns that each process draws ahead of their use."""
SHARED_MEMORY = Path("/dev/shm")
ROW_BYTES = 1600
"""Of a row of an audio feature, about: mel has 320 numbers, whisper 384."""
RANKS_TOGETHER = 8
"""Ranks on one machine that shared memory should be large enough for."""
ALIGNMENT = 64
"""Bytes; arrays that share a buffer begin at multiples of it."""

Batch = dict[str, np.ndarray]
Layout = list[tuple[str, str, tuple[int, ...], int]]
"""Name, type, shape and first byte of each array in a buffer."""


def rank_batches(
    segments: Sequence[SegmentRef],
    spec: SampleSpec,
    *,
    seed: int,
    rank: int,
    world: int,
    stored_width: int,
    epochs: int,
    start: Position = START,
    virtual_ranks: int | None = None,
    accumulate: int = 1,
    loaders: int = 0,
) -> Iterator[list[Batch]]:
    """Yield this rank's micro-batches of every optimiser step from `start` to the end of `epochs`.

    Args:
        virtual_ranks: number of streams that all ranks share; as many as ranks if not given.
        accumulate: micro-batches that a step takes from each virtual rank.
        loaders: processes that draw the samples; 0 draws them here, when they are asked for.

    Raises:
        ValueError: a segment cannot be read; the message names its file.
        RuntimeError: a process was killed.
    """
    total = virtual_ranks or world
    plan = Plan(
        segments=segments,
        spec=spec,
        seed=seed,
        stored_width=stored_width,
        epochs=epochs,
        epoch=start.epoch,
        first=start.step * accumulate,
        mine=share_of(rank, world, total),
        virtual_ranks=total,
    )
    return group_by_step(
        plan.batches(plan.loaders(loaders)),
        start=start,
        epochs=epochs,
        batches_per_rank=batches_per_epoch(len(segments), total, spec),
        accumulate=accumulate,
        ranks=len(plan.mine),
    )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The batches of a rank, from a position to the end of a stage."""

    segments: Sequence[SegmentRef]
    spec: SampleSpec
    seed: int
    stored_width: int
    epochs: int
    epoch: int
    """The epoch to begin in."""
    first: int
    """Index in that epoch of each virtual rank's first batch."""
    mine: range
    """The virtual ranks of this rank."""
    virtual_ranks: int

    def batches(self, loaders: int) -> Iterator[Batch]:
        """Draw the batches in this process, or in so many others. The virtual ranks take turns."""
        turns = ([part] for part in self.parts(0, 1)) if loaders == 0 else _drawn_by(loaders, self)
        for parts in turns:
            yield from _batches_of(parts, self.spec.batch_size)

    def parts(self, part: int, parts: int) -> Iterator[Batch]:
        """Draw what one of `parts` processes brings to each turn; the next group is read meanwhile.

        Yields:
            As `draw_part`, for all virtual ranks of the share one after the other, with `slots`, `epoch` and `index`.
        """
        groups = ahead((self._load(works, part, parts) for works in self._groups()), 1)
        for works, loaded in groups:
            streams = [
                draw_part(work, self.spec, seed=self.seed, loaded=one) for work, one in zip(works, loaded, strict=True)
            ]
            for number, brought in enumerate(zip(*streams, strict=True)):
                place = {"epoch": np.array(works[0].epoch), "index": np.array(works[0].first_batch + number)}
                yield _joined(brought, self.spec.batch_size) | place

    def _groups(self) -> Iterator[tuple[Work, ...]]:
        """A group of every virtual rank of the share at a time; all have equally many batches."""
        for epoch in range(self.epoch, self.epochs):
            plans = [
                plan_epoch(
                    self.segments,
                    self.spec,
                    seed=self.seed,
                    epoch=epoch,
                    rank=virtual_rank,
                    world=self.virtual_ranks,
                    start=self.first if epoch == self.epoch else 0,
                )
                for virtual_rank in self.mine
            ]
            yield from zip(*plans, strict=True)

    def _load(self, works: tuple[Work, ...], part: int, parts: int) -> tuple[tuple[Work, ...], list[dict[int, Loaded]]]:
        """Read a process's part of the groups; it gets every `parts`-th segment of all of them together."""
        loaded, before = [], 0
        for work in works:
            mine = (part - before) % parts
            loaded.append(load_group(work, self.spec, stored_width=self.stored_width, part=mine, parts=parts))
            before += len(work.segments)
        return works, loaded

    def loaders(self, wanted: int) -> int:
        """The number of processes that shared memory is large enough for: all, or none.

        A process that finds it full is killed by the operating system.
        """
        free = shutil.disk_usage(SHARED_MEMORY).free if wanted and SHARED_MEMORY.exists() else None
        height, width = stage_size(self.spec.mouth_px)
        images = self.spec.num_frames * (1 if self.spec.contrast else 1 + NUM_REFERENCES)
        rows = AUDIO_WINDOW * (self.spec.num_frames + (HEARD_FRAMES if self.spec.lips else 0))
        rows += CLIP_FRAMES * (3 if self.spec.contrast else bool(self.spec.sync))
        turn = len(self.mine) * self.spec.batch_size * (images * 3 * height * width + rows * ROW_BYTES)
        needed = RANKS_TOGETHER * (TURNS_AHEAD + 1) * turn
        if free is None or free >= needed:
            return wanted
        log.warning(
            "%s has %d MB free, and batches need %d MB: samples are drawn in the trainer's process, which is slower; "
            "make it larger (docker run --shm-size=8g)",
            SHARED_MEMORY,
            free >> 20,
            needed >> 20,
        )
        return 0


def _joined(brought: Sequence[tuple[list[int], Batch]], batch_size: int) -> Batch:
    """The parts of several batches as one; `slots` counts through all of them."""
    slots = [number * batch_size + slot for number, (found, _) in enumerate(brought) for slot in found]
    filled = [batch for _, batch in brought if batch]
    joined = {name: concatenated([batch[name] for batch in filled]) for name in filled[0]} if filled else {}
    return joined | {"slots": np.array(slots, np.int64)}


def _batches_of(parts: Sequence[Batch], batch_size: int) -> Iterator[Batch]:
    """Put the parts of a turn together, and yield its batches."""
    slots = [part["slots"] for part in parts]
    count = sum(map(len, slots))
    names = {name for part in parts for name in part} - {"slots", "epoch", "index"}
    place = {name: parts[0][name] for name in ("epoch", "index")}
    assert all(part["epoch"] == place["epoch"] and part["index"] == place["index"] for part in parts)
    whole: Batch = {}
    for name in names:
        found = [(rows, part[name]) for rows, part in zip(slots, parts, strict=True) if len(rows)]
        if len(found) == 1:  # `slots` of the only part are in order
            whole[name] = found[0][1]
            continue
        first = found[0][1]
        whole[name] = np.empty((count, *first.shape[1:]), np.result_type(*(values for _, values in found)))
        for rows, values in found:
            whole[name][rows] = values
    for begin in range(0, count, batch_size):
        yield {name: values[begin : begin + batch_size] for name, values in whole.items()} | place


def warm_up() -> None:
    """Start the server that forks the processes: it imports for seconds, while the trainer does other things."""
    multiprocessing.set_forkserver_preload([__name__])
    forkserver.ensure_running()


def _drawn_by(loaders: int, plan: Plan) -> Iterator[list[Batch]]:
    """Yield the parts of each turn, one from every process."""
    warm_up()
    with tempfile.TemporaryDirectory(prefix="lawdnet-", ignore_cleanup_errors=True) as folder:
        segments = plan.segments if isinstance(plan.segments, SegmentList) else SegmentList.of(plan.segments)
        listed = segments.in_file(Path(folder) / "segments.arrow")  # it may be millions of rows
        turns = _turns(_Parts(replace(plan, segments=listed)), loaders)
        first = next(turns, None)
    if first:  # all have the file in memory, and it may go
        yield first
        yield from turns


def _turns(parts: _Parts, loaders: int) -> Iterator[list[Batch]]:
    stream = DataLoader(
        parts,
        batch_size=None,
        num_workers=loaders,
        prefetch_factor=TURNS_AHEAD,
        collate_fn=_as_it_is,
        multiprocessing_context="forkserver",  # to fork a process with threads may hang it
        generator=torch.Generator(),  # else the seed of the processes is drawn from the trainer's numbers
    )
    with _without_main():
        brought = iter(stream)
    while turn := [_unpacked(part) for part in _taken(brought, loaders)]:
        yield turn


def _taken(parts: Iterator[tuple[Tensor, Layout] | str], count: int) -> Iterator[tuple[Tensor, Layout]]:
    try:
        for _ in range(count):
            part = next(parts, None)
            if part is None:
                return
            if isinstance(part, str):
                raise ValueError(part)
            yield part
    except (RuntimeError, OSError, EOFError) as error:  # the last two: it was killed before it handed over a buffer
        if isinstance(error, RuntimeError) and "DataLoader worker" not in f"{error}":
            raise
        reason = f"{error}" or type(error).__name__
        raise RuntimeError(
            f"a process that draws samples was killed ({reason}); if memory ran out, use fewer: --loaders"
        ) from error


@contextmanager
def _without_main() -> Iterator[None]:
    """Let new processes not import the program that started this one: it is Ray's, which they have no use for."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _as_it_is(part: Any) -> Any:
    """Keeps the loader from making tensors of whatever it finds."""
    return part


class _Parts(IterableDataset[tuple[Tensor, Layout] | str]):
    """What one process draws; an item per turn, or the reason why there are no more."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __iter__(self) -> Iterator[tuple[Tensor, Layout] | str]:
        cv2.setNumThreads(1)  # the rank has one CPU for each process
        pa.set_cpu_count(1)
        info, trainer = get_worker_info(), multiprocessing.parent_process()
        assert info
        assert trainer
        threading.Thread(target=_end_with, args=[trainer], daemon=True).start()
        try:
            for part in self.plan.parts(info.id, info.num_workers):
                yield _packed(part)
        except ValueError as error:
            yield f"{error}"  # the loader would put a traceback into the message


def _end_with(trainer: BaseProcess) -> None:
    """End this process when the trainer has ended, even if it was killed.

    PyTorch's watchdog looks at the parent, which is the server that forks: it lives as long as any of its processes.
    """
    trainer.join()
    os._exit(1)


def _packed(part: Batch) -> tuple[Tensor, Layout]:
    """Arrays in one piece of shared memory: each piece costs the receiver a file descriptor and a connection."""
    layout, size = [], 0
    for name, values in part.items():
        layout.append((name, values.dtype.str, values.shape, size))
        size += -(-values.nbytes // ALIGNMENT) * ALIGNMENT
    buffer = torch.empty(size, dtype=torch.uint8).share_memory_()
    for (name, *_), view in zip(layout, _views(buffer, layout), strict=True):
        view[...] = part[name]
    return buffer, layout


def _unpacked(packed: tuple[Tensor, Layout]) -> Batch:
    buffer, layout = packed
    return {name: view for (name, *_), view in zip(layout, _views(buffer, layout), strict=True)}


def _views(buffer: Tensor, layout: Layout) -> Iterator[np.ndarray]:
    for _, kind, shape, start in layout:
        yield np.ndarray(shape, kind, buffer.numpy().data, start)
