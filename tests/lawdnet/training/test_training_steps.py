"""Accumulation, number formats, compilation, averages and shares: what must not change what is learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d

from lawdnet.models.generator import Generator
from lawdnet.models.lip_reader import LipReader
from lawdnet.training.ema import Ema
from lawdnet.training.lips import LipHead, read_loss, reader_loss
from lawdnet.training.loop import to_batch
from lawdnet.training.precision import Precision, compile_in_place
from lawdnet.training.steps import GanStep, NonFiniteLoss, SyncStep
from lawdnet.types import TrainBatch
from tests.support.tiny_training import apart, arrays, assert_same, batch_of, make_step, tiny, weights


def halves(batch: TrainBatch) -> list[TrainBatch]:
    """Two batches of half the size."""
    return parts(batch, batch.size // 2)


def parts(batch: TrainBatch, first: int) -> list[TrainBatch]:
    """A batch of the first samples, and one of the others; each kind of wrong audio is cut by itself."""

    def part(value: torch.Tensor | None, cut: slice) -> torch.Tensor | None:
        return None if value is None else torch.cat([kind[cut] for kind in value.split(batch.size)])

    cuts = (slice(None, first), slice(first, None))
    return [TrainBatch(**{f.name: part(getattr(batch, f.name), cut) for f in fields(batch)}) for cut in cuts]


@pytest.mark.parametrize("name", ["syncnet", "frame_32", "clip_96"])
def test_two_half_batches_make_the_step_of_a_whole_one(name: str) -> None:
    """Also for the sync network, whose faces must see the audio of both halves."""
    config = tiny("sync_ramp=0", "clip_96.weights.sync=100")  # loud enough to be shared back
    stage = config.stage(name)
    whole, split = make_step(config, stage), make_step(config, stage)
    start = weights(whole)
    for index in range(3):
        batch = batch_of(stage, index, size=4)
        full, parts = whole(batch), split(*halves(batch))
        assert full.keys() == parts.keys()
        for key in full.keys() - {k for k in full if k.startswith("share_")}:
            torch.testing.assert_close(parts[key], full[key], rtol=1e-4, atol=1e-6, msg=key)
    assert apart(weights(whole), weights(split), start) < 0.01


@pytest.mark.parametrize("name", ["syncnet", "frame_32", "clip_96"])
def test_batches_of_different_sizes_count_by_their_samples(name: str) -> None:
    config = tiny()
    stage = config.stage(name)
    whole, split = make_step(config, stage), make_step(config, stage)
    start = weights(whole)
    batch = batch_of(stage, size=6)
    values = whole(batch)
    found = split(*parts(batch, 4))
    for key in values.keys() - {k for k in values if k.startswith("share_")}:
        assert found[key] == pytest.approx(values[key], rel=1e-4), key
    assert apart(weights(whole), weights(split), start) < 0.01


def test_halves_by_themselves_are_another_contrast() -> None:
    """Else the test above could not fail for the sync network."""
    config = tiny()
    stage = config.stage("syncnet")
    batch = batch_of(stage, size=4)
    whole = make_step(config, stage)(batch)
    assert float(whole["chance"]) == pytest.approx((torch.tensor(12.0).log() + torch.tensor(4.0).log()) / 2)
    alone = make_step(config, stage)(halves(batch)[0])
    assert abs(float(alone["total"]) - float(whole["total"])) > 0.1


def test_wrong_audio_that_equals_the_right_one_counts_neither_way() -> None:
    config = tiny()
    stage = config.stage("syncnet")
    step, batch = make_step(config, stage), batch_of(stage, size=4)
    assert isinstance(step, SyncStep)
    assert batch.sync_audio_BC9 is not None
    assert batch.other_audio_BC9 is not None
    whole = float(make_step(config, stage)(batch)["accuracy"])  # of the weights before the step
    batch.other_audio_BC9[0] = batch.sync_audio_BC9[0]  # two silences
    score_BA = step.syncnet(batch.source_BN3HW[..., 16:48, 4:36].flatten(1, 2), batch.other_audio_BC9, pairwise=True)
    own_B = step.syncnet(batch.source_BN3HW[..., 16:48, 4:36].flatten(1, 2), batch.sync_audio_BC9)[:, 0, 0, 0]
    rest = (own_B > score_BA.diagonal())[1:].float().mean()
    assert float(make_step(config, stage)(batch)["accuracy"]) == pytest.approx(float(rest))
    assert whole in (0, 0.25, 0.5, 0.75, 1)


@pytest.mark.parametrize("name", ["frame_32", "clip_96"])
def test_shares_of_the_gradient_add_up_and_follow_the_weights(name: str) -> None:
    config = tiny("share_every=2", "sync_ramp=0", "ema_decay=0")
    stage = config.stage(name)
    loud = replace(stage, weights=replace(stage.weights, mouth=1000.0))
    steps = [make_step(config, s) for s in (stage, loud)]
    rows = [[step(batch_of(stage, index)) for index in range(3)] for step in steps]
    shares = [{k: float(v) for k, v in row[0].items() if k.startswith("share_")} for row in rows]
    wanted = {"share_pixel", "share_mouth", "share_gan", "share_read"} | (
        {"share_clip_gan", "share_sync"} if "clip" in name else set()
    )
    assert shares[0].keys() == wanted
    assert sum(shares[0].values()) == pytest.approx(1)
    assert shares[1]["share_mouth"] > 0.95 > shares[0]["share_mouth"]
    assert [any(k.startswith("share_") for k in row) for row in rows[0]] == [True, False, True]


def test_a_loud_sync_loss_is_held_to_its_share_and_a_quiet_one_is_left_alone() -> None:
    def taken(share: float, weight: float) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
        config = tiny("share_every=1", "sync_ramp=0", f"sync_share={share}", f"clip_96.weights.sync={weight}")
        stage = config.stage("clip_96")
        step = make_step(config, stage)
        rows = [step(batch_of(stage, 0)) for _ in range(6)]
        return [{k: float(v) for k, v in row.items()} for row in rows], weights(step)

    (bound, _), (free, _) = taken(0.2, 50.0), taken(1.0, 50.0)
    assert {row["sync_weight"] for row in free} == {50}
    assert min(row["share_sync"] for row in free) > 0.5
    assert bound[0]["sync_weight"] == 50, "how loud it is, a first step shows"
    assert all(row["sync_weight"] < 50 and 0 < row["share_sync"] < 0.25 for row in bound[1:])
    (_, bound_weights), (_, free_weights) = taken(0.9, 1e-3), taken(1.0, 1e-3)
    assert_same(bound_weights, free_weights, 0)


def test_the_image_gradients_of_the_losses_give_the_gradient_of_their_sum() -> None:
    config = tiny("sync_ramp=0", "sync_share=1", "grad_clip=0")
    stage = config.stage("clip_96")
    step, batch = make_step(config, stage), batch_of(stage)
    assert isinstance(step, GanStep)
    generator, head = step.networks["generator"], step.parts["lip_head"]
    assert isinstance(head, LipHead)
    nn.init.normal_(head.read.weight)
    both = step._generate(batch)
    found, metrics = step._generator_losses(batch, both)
    made, lips = both.images_M3HW, both.lips_R40
    assert lips is not None
    names = ("pixel", "mouth", "gan", "clip_gan", "sync", "lips", "read")
    weighted = {name: getattr(stage.weights, name) for name in names}
    assert metrics["total"].item() == pytest.approx(sum(w * metrics[n].item() for n, w in weighted.items()))
    parameters = list(generator.parameters())
    gradients = torch.autograd.grad(found, parameters, retain_graph=True)
    losses = step._image_losses(made, batch) | {"sync": (step._sync_score(made, batch) - 1).square().mean()}
    losses["lips"] = (lips - batch.lips_R40).square().mean()
    plain = torch.autograd.grad(sum(w * losses[n] for n, w in weighted.items()), parameters)
    for ours, theirs in zip(gradients, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_the_audio_encoder_learns_to_hear_the_lips() -> None:
    stage = replace(tiny().stage("frame_32"), lr=3e-3, warmup_steps=0)
    step, batch = make_step(tiny("grad_clip=0"), stage), batch_of(stage)
    before = {name: value.clone() for name, value in step.networks["generator"].audio_encoder.state_dict().items()}
    heard = [step(batch)["lips"] for _ in range(60)]
    assert heard[0] == pytest.approx(batch.lips_R40.square().mean().item())  # the layer says nothing at first
    assert heard[-1] < 0.3 * heard[0]
    after = step.networks["generator"].audio_encoder.state_dict()
    assert all((after[name] - value).abs().max() > 1e-3 for name, value in before.items())


def _moving(step: GanStep) -> Generator:
    """The generator of a step, whose audio changes its images; at first the warp moves nothing."""
    generator: Generator = step.networks["generator"]
    torch.nn.init.normal_(generator.warp.similarity.weight)
    return generator


@pytest.mark.parametrize("alone", [True, False])
def test_only_lips_teach_the_audio_encoder_where_that_is_wanted(alone: bool) -> None:
    config = tiny("grad_clip=0", f"audio_from_lips={alone}")
    stage = config.stage("frame_32")
    step, batch = make_step(config, stage), batch_of(stage)
    assert batch.lip_points_BN40 is not None
    encoder = list(_moving(step).audio_encoder.parameters())
    torch.nn.init.normal_(step.parts["lip_head"].read.weight)  # zero at first

    def teaches(loss: torch.Tensor) -> bool:
        return any(gradient.any() for gradient in torch.autograd.grad(loss, encoder, retain_graph=True))

    made = step._generate(batch)
    assert made.lips_R40 is not None
    assert teaches(made.lips_R40.sum())
    assert teaches(made.images_M3HW.sum()) != alone
    batch.lip_points_BN40[0] = torch.nan  # nothing else can teach it then
    images_M3HW = step._generate(batch).images_M3HW
    assert teaches(images_M3HW[0].sum())
    assert teaches(images_M3HW[1:].sum()) != alone


def test_images_teach_the_audio_encoder_of_a_stage_without_the_loss_on_lips() -> None:
    config = tiny("audio_from_lips=true", "stages.weights.lips=0", "stages.weights.read=0")
    stage = config.stage("frame_32")
    step = make_step(config, stage)
    encoder = list(_moving(step).audio_encoder.parameters())
    images_M3HW = step._generate(batch_of(stage)).images_M3HW
    assert any(gradient.any() for gradient in torch.autograd.grad(images_M3HW.sum(), encoder))


def test_without_the_losses_on_lips_nothing_reads_them() -> None:
    config = tiny("stages.weights.lips=0", "stages.weights.read=0")
    stage = config.stage("frame_32")
    assert not config.sample_spec(stage).lips
    step = make_step(config, stage)
    assert "lip_head" not in step.parts
    assert "lip_reader" not in step.networks
    assert not {"lips", "read", "lip_reader"} & step(batch_of(stage)).keys()


def test_a_reader_learns_where_lips_are_and_generated_ones_are_drawn_to_the_true_ones() -> None:
    """A dark bar on a face, higher or lower: the reader finds it in other colours and blurred, and moves it."""
    rng = torch.Generator().manual_seed(0)

    def mouths(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        place_M = torch.randint(8, 24, (count,), generator=rng)
        mouth_M3SS = torch.rand(count, 3, 1, 1, generator=rng).expand(-1, -1, 32, 32).clone() * 0.5 + 0.5
        for mouth, place in zip(mouth_M3SS, place_M, strict=True):
            mouth[:, place - 2 : place + 2, 8:24] *= 0.3
        return mouth_M3SS, ((place_M - 16) / 4.0)[:, None].expand(-1, 40)

    torch.manual_seed(0)
    reader = LipReader()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        reader_loss(reader, *mouths(16)).backward()
        optimizer.step()
    unseen_M3SS, points_M40 = mouths(32)
    assert (reader(unseen_M3SS) - points_M40).abs().mean() < 0.3
    assert (reader(avg_pool2d(unseen_M3SS, 5, 1, 2)) - points_M40).abs().mean() < 0.5
    reader.requires_grad_(False)
    assert read_loss(reader, unseen_M3SS, unseen_M3SS, points_M40) == 0
    drawn_M3SS = mouths(32)[0].requires_grad_()
    before = read_loss(reader, drawn_M3SS, unseen_M3SS, points_M40)
    (gradient,) = torch.autograd.grad(before, drawn_M3SS)
    closer_M3SS = drawn_M3SS.detach() - 2.0 * gradient / gradient.abs().amax((1, 2, 3), keepdim=True) * 0.05
    assert read_loss(reader, closer_M3SS, unseen_M3SS, points_M40) < before


def test_frames_without_landmarks_teach_nothing_of_lips() -> None:
    """An imported dataset has none: training goes on with its other losses."""
    stage = tiny().stage("frame_32")
    step, raw = make_step(tiny(), stage), arrays(0, 0, stage)
    blind = to_batch({k: v * np.nan if k in ("lips", "lip_points") else v for k, v in raw.items()}, torch.device("cpu"))
    reader = {name: value.clone() for name, value in step.networks["lip_reader"].state_dict().items()}
    values = step(blind)
    assert [values[name] for name in ("lips", "read", "lip_reader")] == [0, 0, 0]
    assert values["total"] > 0
    for name, value in step.networks["lip_reader"].state_dict().items():
        torch.testing.assert_close(value, reader[name], rtol=1e-5, atol=1e-6)  # but for AdamW's decay
    half = {k: v.copy() for k, v in raw.items()}
    for name in ("lips", "lip_points"):
        half[name][0] = np.nan
    assert all(math.isfinite(value) for value in step(to_batch(half, torch.device("cpu"))).values())


def test_measuring_shares_changes_no_weight() -> None:
    stage = tiny().stage("frame_32")
    with_shares, without = (make_step(tiny(f"share_every={n}"), stage) for n in (1, 0))
    for step in (with_shares, without):
        step(batch_of(stage))
    assert_same(weights(with_shares), weights(without), 0)


def test_the_running_mean_is_the_formula() -> None:
    network = nn.Linear(2, 1)
    ema = Ema(network, 0.5)
    wanted = network.weight.detach().clone()
    for n, kept in enumerate([1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 0.5, 0.5]):
        with torch.no_grad():
            network.weight += n + 1
        wanted = kept * wanted + (1 - kept) * network.weight.detach()
        ema.update(network)
        torch.testing.assert_close(ema.network.weight, wanted)
    assert not ema.network.weight.requires_grad


def test_previews_come_from_the_running_mean() -> None:
    config = tiny()
    stage = config.stage("frame_32")
    step = make_step(config, stage)
    assert isinstance(step, GanStep)
    batch = batch_of(stage)
    before = step.preview(batch)
    with torch.no_grad():
        for parameter in step.networks["generator"].parameters():
            parameter.add_(0.1)
    assert torch.equal(step.preview(batch), before)
    assert step.evaluated is not step.networks["generator"]
    bare = make_step(tiny("ema_decay=0"), stage)
    assert isinstance(bare, GanStep)
    assert bare.evaluated is bare.networks["generator"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_the_same_thing(precision: str) -> None:
    stage = tiny().stage("frame_32")
    exact, half = make_step(tiny("precision=fp32"), stage), make_step(tiny(f"precision={precision}"), stage)
    batch = batch_of(stage)
    for _ in range(3):
        wanted, found = exact(batch), half(batch)
    assert float(found["total"]) == pytest.approx(float(wanted["total"]), rel=0.05)
    assert float(found["total"]) != float(wanted["total"]), "it really computes otherwise"
    assert all(p.dtype == torch.float32 for p in half.networks["generator"].parameters())


@pytest.mark.parametrize("name", ["frame_32", "clip_96"])
def test_an_overflow_under_a_large_scale_only_lowers_the_scale(name: str) -> None:
    """Nor is it a fault when the sync loss's share of the gradient is measured."""
    alone = [f"stages.weights.{name}=0" for name in ("gan", "clip_gan", "read")]  # each update would lower it
    config = tiny("precision=fp16", *alone, "sync_ramp=0")
    stage = config.stage(name)
    step = make_step(config, stage)
    assert isinstance(step, GanStep)
    before, scaler = weights(step), step.precision.scaler
    scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0**120})
    step(batch_of(stage))
    assert scaler.get_scale() == 2.0**119
    assert_same(before, weights(step), 0)
    scaler.load_state_dict(scaler.state_dict() | {"scale": 1024.0})
    step(batch_of(stage))
    assert any(not torch.equal(value, before[key]) for key, value in weights(step).items())


def test_an_overflow_that_no_scale_explains_is_a_fault() -> None:
    config = tiny("precision=fp16", "frame_32.weights.gan=0")
    stage = config.stage("frame_32")
    step = make_step(config, stage)
    assert isinstance(step, GanStep)
    scaler = step.precision.scaler
    scaler.load_state_dict(scaler.state_dict() | {"scale": 1.0})
    next(step.networks["generator"].parameters()).register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(NonFiniteLoss, match="gradient of the generator"):
        step(batch_of(stage))


def test_the_layout_of_memory_changes_no_result() -> None:
    stage = tiny().stage("frame_32")
    rows, last = (make_step(tiny(f"channels_last={flag}"), stage) for flag in ("false", "true"))
    weight = last.networks["generator"].state_dict()["source_encoder.0.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last)
    start = weights(rows)
    for step in (rows, last):
        step(batch_of(stage))
    assert apart(weights(rows), weights(last), start) < 0.01


def test_a_compiled_generator_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lawdnet.training.steps.compile_in_place", lambda network, alarm: compile_in_place(network, alarm, "eager")
    )
    stage = tiny().stage("frame_32")
    plain, compiled = make_step(tiny("compile=false"), stage), make_step(tiny("compile=true"), stage)
    assert "forward" in vars(compiled.networks["generator"].warp)
    start = weights(plain)
    for step in (plain, compiled):
        step(batch_of(stage))
    assert apart(weights(plain), weights(compiled), start) < 0.01


def test_what_does_not_compile_runs_as_it_is() -> None:
    def broken(graph: torch.fx.GraphModule, inputs: Sequence[torch.Tensor]) -> Callable[..., object]:
        raise RuntimeError("no compiler here")

    network = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    x = torch.rand(4, 3)
    wanted = network(x)
    compile_in_place(network, backend=broken)  # type: ignore[arg-type]
    torch.testing.assert_close(network(x), wanted)
    assert list(network.state_dict()) == ["0.weight", "0.bias"]


def test_auto_is_single_precision_without_a_gpu() -> None:
    assert Precision("auto", torch.device("cpu")).dtype == torch.float32
    assert not Precision("bf16", torch.device("cpu")).scaler.is_enabled()


def test_the_sync_loss_waits_for_its_ramp() -> None:
    config = tiny("sync_ramp=2", "sync_below=4")
    stage = config.stage("clip_96")
    waiting, never = make_step(config, stage), make_step(tiny("sync_ramp=2", "sync_below=0"), stage)
    rows = [[step(batch_of(stage, index)) for index in range(13)] for step in (waiting, never)]
    weight = stage.weights.sync
    assert [float(row["sync_weight"]) for row in rows[0][9:]] == pytest.approx([0, weight / 2, weight, weight])
    assert isinstance(waiting, GanStep)
    assert waiting.ramp.target == pytest.approx(sum(row["sync_score"] for row in rows[0][:10]) / 10)
    assert "sync_true" in rows[0][9]
    assert "sync_true" not in rows[0][10]
    assert all(float(row["sync_weight"]) == 0 and row["sync"] > 0 for row in rows[1])
