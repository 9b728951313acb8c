"""Every step on a device: what it learns, when it overflows or is not finite, how it resumes, what memory it takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from lawdnet.training import checkpoint, networks
from lawdnet.training.collectives import find_collectives
from lawdnet.training.loop import STAYING, HostBatch, pinned
from lawdnet.training.position import Position
from lawdnet.training.steps import NonFiniteLoss, Step
from tests.support.tiny_training import CPU, LINEAGE, apart, arrays, assert_same, make_step, run, tiny, weights

NAMES = ("syncnet", "frame_32", "clip_96")
EXACT = ("precision=fp32", "sync_ramp=0", "compile=false", "channels_last=false")
ALONE = [f"stages.weights.{name}=0" for name in ("gan", "clip_gan", "read")]
"""Settings with which only the generator is updated."""
STEPS = 3
# distance of the weights from those of a CPU after three steps, as a share of how far they came
TOLERANCES = {"fp32": 0.02, "tf32": 0.3, "bf16": 0.7}


def host(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.cpu() for name, value in values.items()}


def made(name: str, device: torch.device, *settings: str) -> Step:
    config = tiny(*settings)
    return make_step(config, config.stage(name), device=device)


def batch(step: Step, index: int, size: int = 2) -> HostBatch:
    return HostBatch(pinned(arrays(0, index, step.stage, size), step.device))


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_arrives_as_it_was(name: str, device: torch.device) -> None:
    """On a GPU from page-locked memory, without a wait."""
    raw = arrays(0, 1, tiny().stage(name))
    there = pinned(raw, device)
    assert there.keys() == raw.keys()
    if device.type == "cuda":
        assert all(there[key].is_pinned() for key in there if key not in STAYING)
        torch.cuda.set_sync_debug_mode("error")
    try:
        moved = HostBatch(there).to(device)
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    for field, value in vars(HostBatch(raw).to(CPU)).items():
        found = getattr(moved, field)
        assert (found is None) == (value is None)
        if value is not None:
            assert found.device.type == device.type
            torch.testing.assert_close(found.cpu(), value)


@contextlib.contextmanager
def one_wait(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On a GPU, any wait of the host but the one at the end of a step is an error."""
    if device.type != "cuda":
        yield
        return
    whole = networks.read

    def read(*groups: networks.Metrics) -> list[networks.Values]:
        torch.cuda.set_sync_debug_mode("default")
        try:
            return whole(*groups)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    with monkeypatch.context() as patch:
        patch.setattr(networks, "read", read)
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("name", NAMES)
def test_a_step_learns_the_same_everywhere(name: str, precision: str, device: torch.device) -> None:
    exact = made(name, CPU, *EXACT)
    start = weights(exact)
    step = made(name, device, *EXACT, f"precision={precision}")
    assert_same(host(weights(step)), start, 0)
    for index in range(STEPS):
        wanted = exact(batch(exact, index))
        found = step(batch(step, index))
    assert found["total"] == pytest.approx(wanted["total"], rel=0.1)
    assert apart(weights(exact), host(weights(step)), start) < TOLERANCES[precision]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_waits_once(name: str, precision: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    step = made(name, device, "sync_ramp=0", "share_every=1", "compile=false", f"precision={precision}")
    step(batch(step, 0))  # makes the optimisers' state
    with one_wait(device, monkeypatch):
        for index in range(2):
            step(batch(step, index + 1), batch(step, index + 3))
            step(batch(step, index))


@pytest.mark.parametrize("name", NAMES)
def test_the_defaults_learn_what_they_should(name: str, device: torch.device) -> None:
    """On a GPU: bf16 or tf32, compiled, channels last. The loss of one batch falls."""
    step = made(name, device, "sync_ramp=0", "stages.lr=1e-3")
    key = "total" if name == "syncnet" else "pixel"
    found = [step(batch(step, 0))[key] for _ in range(25)]
    assert found[-1] < 0.95 * found[0]


@pytest.mark.parametrize("name", ["frame_32", "clip_96"])
def test_an_overflow_only_lowers_the_scale(name: str, device: torch.device) -> None:
    step = made(name, device, "precision=fp16", *ALONE, "sync_ramp=0")
    before, scaler = weights(step), step.precision.scaler
    scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0**120})
    step(batch(step, 0))
    assert scaler.get_scale() == 2.0**119
    assert_same(before, weights(step), 0)
    scaler.load_state_dict(scaler.state_dict() | {"scale": 1024.0})
    step(batch(step, 0))
    assert any(not torch.equal(value, before[key]) for key, value in weights(step).items())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_changes_nothing(name: str, device: torch.device) -> None:
    step = made(name, device, *ALONE, "sync_ramp=0")
    step(batch(step, 0))
    before = weights(step)
    bad = arrays(0, 1, step.stage)
    bad |= {key: value * torch.nan for key, value in bad.items() if "audio" in key}
    with pytest.raises(NonFiniteLoss, match="not finite: "):
        step(HostBatch(bad))
    assert_same(before, weights(step), 0)
    step(batch(step, 2))
    assert any(not torch.equal(value, before[key]) for key, value in weights(step).items())


@pytest.mark.parametrize("name", NAMES)
def test_resuming_equals_never_stopping(name: str, device: torch.device, tmp_path: Path) -> None:
    """Written beside training, also on a CPU what a GPU saved, and the reverse."""
    whole = made(name, device, *EXACT)
    config, stage = whole.config, whole.stage
    run(config, stage, whole, folder=tmp_path, save_every_steps=1, device=device)
    for where in dict.fromkeys((device, CPU)):
        again = make_step(config, stage, seed=99, device=where)
        start = checkpoint.resume(tmp_path / name / "epoch_0002_step_000001", again)
        run(config, stage, again, start, device=where)
        moved = make_step(config, stage)
        share = apart(host(weights(whole)), host(weights(again)), weights(moved))
        assert share < (1e-5 if where == device == CPU else 0.02)


def test_a_snapshot_is_of_its_moment(device: torch.device, tmp_path: Path) -> None:
    """What is copied without waiting does not see the step that follows."""
    step = made("frame_32", device, *EXACT)
    step(batch(step, 0))
    wanted = host(weights(step))
    taken = checkpoint.snapshot(step, Position(0, 1))
    for index in range(3):
        step(batch(step, index))
    checkpoint.write(tmp_path, taken, step.stage, step.config, LINEAGE)
    checkpoint.resume(tmp_path, step)
    assert_same(host(weights(step)), wanted, 0)


def rank_main(rank: int, folder: str, kind: str) -> None:
    """One of two processes that share one device, with gloo."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    device, found = torch.device(kind), {}
    for name in NAMES:
        config = tiny(*EXACT)
        collectives = find_collectives(device)
        step = make_step(config, config.stage(name), DistributedDataParallel, device=device, collectives=collectives)
        for index in range(STEPS):
            step(batch(step, 2 * index + rank))
        found[name] = host(weights(step))
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_share_a_device(device: torch.device, tmp_path: Path) -> None:
    mp.start_processes(rank_main, (str(tmp_path), device.type), nprocs=2, start_method="spawn")
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name in NAMES:
        alone = made(name, CPU, *EXACT)
        start = weights(alone)
        for index in range(STEPS):
            alone(batch(alone, 2 * index), batch(alone, 2 * index + 1))
        assert_same(ranks[0][name], ranks[1][name], 0)
        assert apart(weights(alone), ranks[0][name], start) < 0.02


@pytest.mark.parametrize("name", NAMES)
def test_memory_does_not_grow(name: str, device: torch.device) -> None:
    """A step of four batches takes the memory of one, and the second step no more than the first."""
    peaks: list[int] = []
    for count in (2, 2, 8):
        step = made(name, device, *EXACT)
        step(batch(step, 0), batch(step, 1))
        peaks.append(peak(device, lambda step=step, count=count: step(*(batch(step, index) for index in range(count)))))
    assert peaks[1] <= 1.1 * peaks[0] + MARGIN
    assert peaks[2] <= 1.3 * peaks[0] + MARGIN


MARGIN = 1 << 20


def peak(device: torch.device, action: object) -> int:
    """Bytes of tensors on a GPU at the highest; on a CPU nobody counts them."""
    assert callable(action)
    if device.type != "cuda":
        action()
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    action()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()
