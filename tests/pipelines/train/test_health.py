"""A rank that hangs is named, and a node that fails twice is left out."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from lawdnet.training.checkpoint_store import CheckpointStore
from lawdnet.training.virtual_ranks import Workers
from pipelines.train import health
from pipelines.train.health import LeaveOutFailing, NodeHangs, check_ranks, torch_config
from pipelines.train.train import _callbacks

CPU = torch.device("cpu")


HANGS = 1
"""The rank that hangs."""


def rank_main(rank: int, folder: str, where: str) -> None:
    """A check in which one rank hangs: in its device, or on its way to the sum."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    check_ranks(CPU, 60)
    health._key = lambda what, one: f"again/{what}/{one}"
    if rank == HANGS and where == "sum":
        dist.all_reduce = lambda *args, **kwargs: time.sleep(600)
    try:
        check_ranks(CPU, 2, (lambda: time.sleep(600)) if rank == HANGS and where == "device" else None)
        text = "well"
    except NodeHangs as error:
        text = f"{error}"
    (Path(folder) / "found").write_text(text)
    os._exit(0)


@pytest.mark.parametrize(("where", "missed"), [("device", "computed on its device"), ("sum", "summed")])
def test_the_rank_that_hangs_is_named(where: str, missed: str, tmp_path: Path) -> None:
    ranks = [mp.get_context("spawn").Process(target=rank_main, args=(rank, str(tmp_path), where)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    ranks[0].join(120)
    ranks[HANGS].kill()
    ranks[HANGS].join()
    text = (tmp_path / "found").read_text()
    assert text.startswith(f"has not {missed} within 2 s: ")
    assert f"rank {HANGS} on {socket.gethostname()}" in text


def test_alone_there_is_nothing_to_check() -> None:
    check_ranks(CPU, work=lambda: pytest.fail("nobody waits"))


def test_the_time_out_is_of_minutes() -> None:
    assert 60 <= torch_config().timeout_s <= 900


def status(errors: dict[int, Exception]) -> Any:
    return SimpleNamespace(worker_statuses={rank: SimpleNamespace(error=errors.get(rank)) for rank in range(4)})


def group(*nodes: str) -> Any:
    workers = [
        SimpleNamespace(distributed_context=SimpleNamespace(world_rank=rank), metadata=SimpleNamespace(node_id=node))
        for rank, node in enumerate(nodes)
    ]
    return SimpleNamespace(get_workers=lambda: workers)


def start(callback: LeaveOutFailing) -> dict[str, str] | None:
    return callback.on_controller_start_worker_group(scaling_config=None, num_workers=4)


def test_a_node_that_fails_twice_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    callback = LeaveOutFailing({"lawdnet-role": "!preprocess"})
    died = WorkerHealthCheckFailedError("died", RuntimeError())
    callback.after_worker_group_start(group("aa", "bb", "cc", "dd"))
    callback.after_worker_group_poll_status(status({}))
    callback.after_worker_group_poll_status(status({1: died, 2: RuntimeError("connection closed by peer")}))
    assert start(callback) is None
    callback.after_worker_group_start(group("cc", "aa", "dd", "bb"))
    hangs = NodeHangs("has not summed within 9 s: rank 3 on host (node bb)")
    callback.after_worker_group_poll_status(status(dict.fromkeys(range(3), hangs)))
    assert start(callback) == {"lawdnet-role": "!preprocess", "ray.io/node-id": "!in(bb)"}
    assert "left out after 2 failures: node bb" in caplog.text


def test_at_most_half_of_the_nodes_are_left_out() -> None:
    callback = LeaveOutFailing({})
    for _ in range(2):
        callback.after_worker_group_start(group("aa", "bb"))
        callback.after_worker_group_poll_status(
            status(dict.fromkeys(range(2), WorkerHealthCheckFailedError("", OSError())))
        )
    selector = start(callback)
    assert selector in ({"ray.io/node-id": "!in(aa)"}, {"ray.io/node-id": "!in(bb)"})


def test_a_fixed_number_of_workers_keeps_its_nodes(tmp_path: Path) -> None:
    assert _callbacks(CheckpointStore(tmp_path), Workers(4, 4)) == []
    assert len(_callbacks(CheckpointStore(tmp_path), Workers(1, 4))) == 2
