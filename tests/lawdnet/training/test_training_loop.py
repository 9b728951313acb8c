"""The loop and its steps on tiny networks and made-up batches, without ray."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lawdnet.models.saved import find_checkpoint, load_generator, load_syncnet, read_state, stage_checkpoints
from lawdnet.models.syncnet import SyncNet, SyncNetConfig
from lawdnet.training import checkpoint
from lawdnet.training.checkpoint import Lineage
from lawdnet.training.config import TrainConfig, make_config
from lawdnet.training.loop import Loop, to_batch
from lawdnet.training.stages import Stage
from lawdnet.training.steps import GanStep, NonFiniteLoss, Step, SyncStep, check_finite, mouth_square

CPU = torch.device("cpu")
DIM = 6
STEPS = 3
LINEAGE = Lineage(dataset_hash="d", crop_width=160, landmarks="auto", features={"mel": {"dim": DIM}})


@pytest.fixture
def config() -> TrainConfig:
    settings = ["base_channels=4", "sync_channels=4", "disc_channels=4", "disc_max_channels=8", "warp_grid=6",
                "key_points=2", "stages.mouth_px=32", "stages.batch_size=2", "stages.epochs_constant=2",
                "stages.epochs_decay=2"]  # fmt: skip
    return make_config("small", settings=settings)


def arrays(epoch: int, step: int, stage: Stage) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([epoch, step])
    size, n = (52, 40, 3), stage.num_frames
    batch = {
        "source": rng.integers(0, 256, (2, n, *size), np.uint8),
        "audio": rng.standard_normal((2, n, DIM, 5), np.float32),
        "epoch": np.array(epoch), "step": np.array(step),
    }  # fmt: skip
    if stage.kind == "gan":
        batch["reference"] = rng.integers(0, 256, (2, n, 5, *size), np.uint8)
    if stage.kind == "syncnet" or stage.weights.sync:
        batch |= {name: rng.standard_normal((2, DIM, 9), np.float32) for name in ("sync_audio", "other_audio")}
    return batch


def make_step(config: TrainConfig, stage: Stage) -> Step:
    torch.manual_seed(0)
    if stage.kind == "syncnet":
        return SyncStep(config, stage, CPU, lambda n: n, audio_dim=DIM)
    syncnet = SyncNet(SyncNetConfig(audio_dim=DIM, base_channels=4, face_px=32)) if stage.weights.sync else None
    return GanStep(config, stage, CPU, lambda n: n, audio_dim=DIM, syncnet=syncnet)


def run(
    config: TrainConfig, stage: Stage, step: Step, start: tuple[int, int] = (0, 0), folder: Path | None = None
) -> list[dict[str, float]]:
    """Trains with `arrays` and saves a checkpoint per epoch under `folder`."""
    rows: list[dict[str, float]] = []

    def batches(epoch: int, first: int) -> Iterator[dict[str, np.ndarray]]:
        yield from (
            arrays(e, s, stage) for e in range(epoch, stage.epochs) for s in range(first if e == epoch else 0, STEPS)
        )

    def report(metrics: dict[str, float], *, epoch: int) -> None:
        rows.append(metrics)
        if folder:
            target = folder / stage.name / f"epoch_{epoch:04d}"
            target.mkdir(parents=True)
            checkpoint.save(target, step, stage, config, LINEAGE, epoch=epoch)

    loop = Loop(stage=stage, step=step, device=CPU, batches=batches, steps_per_epoch=STEPS, report=report,
                log=lambda metrics: None)  # fmt: skip
    loop.run(*start)
    return rows


@pytest.mark.parametrize("name", ["syncnet", "frame_64", "clip_256"])
def test_going_on_from_a_checkpoint_equals_never_stopping(config: TrainConfig, name: str, tmp_path: Path) -> None:
    stage = config.stage(name)
    whole = make_step(config, stage)
    run(config, stage, whole, folder=tmp_path / "whole")

    torch.manual_seed(99)
    again = make_step(config, stage)
    for network in again.networks.values():
        for parameter in network.parameters():
            parameter.data.add_(1)  # nothing may be left of this
    start = checkpoint.resume(tmp_path / "whole" / name / "epoch_0002", again)
    assert start == (2, 0)
    run(config, stage, again, start)
    for network, other in zip(whole.networks.values(), again.networks.values(), strict=True):
        for key, value in network.state_dict().items():
            torch.testing.assert_close(other.state_dict()[key], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["syncnet", "frame_64", "clip_256"])
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
    stage = replace(config.stage("frame_64"), lr=3e-3)
    step = make_step(config, stage)
    raw = arrays(0, 0, stage)
    raw["source"][:] = np.array([[200, 120, 90], [60, 40, 30]], np.uint8)[:, None, None, None]
    batch = to_batch(raw, CPU)
    losses = [float(step(batch)["pixel"]) for _ in range(60)]
    assert losses[-1] < 0.3 * losses[0]


def test_the_generator_never_sees_the_mouth(config: TrainConfig) -> None:
    stage = config.stage("frame_64")
    step = make_step(config, stage)
    assert isinstance(step, GanStep)
    first = arrays(0, 0, stage)
    second = {**first, "source": first["source"].copy()}
    second["source"][:, :, 24:40, 12:28] = 0  # well inside the mask
    made = [step.generate(to_batch(a, CPU)) for a in (first, second)]
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=2e-3)


def test_a_batch_is_moved_to_floats_in_order(config: TrainConfig) -> None:
    stage = config.stage("clip_256")
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
    stage = config.stage("frame_64")
    step = make_step(config, stage)
    before = {k: v.clone() for k, v in step.networks["generator"].state_dict().items()}
    raw = arrays(0, 0, stage)
    raw["audio"][0] = np.nan
    with pytest.raises(NonFiniteLoss):
        step(to_batch(raw, CPU))
    assert all(torch.equal(before[k], v) for k, v in step.networks["generator"].state_dict().items())


def test_a_gradient_that_is_not_finite_changes_no_weight(config: TrainConfig) -> None:
    step = make_step(config, config.stage("frame_64"))
    weight = next(step.networks["generator"].parameters())
    weight.register_hook(lambda gradient: gradient * torch.inf)
    before = {k: v.clone() for k, v in step.networks["generator"].state_dict().items()}
    with pytest.raises(NonFiniteLoss, match="gradient of the generator"):
        step(to_batch(arrays(0, 0, config.stage("frame_64")), CPU))
    assert all(torch.equal(before[k], v) for k, v in step.networks["generator"].state_dict().items())


def test_the_error_names_the_loss() -> None:
    with pytest.raises(NonFiniteLoss, match="sync"):
        check_finite({"pixel": torch.tensor(1.0), "sync": torch.tensor(float("inf"))})


def test_the_sync_network_sees_the_mouth_square() -> None:
    crop = torch.arange(52 * 40.0).reshape(1, 1, 1, 52, 40).expand(1, 5, 3, 52, 40)
    square = mouth_square(crop, 32, 32)
    assert square.shape == (1, 15, 32, 32)
    assert square[0, 0, 0, 0] == 16 * 40 + 4
    assert mouth_square(crop, 32, 64).shape == (1, 15, 64, 64)


def test_a_sync_loss_without_a_sync_network_is_refused(config: TrainConfig) -> None:
    with pytest.raises(ValueError, match=r"clip_256.*no trained syncnet"):
        GanStep(config, config.stage("clip_256"), CPU, lambda n: n, audio_dim=DIM)


def test_a_run_is_found_by_its_furthest_stage(config: TrainConfig, tmp_path: Path) -> None:
    for name in ("syncnet", "frame_64", "frame_128"):
        run(config, config.stage(name), make_step(config, config.stage(name)), folder=tmp_path)
    assert find_checkpoint(tmp_path) == tmp_path / "frame_128" / "epoch_0004"
    assert find_checkpoint(tmp_path / "frame_64") == tmp_path / "frame_64" / "epoch_0004"
    assert find_checkpoint(tmp_path / "frame_64" / "epoch_0001").name == "epoch_0001"
    generator, meta = load_generator(find_checkpoint(tmp_path))
    assert (meta["stage"], meta["mouth_px"], meta["crop_width"]) == ("frame_128", 32, 160)
    assert not generator.training
    assert load_syncnet(find_checkpoint(tmp_path, "syncnet")).config.audio_dim == DIM
    with pytest.raises(ValueError, match="no generator checkpoint"):
        find_checkpoint(tmp_path / "syncnet")


def test_a_stage_starts_from_its_parent(config: TrainConfig, tmp_path: Path) -> None:
    parent_stage, stage = config.stage("frame_64"), config.stage("frame_128")
    parent = make_step(config, parent_stage)
    run(config, parent_stage, parent, folder=tmp_path)
    child = make_step(replace(config, seed=1), stage)
    checkpoint.start_from(tmp_path / "frame_64" / "epoch_0004", child)
    for key, value in parent.networks["generator"].state_dict().items():
        assert torch.equal(child.networks["generator"].state_dict()[key], value)


def test_half_a_checkpoint_is_none_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    half = tmp_path / "frame_64" / "epoch_0001"
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
