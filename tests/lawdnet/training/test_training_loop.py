"""The loop and its steps on tiny networks and made-up batches, without ray."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lawdnet.training.alarms import check_finite
from lawdnet.training.config import TrainConfig
from lawdnet.training.loop import to_batch
from lawdnet.training.position import Position
from lawdnet.training.stages import Stage
from lawdnet.training.steps import GanStep, NonFiniteLoss, mouth_square
from lawdnet.types import TrainBatch
from tests.support.tiny_training import (
    BATCHES,
    CPU,
    DIM,
    apart,
    arrays,
    batch_of,
    make_step,
    run,
    stream,
    tiny,
    weights,
)


@pytest.fixture
def config() -> TrainConfig:
    return tiny()


@pytest.mark.parametrize("name", ["syncnet", "frame_32", "clip_96"])
def test_every_parameter_moves(config: TrainConfig, name: str) -> None:
    stage = config.stage(name)
    step = make_step(config, stage)
    before = {(n, k): v.clone() for n, net in step.networks.items() for k, v in net.named_parameters()}
    run(config, stage, step)
    still = [
        key for key, old in before.items() if torch.equal(dict(step.networks[key[0]].named_parameters())[key[1]], old)
    ]
    assert not still, f"no gradient ever reached {still}"


def test_training_reduces_the_loss_on_one_batch(config: TrainConfig) -> None:
    stage = replace(config.stage("frame_32"), lr=3e-3)
    step = make_step(config, stage)
    raw = arrays(0, 0, stage)
    raw["source"][:] = np.array([[200, 120, 90], [60, 40, 30]], np.uint8)[:, None, None, None]
    batch = to_batch(raw, CPU)
    losses = [float(step(batch)["pixel"]) for _ in range(60)]
    assert losses[-1] < 0.3 * losses[0]


def test_the_generator_never_sees_the_mouth(config: TrainConfig) -> None:
    stage = config.stage("frame_32")
    step = make_step(config, stage)
    assert isinstance(step, GanStep)
    first = arrays(0, 0, stage)
    second = {**first, "source": first["source"].copy()}
    second["source"][:, :, 24:40, 12:28] = 0  # well inside the mask
    made = [step.generate(to_batch(a, CPU)) for a in (first, second)]
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=2e-3)


def test_a_batch_is_moved_to_floats_in_order(config: TrainConfig) -> None:
    stage = config.stage("clip_96")
    raw = arrays(0, 0, stage)
    batch = to_batch(raw, CPU)
    assert batch.source_BN3HW.shape == (2, 5, 3, 52, 40)
    assert batch.reference_BN15HW.shape == (2, 5, 15, 52, 40)
    wanted = torch.from_numpy(raw["reference"][1, 2, 3, 7, 9].astype(np.float32)) / 255
    torch.testing.assert_close(batch.reference_BN15HW[1, 2, 9:12, 7, 9], wanted)
    torch.testing.assert_close(
        batch.source_BN3HW[0, 4, :, 5, 6], torch.from_numpy(raw["source"][0, 4, 5, 6] / 255).float()
    )
    assert batch.sync_audio_BC9 is not None


def test_a_loss_that_is_not_finite_changes_no_weight(config: TrainConfig) -> None:
    stage = config.stage("frame_32")
    step = make_step(config, stage)
    before = {k: v.clone() for k, v in step.networks["generator"].state_dict().items()}
    raw = arrays(0, 0, stage)
    raw["audio"][0] = np.nan
    with pytest.raises(NonFiniteLoss):
        step(to_batch(raw, CPU))
    assert all(torch.equal(before[k], v) for k, v in step.networks["generator"].state_dict().items())


def test_a_gradient_that_is_not_finite_changes_no_weight(config: TrainConfig) -> None:
    step = make_step(config, config.stage("frame_32"))
    weight = next(step.networks["generator"].parameters())
    weight.register_hook(lambda gradient: gradient * torch.inf)
    before = {k: v.clone() for k, v in step.networks["generator"].state_dict().items()}
    with pytest.raises(NonFiniteLoss, match="gradient of the generator"):
        step(to_batch(arrays(0, 0, config.stage("frame_32")), CPU))
    assert all(torch.equal(before[k], v) for k, v in step.networks["generator"].state_dict().items())


def test_the_error_names_the_loss() -> None:
    with pytest.raises(NonFiniteLoss, match="sync"):
        check_finite({"pixel": 1.0, "sync": float("inf")})


def test_the_sync_network_sees_the_mouth_square() -> None:
    crop = torch.arange(52 * 40.0).reshape(1, 1, 1, 52, 40).expand(1, 5, 3, 52, 40)
    square = mouth_square(crop, 32, 32)
    assert square.shape == (1, 15, 32, 32)
    assert square[0, 0, 0, 0] == 16 * 40 + 4
    assert mouth_square(crop, 32, 64).shape == (1, 15, 64, 64)


def test_every_pixel_of_the_mouth_has_a_gradient_where_it_is_shrunk() -> None:
    crop = torch.zeros(1, 5, 3, 156, 120, requires_grad=True)
    mouth_square(crop, 96, 32).sum().backward()
    assert crop.grad is not None
    assert float(crop.grad[..., 48:144, 12:108].min()) > 0
    assert float(crop.grad.sum()) == pytest.approx(15 * 32 * 32)


def test_a_sync_loss_without_a_sync_network_is_refused(config: TrainConfig) -> None:
    with pytest.raises(ValueError, match=r"clip_96.*no trained syncnet"):
        GanStep(config, config.stage("clip_96"), CPU, lambda n: n, audio_dim=DIM)


class Recorder:
    """A step that only records its calls; the batches of `bad` are not finite."""

    def __init__(self, stage: Stage, bad: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.stage, self.bad = stage, bad
        self.networks, self.parts = {}, {}
        self.optimizers = {"all": torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)}
        self.seen: list[int] = []
        self.calls: list[int] = []
        self.rates: list[float] = []

    def __call__(self, *batches: TrainBatch) -> dict[str, float]:
        number = len(self.calls)
        self.calls.append(len(batches))
        self.rates.append(self.optimizers["all"].param_groups[0]["lr"])
        if number in self.bad:
            raise NonFiniteLoss("not finite: pixel")
        return {"total": float(number), **({"share_gan": 0.5} if number == 1 else {})}

    def preview(self, batch: TrainBatch) -> None: ...


def test_batches_are_gathered_into_steps_and_the_last_of_an_epoch_is_short(config: TrainConfig) -> None:
    stage = replace(config.stage("frame_32"), accumulate=2)
    step = Recorder(stage)
    rows = run(config, stage, step)
    assert step.calls == [2, 1] * stage.epochs
    assert [row["total"] for row in rows] == [0.5, 2.5, 4.5, 6.5], "means over optimiser steps"
    assert rows[0]["share_gan"] == 0.5, "a metric that only some steps have is averaged over those"
    assert "share_gan" not in rows[1]
    override = Recorder(stage)
    run(config, stage, override, accumulate=3)
    assert override.calls == [3] * stage.epochs


def test_the_rate_is_a_function_of_the_epoch_also_where_it_is_scaled(config: TrainConfig) -> None:
    stage = replace(config.stage("frame_32"), warmup_steps=0)
    step = Recorder(stage)
    run(config, stage, step, Position(2, 1), lr=0.6)
    assert step.rates == pytest.approx(
        [0.6 * stage.lr_factor(2)] * (BATCHES - 1) + [0.6 * stage.lr_factor(3)] * BATCHES
    )


def test_the_rate_warms_up_by_optimiser_steps(config: TrainConfig) -> None:
    stage = replace(config.stage("frame_32"), warmup_steps=4, lr=1.0, epochs_constant=4, epochs_decay=0)
    step = Recorder(stage)
    run(config, stage, step)
    assert step.rates[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    resumed = Recorder(stage)
    run(config, stage, resumed, Position(1, 0))
    assert resumed.rates == step.rates[BATCHES:], "a function of the position alone"


def test_saves_fall_between_steps_and_never_on_the_end_of_an_epoch(config: TrainConfig) -> None:
    stage = config.stage("frame_32")
    saved: list[Position] = []
    run(config, stage, Recorder(stage), save=saved.append, save_every_steps=1)
    assert saved == [Position(e, s) for e in range(4) for s in (1, 2)]
    saved.clear()
    run(config, stage, Recorder(stage), save=saved.append, save_every_steps=1, accumulate=2)
    assert saved == [Position(e, 1) for e in range(4)], "a step takes two batches, and positions count steps"
    saved.clear()
    run(config, stage, Recorder(stage), Position(0, 1), save=saved.append, save_every_steps=2)
    assert saved == [Position(e, 2) for e in range(4)], "positions do not shift when a run resumes in the middle"


def test_what_is_not_finite_is_left_out_and_its_segments_are_named(config: TrainConfig) -> None:
    stage = config.stage("frame_32")
    alarms: list[str] = []
    rows = run(config, stage, Recorder(stage, {1, 4}), max_skipped=1, alarm=alarms.append)
    assert len(alarms) == 2
    assert alarms[0].startswith("frame_32, epoch 0, step 1: not finite: pixel")
    assert alarms[0].endswith("Its segments: s0-1-0, s0-1-1")
    assert rows[0]["skipped"] == 1
    assert rows[0]["total"] == 1.0, "the mean of steps 0 and 2"
    assert "skipped" not in rows[2]


def test_too_many_left_out_of_one_epoch_stop_the_run(config: TrainConfig) -> None:
    stage = config.stage("frame_32")
    step = Recorder(stage, {3, 5})
    with pytest.raises(NonFiniteLoss, match=r"frame_32, epoch 1, step 2: not finite: pixel; more than the 1 steps"):
        run(config, stage, step, max_skipped=1)
    assert len(step.calls) == 6
    with pytest.raises(NonFiniteLoss, match="epoch 0, step 0"):
        run(config, stage, Recorder(stage, {0}))


def test_a_step_that_is_left_out_changes_nothing(config: TrainConfig) -> None:
    """A run with a poisoned batch equals one that never saw it, fp16 scaler included."""
    alone = ("frame_32.weights.gan=0", "frame_32.weights.read=0")
    config = tiny("precision=fp16", *alone, "frame_32.warmup_steps=0")
    stage = config.stage("frame_32")
    poisoned, clean = make_step(config, stage), make_step(config, stage)
    start = weights(clean)

    def batches(start: Position) -> object:
        for (batch,) in stream(stage, start):
            yield [{**batch, "audio": batch["audio"] * np.nan} if int(batch["step"]) == 1 else batch]

    run(config, stage, poisoned, batches=batches, max_skipped=1)
    for epoch in range(stage.epochs):
        for optimizer in clean.optimizers.values():
            optimizer.param_groups[0]["lr"] = stage.lr * stage.lr_factor(epoch)
        for index in (0, 2):
            clean(to_batch(arrays(epoch, index, stage), CPU))
    assert apart(weights(poisoned), weights(clean), start) < 0.02  # the scaler has been halved: other roundings


def test_wrong_sounds_come_in_kinds(config: TrainConfig) -> None:
    stage = config.stage("syncnet")
    raw = arrays(0, 0, stage)
    other = batch_of(stage).other_audio_BC9
    assert other is not None
    np.testing.assert_array_equal(other.numpy(), np.concatenate([raw["other_audio"], raw["quiet_audio"]]))
