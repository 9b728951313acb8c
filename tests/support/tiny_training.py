"""Tiny networks and made-up batches, for tests of the steps, the loop and the checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from lawdnet.models.saved import checkpoint_name
from lawdnet.models.syncnet import SyncNet, SyncNetConfig
from lawdnet.training import checkpoint
from lawdnet.training.checkpoint import Lineage
from lawdnet.training.collectives import Collectives
from lawdnet.training.config import TrainConfig, make_config
from lawdnet.training.loop import Loop, to_batch
from lawdnet.training.networks import Wrap
from lawdnet.training.position import START, Position
from lawdnet.training.stages import Stage
from lawdnet.training.steps import GanStep, Step, SyncStep
from lawdnet.training.virtual_ranks import group_by_step, steps_per_epoch
from lawdnet.types import TrainBatch

CPU = torch.device("cpu")
DIM = 6
BATCHES = 3
"""Batches of an epoch."""
LINEAGE = Lineage(dataset_hash="d", crop_width=160, landmarks="auto", features={"mel": {"dim": DIM}})


def tiny(*settings: str) -> TrainConfig:
    """The small preset with networks that train in milliseconds, and these settings."""
    narrow = [
        "base_channels=4",
        "sync_channels=4",
        "disc_channels=4",
        "disc_max_channels=8",
        "warp_grid=6",
        "key_points=2",
        "stages.mouth_px=32",
        "stages.batch_size=2",
        "stages.epochs_constant=2",
        "stages.epochs_decay=2",
    ]
    return make_config("small", settings=[*narrow, *settings])


def arrays(epoch: int, index: int, stage: Stage, size: int = 2) -> dict[str, np.ndarray]:
    """A batch as the sampler gives it."""
    rng = np.random.default_rng([epoch, index])
    shape, n = (52, 40, 3), stage.num_frames
    batch = {
        "source": rng.integers(0, 256, (size, n, *shape), np.uint8),
        "audio": rng.standard_normal((size, n, DIM, 5), np.float32),
        "segment_ids": np.array([f"s{epoch}-{index}-{i}" for i in range(size)]),
        "epoch": np.array(epoch),
        "index": np.array(index),
    }
    if stage.kind == "gan":
        batch["reference"] = rng.integers(0, 256, (size, n, 5, *shape), np.uint8)
        if stage.weights.lips:
            batch["lip_audio"] = rng.standard_normal((size, 3, DIM, 5), np.float32)
            batch["lips"] = rng.standard_normal((size, 3, 40), np.float32)
    if stage.kind == "syncnet" or stage.weights.sync:
        batch["sync_audio"] = rng.standard_normal((size, DIM, 9), np.float32)
    if stage.kind == "syncnet":
        batch |= {name: rng.standard_normal((size, DIM, 9), np.float32) for name in ("other_audio", "quiet_audio")}
    return batch


def batch_of(stage: Stage, index: int = 0, size: int = 2) -> TrainBatch:
    """A batch as tensors."""
    return to_batch(arrays(0, index, stage, size), CPU)


def make_step(
    config: TrainConfig,
    stage: Stage,
    wrap: Wrap = lambda network: network,
    seed: int = 0,
    device: torch.device = CPU,
    collectives: Collectives | None = None,
) -> Step:
    """A step with the same first weights at every call."""
    torch.manual_seed(0)
    syncnet = SyncNet(SyncNetConfig(audio_dim=DIM, base_channels=4, face_px=32, head="cosine"))
    torch.manual_seed(seed)
    if stage.kind == "syncnet":
        return SyncStep(config, stage, device, wrap, audio_dim=DIM, collectives=collectives)
    return GanStep(config, stage, device, wrap, audio_dim=DIM, syncnet=syncnet, collectives=collectives)


def stream(
    stage: Stage, start: Position = START, accumulate: int | None = None
) -> Iterator[list[dict[str, np.ndarray]]]:
    """The batches of every step from a position to the end of the stage."""
    count = accumulate or stage.accumulate
    indices = (
        (epoch, index)
        for epoch in range(start.epoch, stage.epochs)
        for index in range(start.step * count if epoch == start.epoch else 0, BATCHES)
    )
    batches = (arrays(epoch, index, stage) for epoch, index in indices)
    return group_by_step(batches, start=start, epochs=stage.epochs, batches_per_rank=BATCHES, accumulate=count)


def run(
    config: TrainConfig,
    stage: Stage,
    step: Step,
    start: Position = START,
    folder: Path | None = None,
    accumulate: int | None = None,
    **settings: object,
) -> list[dict[str, float]]:
    """Trains on `stream`, saves under `folder`, and returns the metrics of the epochs."""
    rows: list[dict[str, float]] = []

    def save(position: Position) -> None:
        if folder:
            target = folder / stage.name / checkpoint_name(position.epoch, position.step)
            target.mkdir(parents=True)
            checkpoint.save(target, step, stage, config, LINEAGE, position=position)

    def report(metrics: dict[str, float], *, epoch: int) -> None:
        rows.append(metrics)
        save(Position(epoch))

    loop = Loop(
        **{
            "stage": stage,
            "step": step,
            "device": CPU,
            "batches": lambda start: stream(stage, start, accumulate),
            "steps_per_epoch": steps_per_epoch(BATCHES, accumulate or stage.accumulate),
            "report": report,
            "log": lambda metrics: None,
            "save": save,
            **settings,
        }
    )
    loop.run(start)
    return rows


def weights(step: Step) -> dict[str, torch.Tensor]:
    """A copy of all parameters by name."""
    return {f"{n}.{k}": v.detach().clone() for n, net in step.networks.items() for k, v in net.state_dict().items()}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], atol: float) -> None:
    """The same names, and values within `atol`."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(
            theirs[name], value, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


def apart(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> float:
    """Distance of two trained networks as a share of how far they came.

    Single weights do not compare: Adam divides by the gradient's size, and if that is next to nothing rounding
    decides the direction of a whole step.
    """

    def norm(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
        return float(torch.stack([(left[k] - right[k]).norm() for k in left]).norm())

    assert ours.keys() == theirs.keys() == start.keys()
    return norm(ours, theirs) / norm(ours, start)
