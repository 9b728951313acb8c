"""What a step may not do, because a GPU would run out of work: ask it for numbers more than once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lawdnet.training import checkpoint, networks
from lawdnet.training.loop import HostBatch
from lawdnet.training.position import Position
from lawdnet.training.precision import compile_in_place, tune_gpu
from lawdnet.training.steps import NonFiniteLoss
from tests.support.tiny_training import CPU, LINEAGE, apart, arrays, assert_same, batch_of, make_step, tiny, weights

NAMES = ("syncnet", "frame_32", "clip_96")
WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "unique", "unique_dim", "_unique2", "equal", "masked_select")
"""Operations for which the host waits until the device has done all before them."""


class Waits(TorchDispatchMode):
    """Counts those operations."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITS:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lawdnet.training.precision.FUSED_ON", ("cpu",))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_waits_once(name: str, precision: str, as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    whole = networks.read
    monkeypatch.setattr(networks, "read", lambda *groups: reads.append(1) or whole(*groups))
    config = tiny(f"precision={precision}", "sync_ramp=0", "share_every=1")
    step = make_step(config, config.stage(name))
    step(batch_of(step.stage, 0))
    reads.clear()
    with Waits() as waits:
        step(batch_of(step.stage, 1))
    assert waits.found == []
    assert len(reads) == 1


def test_waiting_is_seen() -> None:
    """Else the test above could not fail."""
    with Waits() as waits:
        float(torch.ones(()))
        bool(torch.ones(()) > 0)
        torch.unique(torch.ones(3, 2), dim=0)
    assert len(waits.found) == 3


@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_the_device_leaves_out_changes_nothing(name: str, as_on_a_gpu: None) -> None:
    """Nor does the decision on the device change what is learnt."""
    alone = [f"stages.weights.{name}=0" for name in ("gan", "clip_gan", "read")]
    config = tiny("ema_decay=0", *alone)
    stage = config.stage(name)
    step, clean = make_step(config, stage), make_step(config, stage)
    bad = arrays(0, 1, stage)
    bad |= {key: values * torch.nan for key, values in bad.items() if "audio" in key}
    step(batch_of(stage, 0))
    before = weights(step)
    with pytest.raises(NonFiniteLoss, match="not finite: "):
        step(HostBatch(bad))
    assert_same(before, weights(step), 0)
    step(batch_of(stage, 2))
    for index in (0, 2):
        clean(batch_of(stage, index))
    assert_same(weights(clean), weights(step), 0)


def test_one_micro_batch_at_a_time_is_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny()
    stage = config.stage("frame_32")
    alive: set[int] = set()
    most: list[int] = []

    class Counted(HostBatch):
        def to(self, device: torch.device, /) -> Any:
            batch = super().to(device)
            alive.add(id(batch))
            weakly(batch, alive)
            most.append(len(alive))
            return batch

    make_step(config, stage)(*(Counted(arrays(0, index, stage)) for index in range(4)))
    assert len(most) == 8, "for the discriminators, and for the generator"
    assert max(most) <= 2


def weakly(batch: Any, alive: set[int]) -> None:
    """Forget a batch when it is freed."""
    import weakref

    weakref.finalize(batch, alive.discard, id(batch))


def test_a_compiler_that_fails_is_told_once() -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    network, told = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()), []
    wanted = network(torch.ones(4, 3))
    compile_in_place(network, told.append, broken)  # type: ignore[arg-type]
    for _ in range(3):
        torch.testing.assert_close(network(torch.ones(4, 3)), wanted)
    assert len(told) == 1
    assert "no compiler here" in told[0]


@pytest.fixture
def backends() -> Iterator[None]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, matmul.fp32_precision, cudnn.conv.fp32_precision
    yield
    cudnn.benchmark, matmul.fp32_precision, cudnn.conv.fp32_precision = before


@pytest.mark.parametrize(("name", "exactness"), [("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "tf32")])
def test_only_fp32_does_without_tf32(name: str, exactness: str, backends: None) -> None:
    tune_gpu(name)
    assert torch.backends.cudnn.benchmark
    assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == exactness


def test_what_is_not_set_follows_the_device() -> None:
    config = tiny()
    assert (config.compile, config.channels_last) == (None, None)
    assert make_step(config, config.stage("frame_32")).networks["generator"].forward.__name__ == "forward"
    assert tiny("compile=true", "channels_last=false").channels_last is False
    assert tiny("compile=true", "compile=null").compile is None
    with pytest.raises(ValueError, match="compile: 'yes please' is not true or false"):
        tiny("compile=yes please")
    assert batch_of(config.stage("frame_32")).to(CPU).source_BN3HW.device == CPU


def test_a_checkpoint_of_another_device_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimiser that decides for itself takes the state of one that does not, and the reverse."""
    config = tiny()
    stage = config.stage("frame_32")
    steps = {}
    for kind, devices in (("host", ()), ("device", ("cpu",))):
        monkeypatch.setattr("lawdnet.training.precision.FUSED_ON", devices)
        steps[kind] = make_step(config, stage)
        steps[kind](batch_of(stage, 0))
        (tmp_path / kind).mkdir()
        checkpoint.save(tmp_path / kind, steps[kind], stage, config, LINEAGE, position=Position(0, 1))
    start = weights(steps["host"])
    for kind, other in (("host", "device"), ("device", "host")):
        checkpoint.resume(tmp_path / other, steps[kind])
        groups = [group for one in steps[kind].optimizers.values() for group in one.param_groups]
        assert {bool(group["fused"]) for group in groups} == {kind == "device"}
    for step in steps.values():
        step(batch_of(stage, 1))
    assert apart(weights(steps["host"]), weights(steps["device"]), start) < 0.01


def test_a_contrast_in_blocks_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix of 8 × 24 in blocks of one and of three rows."""
    config = tiny()
    stage = config.stage("syncnet")
    whole = make_step(config, stage)
    values = whole(*(batch_of(stage, index, size=4) for index in range(2)))
    for block in (1, 3 * 24):
        monkeypatch.setattr("lawdnet.training.contrast.BLOCK", block)
        step = make_step(config, stage)
        assert step(*(batch_of(stage, index, size=4) for index in range(2))) == pytest.approx(values, rel=1e-5)
        assert_same(weights(whole), weights(step), 1e-5)
