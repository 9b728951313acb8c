"""What a checkpoint holds: resuming must equal never having stopped."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lawdnet.models.saved import (
    META,
    STATE,
    checkpoint_name,
    find_checkpoint,
    load_generator,
    load_syncnet,
    newest_good,
    read_meta,
    read_state,
    stage_checkpoints,
    state_hash,
)
from lawdnet.training import checkpoint
from lawdnet.training.config import TrainConfig
from lawdnet.training.position import Position
from lawdnet.training.steps import GanStep, Step
from tests.support.tiny_training import DIM, LINEAGE, assert_same, batch_of, make_step, run, tiny, weights


@pytest.fixture
def config() -> TrainConfig:
    return tiny()


def spoil(step: Step) -> None:
    """Leaves nothing of a fresh step that a checkpoint should bring back."""
    for network in step.networks.values():
        for parameter in network.parameters():
            parameter.data.add_(1)
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002


@pytest.mark.parametrize(("epoch", "next_step"), [(2, 0), (1, 2)])
@pytest.mark.parametrize("name", ["syncnet", "frame_32", "clip_96"])
def test_resuming_equals_never_stopping(name: str, epoch: int, next_step: int, tmp_path: Path) -> None:
    """From the end of an epoch, and from the middle of one: networks, optimisers, EMA, ramp, random states."""
    config = tiny("sync_ramp=8", "sync_below=4")
    stage = config.stage(name)
    whole = make_step(config, stage)
    run(config, stage, whole, folder=tmp_path, save_every_steps=1)
    random = torch.rand(3)

    again = make_step(config, stage, seed=99)
    spoil(again)
    start = checkpoint.resume(tmp_path / name / checkpoint_name(epoch, next_step), again)
    assert start == Position(epoch, next_step)
    run(config, stage, again, start)
    assert_same(weights(whole), weights(again), 1e-6)
    assert torch.equal(torch.rand(3), random)
    for part in ("ramp", "bound", "clip", "ema"):
        if part in whole.parts:
            assert flat(again.parts[part].state_dict()) == pytest.approx(flat(whole.parts[part].state_dict()), abs=1e-6)


def flat(values: dict[str, object]) -> dict[str, float]:
    """Numbers by dotted name."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= {f"{key}.{k}": v for k, v in flat(value).items()}
        else:
            found[key] = float(torch.as_tensor(value).double().sum())
    return found


def test_the_scaler_is_restored(tmp_path: Path) -> None:
    config = tiny("precision=fp16", "frame_32.weights.gan=0")
    stage = config.stage("frame_32")
    whole = make_step(config, stage)
    assert isinstance(whole, GanStep)
    scaler = whole.precision.scaler
    scaler.load_state_dict(scaler.state_dict() | {"scale": 512.0})
    run(config, stage, whole, folder=tmp_path, save_every_steps=1)
    again = make_step(config, stage)
    assert isinstance(again, GanStep)
    start = checkpoint.resume(tmp_path / "frame_32" / "epoch_0001_step_000001", again)
    assert again.precision.scaler.get_scale() == 512
    run(config, stage, again, start)
    assert_same(weights(whole), weights(again), 1e-6)
    assert again.precision.scaler.state_dict() == whole.precision.scaler.state_dict()


def test_the_ramp_was_under_way_in_these_runs(tmp_path: Path) -> None:
    """Else the tests above would not see a ramp that is forgotten."""
    config = tiny("sync_ramp=8", "sync_below=4")
    step = make_step(config, config.stage("clip_96"))
    rows = run(config, config.stage("clip_96"), step, folder=tmp_path)
    assert [row["sync_weight"] > 0 for row in rows] == [False, False, False, True]
    assert read_state(tmp_path / "clip_96" / "epoch_0002")["parts"]["ramp"]["seen"] == 6


def test_meta_says_where_a_checkpoint_comes_from(config: TrainConfig, tmp_path: Path) -> None:
    stage = config.stage("frame_64")
    origin = replace(LINEAGE, parent="frame_32/epoch_0004", parent_hash="p", syncnet_hash="s")
    checkpoint.save(tmp_path, make_step(config, stage), stage, config, origin, position=Position(1, 2))
    meta = read_meta(tmp_path)
    wanted = {
        "stage": "frame_64",
        "epoch": 1,
        "next_step": 2,
        "num_frames": 1,
        "dataset_hash": "d",
        "parent_hash": "p",
        "syncnet_hash": "s",
        "state_sha256": state_hash(tmp_path),
    }
    assert {key: meta[key] for key in wanted} == wanted
    assert meta["config"] == json.loads(json.dumps(config.to_dict()))
    assert meta["code_version"]


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = config.stage("frame_32")
    run(config, stage, make_step(config, stage), folder=tmp_path, save_every_steps=2)
    folder = tmp_path / "frame_32"
    names = [path.name for path in stage_checkpoints(folder)]
    assert names == [n for e in range(4) for n in (f"epoch_{e:04d}_step_000002", f"epoch_{e + 1:04d}")]
    assert newest_good(folder) == folder / "epoch_0004"

    state = folder / "epoch_0004" / STATE
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1  # torch.load would not notice
    state.write_bytes(content)
    (folder / "epoch_0003_step_000002" / META).write_text('{"stage": ')
    with caplog.at_level(logging.WARNING):
        assert newest_good(folder) == folder / "epoch_0003"
    assert [record.args[0].name for record in caplog.records] == ["epoch_0004", "epoch_0003_step_000002"]
    (folder / "epoch_0003" / STATE).unlink()
    assert newest_good(folder) == folder / "epoch_0002_step_000002"
    assert newest_good(tmp_path / "nothing") is None


def test_inference_gets_the_running_mean(config: TrainConfig, tmp_path: Path) -> None:
    stage = config.stage("frame_32")
    step = make_step(config, stage)
    run(config, stage, step, folder=tmp_path)
    assert isinstance(step, GanStep)
    assert step.ema is not None
    generator, _ = load_generator(tmp_path / "frame_32" / "epoch_0004")
    last, mean, loaded = (dict(n.state_dict()) for n in (step.networks["generator"], step.ema.network, generator))
    assert_same(mean, loaded, 0)
    assert any(not torch.equal(last[key], mean[key]) for key in last)

    bare = tiny("ema_decay=0")
    step = make_step(bare, stage)
    checkpoint.save(tmp_path, step, stage, bare, LINEAGE, position=Position(0))
    assert_same(dict(step.networks["generator"].state_dict()), dict(load_generator(tmp_path)[0].state_dict()), 0)


def test_a_frame_stage_takes_over_generator_and_discriminator(config: TrainConfig, tmp_path: Path) -> None:
    stage = config.stage("frame_32")
    parent = make_step(config, stage)
    run(config, stage, parent, folder=tmp_path)
    child = make_step(config, config.stage("frame_64"), seed=1)
    checkpoint.start_from(tmp_path / "frame_32" / "epoch_0004", child)
    assert isinstance(child, GanStep)
    assert isinstance(parent, GanStep)
    assert_same(dict(parent.evaluated.state_dict()), dict(child.networks["generator"].state_dict()), 0)
    assert_same(dict(parent.evaluated.state_dict()), dict(child.evaluated.state_dict()), 0)
    name = "image_discriminator"
    assert_same(dict(parent.networks[name].state_dict()), dict(child.networks[name].state_dict()), 0)


def test_a_discriminator_of_another_shape_starts_from_scratch(config: TrainConfig, tmp_path: Path) -> None:
    stage = config.stage("frame_32")
    checkpoint.save(tmp_path, make_step(config, stage), stage, config, LINEAGE, position=Position(1))
    larger = replace(config.stage("frame_64"), mouth_px=64)
    child = make_step(config, larger, seed=1)
    before = dict(weights(child))
    checkpoint.start_from(tmp_path, child)
    after = weights(child)
    assert all(torch.equal(after[k], v) for k, v in before.items() if k.startswith("image_discriminator"))
    assert not all(torch.equal(after[k], v) for k, v in before.items() if k.startswith("generator"))


def test_a_clip_stage_takes_no_discriminator(config: TrainConfig, tmp_path: Path) -> None:
    stage = config.stage("frame_96")
    parent = make_step(config, stage)
    parent(batch_of(stage))
    checkpoint.save(tmp_path, parent, stage, config, LINEAGE, position=Position(1))
    child = make_step(config, config.stage("clip_96"), seed=1)
    before = weights(child)
    checkpoint.start_from(tmp_path, child)
    heads = [step.parts["lip_head"].state_dict()["read.weight"] for step in (parent, child)]
    assert torch.equal(*heads)
    assert heads[0].any()
    changed = {key.split(".")[0] for key, value in weights(child).items() if not torch.equal(value, before[key])}
    assert changed == {"generator", "lip_reader"}


def test_training_starts_from_what_was_handed_over(config: TrainConfig, tmp_path: Path) -> None:
    """The running mean restarts there too, so that a child that has not stepped generates what its parent does."""
    stage = config.stage("frame_32")
    parent = make_step(config, stage)
    run(config, stage, parent, folder=tmp_path)
    child = make_step(config, stage, seed=5)
    checkpoint.start_from(tmp_path / "frame_32" / "epoch_0004", child)
    batch = batch_of(stage)
    torch.testing.assert_close(child.preview(batch), parent.preview(batch), rtol=0, atol=0)


def test_a_run_is_found_by_its_furthest_stage(config: TrainConfig, tmp_path: Path) -> None:
    for name in ("syncnet", "frame_32", "frame_64"):
        run(config, config.stage(name), make_step(config, config.stage(name)), folder=tmp_path)
    assert find_checkpoint(tmp_path) == tmp_path / "frame_64" / "epoch_0004"
    assert find_checkpoint(tmp_path / "frame_32") == tmp_path / "frame_32" / "epoch_0004"
    assert find_checkpoint(tmp_path / "frame_32" / "epoch_0001").name == "epoch_0001"
    generator, meta = load_generator(find_checkpoint(tmp_path))
    assert (meta["stage"], meta["mouth_px"], meta["crop_width"]) == ("frame_64", 32, 160)
    assert not generator.training
    assert load_syncnet(find_checkpoint(tmp_path, "syncnet")).config.audio_dim == DIM
    with pytest.raises(ValueError, match="no generator checkpoint"):
        find_checkpoint(tmp_path / "syncnet")


def test_half_a_checkpoint_is_none_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    half = tmp_path / "frame_32" / "epoch_0001"
    half.mkdir(parents=True)
    (half / "meta.json").write_text('{"state_bytes": 100}')
    assert stage_checkpoints(half.parent) == []
    (half / "state.pt").write_bytes(b"PK\x03\x04 cut")
    assert stage_checkpoints(half.parent) == []
    (half / "state.pt").write_bytes(b"x" * 100)
    assert stage_checkpoints(half.parent) == [half]
    with pytest.raises(ValueError, match="cannot be read"):
        read_state(half)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(tmp_path / "made"),))

    torch.save({"networks": Evil()}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="cannot be read"):
        read_state(tmp_path)
