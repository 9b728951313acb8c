"""Read and write files of the published code (LawDNet 2024), translating its parameter names.

A file is `{"epoch", "state_dict": {"net_g", "net_dI"[, "net_dV"]}, …}`; that of a sync network is `{"state_dict":
{"net"}}`. Keys start with `module.` if it was trained on several GPUs. A file also holds tensors that no output depends
on ("dead" here): warp layer 0 and its appearance blocks, whose result layer 1 overwrites, and the BatchNorm of the
audio encoder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lawdnet.models.discriminator import Discriminator, DiscriminatorConfig
from lawdnet.models.generator import Generator, GeneratorConfig
from lawdnet.models.layers import ConvLeakyReLU2d, ConvReLU1d, ConvReLU2d
from lawdnet.models.syncnet import SCORE_PX, SyncNet, SyncNetConfig

State = dict[str, Tensor]
N = TypeVar("N", bound=nn.Module)

NOTES = "lawdnet"
"""Key of the notes in files that we wrote (`lawdnet.models.export`); the published code ignores it."""
MOUTH_PX = {"frame": 256, "clip": 288}
"""Mouth size of the published frame and clip generators, which their files do not tell."""

_GENERATOR = {
    "source_encoder": "source_in_conv",
    "reference_encoder": "ref_in_conv",
    "pair_encoder": "trans_conv",
    "audio_encoder": "audio_encoder",
    "attention.position_picture": "cross_attention.positional_encoding_video",
    "attention.position_audio": "cross_attention.positional_encoding_audio",
    "attention.query": "cross_attention.query_proj",
    "attention.key": "cross_attention.key_proj",
    "attention.value": "cross_attention.value_proj",
    "attention.mix": "cross_attention.final_linear",
    "attention.squeeze": "cross_attention.output_reshape.conv1",
    "attention.code": "cross_attention.output_reshape.fc",
    "appearance": "appearance_conv_list.1",
    "warp.trunk": "lawLayer_list.1.commn_linear.0",
    "warp.key_points": "lawLayer_list.1.kpoints_normalized_layer.0",
    "warp.similarity": "lawLayer_list.1.similarity_params_layer.0",
    "warp.radius": "lawLayer_list.1.radius_layer.0",
    "decoder": "out_conv",
}
DISCRIMINATORS = {"image_discriminator": "net_dI", "clip_discriminator": "net_dV"}
"""Our name of a discriminator → the published one."""
_DISCRIMINATOR = {"blocks": "down_blocks", "score": "conv"}
_SYNCNET = {
    "face_encoder": "face_encoder.face_conv",
    "audio_encoder": "audio_encoder.audio_conv",
    "merge": "merge_encoder",
}
_DEAD_LAYER = re.compile(r"(?P<list>lawLayer_list|appearance_conv_list)\.0\.")
_DEAD_NORM = re.compile(r"audio_encoder\.\d+\.norm\d\.")


def read_legacy(path: Path) -> dict[str, State]:
    """Read the networks of a published file.

    Returns:
        `net_g`, `net_dI`, `net_dV` or `net` → published parameter name → tensor.

    Raises:
        ValueError: the file is missing, of another kind, or holds more than tensors and plain containers.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[dict[str, State], dict[str, Any]]:
    """Return the networks, and the notes if we wrote the file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file can provoke any
        raise ValueError(f"{path}: not a checkpoint of only tensors and plain containers, so it is refused") from error
    networks = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(networks, dict) or not networks or not all(map(_is_state, networks.values())):
        raise ValueError(f"{path}: not a LawDNet 2024 checkpoint: it has no networks under 'state_dict'")
    states = {
        name: {key.removeprefix("module."): value for key, value in state.items()} for name, state in networks.items()
    }
    notes = content.get(NOTES)
    return states, notes if isinstance(notes, dict) else {}


def load_legacy_generator(path: Path) -> tuple[Generator, dict[str, Any]]:
    """Load the generator of a published file in evaluation mode, and what is known about it.

    Returns:
        The generator, and a dict with mouth_px, crop_width (px) and audio_feature. A published file does not tell them,
        so it is assumed to be trained with DeepSpeech at the published sizes and with the published warp; a file that
        we wrote has its own values.

    Raises:
        ValueError: as `read_legacy` and `generator_from_legacy`, or the file has no generator.
    """
    networks, notes = _read(path)
    if "net_g" not in networks:
        raise ValueError(f"{path}: holds {', '.join(networks)} but no generator (net_g)")
    mouth_px = MOUTH_PX["clip" if "net_dV" in networks else "frame"]
    known = {"mouth_px": mouth_px, "crop_width": mouth_px * 5 // 4, "audio_feature": "deepspeech"}
    layout = {key: notes[key] for key in ("warp_layout", "warp_grid", "normalise") if key in notes}
    return generator_from_legacy(networks["net_g"], **layout).eval(), known | notes


def start_from_legacy(path: Path, networks: Mapping[str, nn.Module]) -> list[str]:
    """Load the networks of a published file into the networks to train, for fine-tuning.

    Args:
        path: the file.
        networks: `generator`, and `image_discriminator` and `clip_discriminator` if there are any. The generator must
            have the configuration of the file, including the warp; a discriminator of another shape keeps its own
            weights.

    Returns:
        The names of the networks that were loaded.

    Raises:
        ValueError: as `load_legacy_generator`, or the generators differ; the message says how.
    """
    theirs, _ = load_legacy_generator(path)
    ours = networks["generator"]
    assert isinstance(ours, Generator)
    wanted = vars(ours.config)
    found = vars(theirs.config)
    if other := [f"{key} {found[key]} (this run {wanted[key]})" for key in found if found[key] != wanted[key]]:
        raise ValueError(f"{path}: its generator differs from that of this run: {', '.join(other)}")
    ours.load_state_dict(theirs.state_dict())
    loaded = ["generator"]
    states = read_legacy(path)
    for name in (name for name, published in DISCRIMINATORS.items() if name in networks and states.get(published)):
        critic = discriminator_from_legacy(states[DISCRIMINATORS[name]])
        if critic.config == networks[name].config:
            networks[name].load_state_dict(critic.state_dict())
            loaded.append(name)
    return loaded


def generator_from_legacy(
    state: State, *, warp_layout: str = "lawdnet2024", warp_grid: int = 60, normalise: bool = False
) -> Generator:
    """Create a generator from published names; its sizes follow from the tensors, except the warp's grid.

    Raises:
        ValueError: tensors are missing, unknown or of the wrong shape.
    """
    config = GeneratorConfig(
        audio_dim=_size(state, "audio_encoder.0.conv.weight", 1),
        base_channels=_size(state, "source_in_conv.0.conv.weight", 0),
        key_points=_size(state, "lawLayer_list.1.radius_layer.0.bias", 0)
        // _size(state, "lawLayer_list.1.commn_linear.0.bias", 0),
        warp_grid=warp_grid,
        warp_layout=warp_layout,
        normalise=normalise,
    )
    alive = {key: value for key, value in state.items() if key not in dead_tensors(state)}
    return _load(Generator(config), alive, _GENERATOR)


def dead_tensors(state: State) -> State:
    """Return the tensors of a published generator that no output depends on."""
    return {key: value for key, value in state.items() if _DEAD_LAYER.match(key) or _DEAD_NORM.match(key)}


def generator_to_legacy(generator: Generator, dead: State | None = None) -> State:
    """Return the generator's state under published names, with dead tensors: the given ones, or copies and identities.

    The published code computes the same only for a generator with `warp_layout="lawdnet2024"`.
    """
    state = _rename(generator, _GENERATOR)
    return state | (_default_dead(state) if dead is None else dead)


def discriminator_from_legacy(state: State) -> Discriminator:
    """Create an image or clip discriminator from published names.

    Raises:
        ValueError: as `generator_from_legacy`.
    """
    return _load(Discriminator(discriminator_config(state, "down_blocks.{}.conv")), state, _DISCRIMINATOR)


def discriminator_config(state: State, block: str) -> DiscriminatorConfig:
    """Return the configuration of a discriminator, from its tensors.

    Args:
        state: its parameters.
        block: name of the convolution of block {} in the state.

    Raises:
        ValueError: the state is not that of a discriminator.
    """
    widths: list[int] = []
    while (bias := f"{block.format(len(widths))}.bias") in state:
        widths.append(_size(state, bias, 0))
    if not widths:
        raise ValueError(f"{bias}: missing; this is not a discriminator's state")
    return DiscriminatorConfig(
        in_channels=_size(state, f"{block.format(0)}.weight", 1),
        blocks=len(widths),
        expansion=widths[0] // 2,
        max_channels=max(widths),
    )


def discriminator_to_legacy(discriminator: Discriminator) -> State:
    """Return the discriminator's state under published names."""
    return _rename(discriminator, _DISCRIMINATOR)


def syncnet_from_legacy(state: State) -> SyncNet:
    """Create a sync network from published names.

    Raises:
        ValueError: as `generator_from_legacy`.
    """
    halvings = _count(state, r"face_encoder\.face_conv\.\d+\.conv1\.bias")
    config = SyncNetConfig(
        audio_dim=_size(state, "audio_encoder.audio_conv.0.conv.weight", 1),
        base_channels=_size(state, "face_encoder.face_conv.0.conv.bias", 0),
        face_px=SCORE_PX * 2**halvings,
    )
    return _load(SyncNet(config), state, _SYNCNET)


def syncnet_to_legacy(syncnet: SyncNet) -> State:
    """Return the sync network's state under published names."""
    return _rename(syncnet, _SYNCNET)


def _published_names(network: nn.Module, prefixes: dict[str, str]) -> dict[str, str]:
    """Return our parameter name → the published one, in which the convolution of a block is one level deeper."""
    modules = dict(network.named_modules())
    names = {}
    for ours in network.state_dict():
        prefix = next(p for p in prefixes if ours == p or ours.startswith(p + "."))
        module, _, leaf = ours.rpartition(".")
        is_block = isinstance(modules[module], ConvReLU1d | ConvReLU2d | ConvLeakyReLU2d)
        suffix = f".conv.{leaf}" if is_block else f".{leaf}"
        names[ours] = prefixes[prefix] + (module.removeprefix(prefix) + suffix if ours != prefix else "")
    return names


def _rename(network: nn.Module, prefixes: dict[str, str]) -> State:
    names = _published_names(network, prefixes)
    return {names[key]: value for key, value in network.state_dict().items()}


def _load(network: N, state: State, prefixes: dict[str, str]) -> N:
    names = {published: ours for ours, published in _published_names(network, prefixes).items()}
    ours = network.state_dict()
    for published in sorted(names.keys() | state.keys()):
        if published not in state or published not in names:
            raise ValueError(f"{published}: {'unknown' if published in state else 'missing'} in a published state")
        got = tuple(state[published].shape)
        wanted = tuple(ours[names[published]].shape)
        if got != wanted:
            raise ValueError(f"{published}: shape {got}, expected {wanted}")
    network.load_state_dict({names[published]: value for published, value in state.items()})
    return network


def _default_dead(state: State) -> State:
    """Return copies of the live layer, and norms that change nothing."""
    dead = {re.sub(r"(_list)\.1\.", r"\1.0.", key): value.clone() for key, value in state.items() if "_list.1." in key}
    for key, bias in state.items():
        if conv := re.fullmatch(r"(audio_encoder\.\d+)\.conv([12])\.bias", key):
            dead |= nn.BatchNorm1d(len(bias)).state_dict(prefix=f"{conv[1]}.norm{conv[2]}.")
    return dead


def _is_state(state: object) -> bool:
    return isinstance(state, dict) and all(isinstance(key, str) and isinstance(state[key], Tensor) for key in state)


def _size(state: State, name: str, axis: int) -> int:
    if name not in state or state[name].ndim <= axis:
        raise ValueError(f"{name}: missing in a published state")
    return state[name].shape[axis]


def _count(state: State, pattern: str) -> int:
    return sum(re.fullmatch(pattern, key) is not None for key in state)
