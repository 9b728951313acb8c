"""A checkpoint of ours as a file of the published code (LawDNet 2024), and why that code may not do with it.

The file also holds notes under a key that the published code does not look at, so that `lawdnet infer` and
`lawdnet train --init` read it back as what it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lawdnet.models.discriminator import Discriminator
from lawdnet.models.generator import GeneratorConfig
from lawdnet.models.legacy import (
    DISCRIMINATORS,
    NOTES,
    State,
    discriminator_config,
    discriminator_to_legacy,
    generator_to_legacy,
    syncnet_to_legacy,
)
from lawdnet.models.saved import load_generator, load_syncnet, read_meta, read_state

PUBLISHED = GeneratorConfig(warp_layout="lawdnet2024")
LEARNING_RATE = 1e-4
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def to_legacy(folder: Path, *, prefix: str = "module.") -> dict[str, Any]:
    """The content of a published file, ready for `torch.save`.

    Args:
        folder: a checkpoint.
        prefix: of every parameter's name. The published code writes `module.`, and its inference cuts the first seven
            characters off whatever they are.

    Returns:
        epoch (the next one, as published), state_dict, optimizer (fresh: theirs has parameters that ours has not), and
        notes. A sync network's has `net` and no optimizer.

    Raises:
        ValueError: no checkpoint, or a sync network with a head that the published code does not have.
    """
    meta = read_meta(folder)
    if meta["kind"] == "syncnet":
        return {"epoch": meta["epoch"] + 1, "state_dict": {"net": _prefixed(_syncnet(folder), prefix)}}
    generator, meta = load_generator(folder)
    states = {"net_g": generator_to_legacy(generator)}
    networks = read_state(folder)["networks"]
    for name, published in DISCRIMINATORS.items():
        if name in networks:
            critic = Discriminator(discriminator_config(networks[name], "blocks.{}"))
            critic.load_state_dict(networks[name])
            states[published] = discriminator_to_legacy(critic)
    notes = {name: meta[name] for name in ("stage", "mouth_px", "crop_width", "audio_feature", "code_version")}
    layout = {"warp_layout": generator.config.warp_layout, "warp_grid": generator.config.warp_grid}
    features = {name: known for name, known in meta["features"].items() if name == meta["audio_feature"]}
    return {
        "epoch": meta["epoch"] + 1,
        "state_dict": {name: _prefixed(state, prefix) for name, state in states.items()},
        "optimizer": {name: _fresh_optimizer(state) for name, state in states.items()},
        NOTES: notes | layout | {"features": features},
    }


def departures(folder: Path) -> list[str]:
    """What keeps the published code from using this checkpoint as it is, a sentence each; empty where nothing does."""
    meta = read_meta(folder)
    if meta["kind"] == "syncnet":
        return []
    config, found = GeneratorConfig(**meta["generator"]), []
    if config.warp_layout != PUBLISHED.warp_layout:
        found.append(
            "its warp reads the field in the right order, while the published code scrambles it and would draw garbage "
            "with these weights (models/LawDNet.py is repaired by deleting `.transpose(-1,-2)` where the averaged "
            "grid is permuted; a border of some pixels still differs slightly)"
        )
    if config.audio_dim != PUBLISHED.audio_dim:
        found.append(f"it hears {config.audio_dim} values of {meta['audio_feature']} a frame, the published code "
                     f"gives it {PUBLISHED.audio_dim} of DeepSpeech")  # fmt: skip
    if config.base_channels != PUBLISHED.base_channels:
        found.append(f"its first layer is {config.base_channels} wide, the published code builds one of "
                     f"{PUBLISHED.base_channels}")  # fmt: skip
    return found


def options(folder: Path) -> list[str]:
    """Options that the published code needs for this generator, where they are not its defaults."""
    meta = read_meta(folder)
    if meta["kind"] == "syncnet":
        return []
    config = GeneratorConfig(**meta["generator"])
    wanted = {"num_kpoints": (config.key_points, PUBLISHED.key_points),
              "coarse_grid_size": (config.warp_grid, PUBLISHED.warp_grid)}  # fmt: skip
    return [f"--{name} {ours}" for name, (ours, theirs) in wanted.items() if ours != theirs]


def _syncnet(folder: Path) -> State:
    syncnet = load_syncnet(folder)
    if syncnet.config.head != "merge":
        raise ValueError(f"{folder}: the {syncnet.config.head!r} head of this sync network is not in the published "
                         "code, and its file cannot hold it; only a generator stage can be exported")  # fmt: skip
    return syncnet_to_legacy(syncnet)


def _prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def _fresh_optimizer(state: State) -> dict[str, Any]:
    parameters = [nn.Parameter(torch.empty(0)) for name in state if not name.endswith(BUFFERS)]
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE).state_dict()
