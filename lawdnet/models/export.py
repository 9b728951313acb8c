"""Export a checkpoint to a file of the published code (LawDNet 2024), and tell where that code differs.

The file also holds notes under a key that the published code ignores, so that `lawdnet infer` and `lawdnet train
--init` can read it back correctly.
"""

from __future__ import annotations

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
from lawdnet.storage import Location

PUBLISHED = GeneratorConfig(warp_layout="lawdnet2024")
LEARNING_RATE = 1e-4
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def to_legacy(folder: Location, *, prefix: str = "module.") -> dict[str, Any]:
    """Return the content of a published file, ready for `torch.save`.

    Args:
        folder: a checkpoint.
        prefix: start of every parameter name. The published code writes `module.`, and its inference removes the first
            seven characters, whatever they are.

    Returns:
        epoch (the next one, as published), state_dict, optimizer (a new one, because theirs has parameters that ours
        lacks), and notes. For a sync network, state_dict has only `net`, and there is no optimizer.

    Raises:
        ValueError: not a checkpoint, or a sync network with a head that the published code does not have.
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
    layout = {name: getattr(generator.config, name) for name in ("warp_layout", "warp_grid", "normalise")}
    features = {name: known for name, known in meta["features"].items() if name == meta["audio_feature"]}
    return {
        "epoch": meta["epoch"] + 1,
        "state_dict": {name: _prefixed(state, prefix) for name, state in states.items()},
        "optimizer": {name: _fresh_optimizer(state) for name, state in states.items()},
        NOTES: notes | layout | {"features": features},
    }


def incompatibilities(folder: Location) -> list[str]:
    """Return why the published code cannot use this checkpoint as it is, one sentence per reason."""
    meta = read_meta(folder)
    if meta["kind"] == "syncnet":
        return []
    config = GeneratorConfig(**meta["generator"])
    found = []
    if config.warp_layout != PUBLISHED.warp_layout:
        found.append(
            "its warp reads the field in the correct order, while the published code scrambles it and would generate "
            "garbage with these weights (to repair models/LawDNet.py, delete `.transpose(-1,-2)` where the averaged "
            "grid is permuted; a border of some pixels still differs slightly)"
        )
    if config.normalise:
        found.append(
            "it normalises what decides the warp, which the published code does not (train with normalise=false)"
        )
    if config.audio_dim != PUBLISHED.audio_dim:
        found.append(
            f"it takes {config.audio_dim} values of {meta['audio_feature']} per frame, and the published code gives it "
            f"{PUBLISHED.audio_dim} of DeepSpeech"
        )
    if config.base_channels != PUBLISHED.base_channels:
        found.append(
            f"its first layer has {config.base_channels} channels, and that of the published code has "
            f"{PUBLISHED.base_channels}"
        )
    return found


def options(folder: Location) -> list[str]:
    """Return the options that the published code needs for this generator, if they are not its defaults."""
    meta = read_meta(folder)
    if meta["kind"] == "syncnet":
        return []
    config = GeneratorConfig(**meta["generator"])
    wanted = {
        "num_kpoints": (config.key_points, PUBLISHED.key_points),
        "coarse_grid_size": (config.warp_grid, PUBLISHED.warp_grid),
    }
    return [f"--{name} {ours}" for name, (ours, theirs) in wanted.items() if ours != theirs]


def _syncnet(folder: Location) -> State:
    syncnet = load_syncnet(folder)
    if syncnet.config.head != "merge":
        raise ValueError(
            f"{folder}: the published code has no {syncnet.config.head!r} head for its sync network, so this one "
            "cannot be exported; export a generator stage"
        )
    return syncnet_to_legacy(syncnet)


def _prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def _fresh_optimizer(state: State) -> dict[str, Any]:
    parameters = [nn.Parameter(torch.empty(0)) for name in state if not name.endswith(BUFFERS)]
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE).state_dict()
