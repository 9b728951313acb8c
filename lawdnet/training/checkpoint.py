"""The whole state of a stage in one folder, so that resuming gives the same weights as never having stopped."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from lawdnet import __version__
from lawdnet.models.generator import Generator
from lawdnet.models.lip_reader import LipReader
from lawdnet.models.saved import META, STATE, generator_weights, read_meta, read_state, state_hash
from lawdnet.models.syncnet import SyncNet
from lawdnet.training.config import TrainConfig
from lawdnet.training.ema import Ema
from lawdnet.training.position import Position
from lawdnet.training.stages import Stage
from lawdnet.training.steps import Step


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Where a stage's data and first weights come from, and what inference must know about the data."""

    dataset_hash: str
    crop_width: int
    landmarks: str
    features: dict[str, dict[str, Any]]
    """Extractor name → {dim, …}, as in dataset.json."""
    parent: str | None = None
    """Checkpoint folder that the stage started from, relative to the run."""
    parent_hash: str | None = None
    """SHA-256 of the parent's state."""
    syncnet_hash: str | None = None
    """SHA-256 of the sync network's state, if the stage has a sync loss."""


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


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state of a stage at a position, on the host: training may continue while it is written."""

    state: dict[str, Any]
    shapes: dict[str, Any]
    position: Position
    wait: Callable[[], None]
    """Returns when everything has come from the device."""


def snapshot(step: Step, position: Position) -> Snapshot:
    """Copy a stage's state to the host, which does not wait for the device."""
    state = {
        "networks": {name: network.state_dict() for name, network in step.networks.items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in step.optimizers.items()},
        "parts": {name: part.state_dict() for name, part in step.parts.items()},
        "random": _random_states(),
        "position": dataclasses.asdict(position),
    }
    copied, wait = _on_host(state), _nothing
    if torch.cuda.is_available():
        event = torch.cuda.Event()
        event.record()
        wait = event.synchronize
    shapes = {
        name: dataclasses.asdict(network.config)
        for name, network in step.networks.items()
        if isinstance(network, Generator | SyncNet)
    }
    return Snapshot(state=copied, shapes=shapes, position=position, wait=wait)


def _nothing() -> None:
    """All is there."""


def _on_host(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", non_blocking=True, copy=True)  # from a GPU into pinned memory
    if isinstance(value, Mapping):
        return {key: _on_host(one) for key, one in value.items()}
    return type(value)(map(_on_host, value)) if isinstance(value, list | tuple) else value


def save(folder: Path, step: Step, stage: Stage, config: TrainConfig, lineage: Lineage, *, position: Position) -> None:
    """Write state.pt and meta.json of a stage as it is."""
    write(folder, snapshot(step, position), stage, config, lineage)


def write(folder: Path, taken: Snapshot, stage: Stage, config: TrainConfig, lineage: Lineage) -> None:
    """Write state.pt and meta.json."""
    taken.wait()
    torch.save(taken.state, folder / STATE)
    position = taken.position
    meta = {
        "stage": stage.name,
        "kind": stage.kind,
        "stage_index": config.index(stage.name),
        "epoch": position.epoch,
        "next_step": position.step,
        "epochs": stage.epochs,
        "mouth_px": stage.mouth_px,
        "num_frames": stage.num_frames,
        "audio_feature": config.audio_feature,
        "sync_feature": config.sync_feature,
        "code_version": __version__,
        "state_bytes": (folder / STATE).stat().st_size,
        "state_sha256": state_hash(folder),
        **dataclasses.asdict(lineage),
        **taken.shapes,
        "config": config.to_dict(),
    }
    (folder / META).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf8")


def resume(folder: Path, step: Step) -> Position:
    """Restore a saved state; returns the position from which training continues."""
    state = read_state(folder)
    for name, network in step.networks.items():
        network.load_state_dict(state["networks"][name])
    for name, optimizer in step.optimizers.items():
        optimizer.load_state_dict(_as_here(state["optimizers"][name], optimizer))
    for name, part in step.parts.items():
        part.load_state_dict(state["parts"][name])
    _restore_random(state["random"])
    return Position(**state["position"])


def _as_here(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A saved optimiser for this one's device: how it computes is no part of what was learnt."""
    groups = zip(saved["param_groups"], optimizer.param_groups, strict=True)
    return saved | {"param_groups": [group | {"fused": now["fused"]} for group, now in groups]}


def start_from(folder: Path, step: Step) -> None:
    """Start a stage from its parent.

    It takes the generator as inference would load it, what reads lips, and if both stages generate single frames the
    discriminators whose shapes are the same. A clip stage takes no discriminator (LawDNet 2024): its image
    discriminator then starts together with the one for clips, so that neither outweighs the other from the first step.
    """
    state, frames = read_state(folder), read_meta(folder).get("num_frames", 1)
    for name, network in step.networks.items():
        keeps = step.stage.num_frames == frames == 1 or isinstance(network, LipReader)
        if isinstance(network, Generator):
            network.load_state_dict(generator_weights(state))
        elif keeps and _same_shapes(network, state["networks"].get(name, {})):
            network.load_state_dict(state["networks"][name])
    if "lip_head" in step.parts and "lip_head" in state["parts"]:
        step.parts["lip_head"].load_state_dict(state["parts"]["lip_head"])
    if "ema" in step.parts:
        cast("Ema", step.parts["ema"]).restart(step.networks["generator"])


def _same_shapes(network: nn.Module, weights: dict[str, torch.Tensor]) -> bool:
    return {k: v.shape for k, v in network.state_dict().items()} == {k: v.shape for k, v in weights.items()}
