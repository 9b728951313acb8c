"""The whole state of a stage in one folder, so that going on is the same as never having stopped."""

from __future__ import annotations

import dataclasses
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lawdnet import __version__
from lawdnet.models.discriminator import Discriminator
from lawdnet.models.generator import Generator
from lawdnet.models.saved import META, STATE, read_state
from lawdnet.models.syncnet import SyncNet
from lawdnet.training.config import TrainConfig
from lawdnet.training.stages import NAMES, Stage
from lawdnet.training.steps import Step


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Where a stage's data and first weights come from, and what inference must know of them."""

    dataset_hash: str
    crop_width: int
    landmarks: str
    features: dict[str, dict[str, Any]]
    """Extractor name → {dim, …} as the dataset says."""
    parent: str | None = None
    """Checkpoint folder, relative to the run."""
    parent_hash: str | None = None


def _random_states() -> dict[str, Any]:
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    version, internal, normal = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "python": [version, list(internal), normal],
    }


def _restore_random(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"][: torch.cuda.device_count()])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, internal, normal = states["python"]
    random.setstate((version, tuple(internal), normal))


def save(
    folder: Path,
    step: Step,
    stage: Stage,
    config: TrainConfig,
    lineage: Lineage,
    *,
    epoch: int,
    next_step: int = 0,
) -> None:
    """Writes state.pt and meta.json.

    Args:
        epoch: epochs that are complete.
        next_step: first step of the following epoch that is not yet done.
    """
    torch.save(
        {
            "networks": {name: network.state_dict() for name, network in step.networks.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in step.optimizers.items()},
            "random": _random_states(),
            "position": {"epoch": epoch, "step": next_step},
        },
        folder / STATE,
    )
    shapes = {name: dataclasses.asdict(network.config)
              for name, network in step.networks.items() if isinstance(network, Generator | SyncNet)}  # fmt: skip
    meta = {
        "stage": stage.name,
        "kind": stage.kind,
        "stage_index": NAMES.index(stage.name),
        "epoch": epoch,
        "epochs": stage.epochs,
        "mouth_px": stage.mouth_px,
        "audio_feature": config.audio_feature,
        "sync_feature": config.sync_feature,
        "code_version": __version__,
        "state_bytes": (folder / STATE).stat().st_size,
        **dataclasses.asdict(lineage),
        **shapes,
        "config": config.to_dict(),
    }
    (folder / META).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf8")


def resume(folder: Path, step: Step) -> tuple[int, int]:
    """Puts a saved state back into a step; returns (complete epochs, next step of the epoch that follows)."""
    state = read_state(folder)
    for name, network in step.networks.items():
        network.load_state_dict(state["networks"][name])
    for name, optimizer in step.optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
    _restore_random(state["random"])
    return int(state["position"]["epoch"]), int(state["position"]["step"])


def start_from(folder: Path, step: Step) -> None:
    """Takes the networks that a parent stage shares with this one.

    The generator always fits; a discriminator only where the stages' crops leave it the same number of blocks.
    """
    state = read_state(folder)["networks"]
    for name, network in step.networks.items():
        if name not in state:
            continue
        if isinstance(network, Discriminator) and not _same_shapes(network.state_dict(), state[name]):
            continue
        network.load_state_dict(state[name])


def _same_shapes(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
