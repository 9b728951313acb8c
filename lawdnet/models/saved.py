"""Checkpoints as folders: find them in a run, read them, and load networks from them.

RUN/run.json                          configuration, dataset, lineage
RUN/STAGE/epoch_0003/state.pt         after three epochs: tensors and plain containers only
RUN/STAGE/epoch_0003/meta.json        what the tensors are
RUN/STAGE/epoch_0003_step_000200/     during the fourth epoch
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from lawdnet.models.generator import Generator, GeneratorConfig
from lawdnet.models.syncnet import SyncNet, SyncNetConfig
from lawdnet.storage import Location, sha256

log = logging.getLogger(__name__)

STATE = "state.pt"
META = "meta.json"
RUN = "run.json"

_KINDS = {"gan": "generator", "syncnet": "sync network"}


def read_meta(folder: Location) -> dict[str, Any]:
    """Read the metadata of a checkpoint.

    Raises:
        ValueError: the folder is not a checkpoint, or a damaged one.
    """
    try:
        meta: dict[str, Any] = json.loads((folder / META).read_text(encoding="utf8"))
    except FileNotFoundError:
        raise ValueError(f"{folder}: not a checkpoint ({META} is missing)") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder / META}: damaged ({error})") from None
    return meta


def read_state(folder: Location) -> dict[str, Any]:
    """Read the tensors and plain containers of a checkpoint.

    Raises:
        ValueError: the file is missing or damaged, or would execute code.
    """
    try:
        with (folder / STATE).open("rb") as file:
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{folder}: not a checkpoint ({STATE} is missing)") from None
    except Exception as error:  # torch raises many kinds for a damaged file
        del error  # its advice is to switch off the protection, which nobody should do
        detail = "it is damaged, truncated, or holds more than tensors"
        hint = "delete this folder to resume from the checkpoint before it"
        raise ValueError(f"{folder / STATE}: cannot be read; {detail}; {hint}") from None
    return state


def checkpoint_name(epoch: int, next_step: int = 0) -> str:
    """Return the folder name of a checkpoint after `epoch` complete epochs; names sort by age."""
    return f"epoch_{epoch:04d}" + (f"_step_{next_step:06d}" if next_step else "")


def state_hash(folder: Location) -> str:
    """Return the SHA-256 of a checkpoint's tensors, by which later stages identify their parent."""
    return sha256(folder / STATE)


def newest_good(stage_folder: Location) -> Location | None:
    """Return the newest checkpoint of a stage that is not damaged, or None; a warning names each damaged one."""
    for folder in reversed(_by_name(stage_folder.glob("epoch_*"))):
        try:
            wanted = read_meta(folder).get("state_sha256")  # older checkpoints have only the size
            if _is_complete(folder) if wanted is None else wanted == state_hash(folder):
                return folder
            reason = f"{STATE} has changed since it was saved"
        except (ValueError, KeyError, OSError) as error:
            reason = str(error)
        log.warning("%s: damaged (%s); going back to the checkpoint before it", folder, reason)
    return None


def stage_checkpoints(stage_folder: Location) -> list[Location]:
    """Return the complete checkpoints of a stage, oldest first."""
    return [folder for folder in _by_name(stage_folder.glob("epoch_*")) if _is_complete(folder)]


def _by_name(folders: Iterable[Location]) -> list[Location]:
    return sorted(folders, key=str)


def _is_complete(folder: Location) -> bool:
    """Whether all of a checkpoint was written: it is copied file by file, which a kill may interrupt."""
    try:
        return bool(read_meta(folder)["state_bytes"] == (folder / STATE).stat().st_size)
    except (ValueError, KeyError, OSError):
        return False


def find_checkpoint(path: Location, kind: str = "gan") -> Location:
    """Find the checkpoint that a path means.

    Args:
        path: a checkpoint, a stage (its newest checkpoint is taken) or a run (the newest of its last stage).
        kind: `gan` or `syncnet`; stages of the other kind are skipped.

    Raises:
        ValueError: there is none; the message says what was searched.
    """
    if (path / META).is_file():
        return path
    if not path.exists():
        raise ValueError(f"{path}: no such run or checkpoint")
    folders = stage_checkpoints(path) or [c for stage in _by_name(path.iterdir()) for c in stage_checkpoints(stage)]
    metas = [(folder, read_meta(folder)) for folder in folders]
    found = [(meta["stage_index"], meta["epoch"], folder) for folder, meta in metas if meta["kind"] == kind]
    if not found:
        raise ValueError(f"{path}: no {_KINDS[kind]} checkpoint here or one folder down; train with `lawdnet train`")
    return max(found)[2]


def load_generator(folder: Location) -> tuple[Generator, dict[str, Any]]:
    """Load the generator of a checkpoint in evaluation mode, and the checkpoint's metadata."""
    meta = read_meta(folder)
    generator = Generator(GeneratorConfig(**meta["generator"]))
    _load(generator, generator_weights, folder)
    return generator.eval(), meta


def generator_weights(state: dict[str, Any]) -> dict[str, Any]:
    """Return the generator's weights from a checkpoint's state: their running mean if there is one."""
    averaged = state.get("parts", {}).get("ema")
    weights: dict[str, Any] = averaged["network"] if averaged else state["networks"]["generator"]
    return weights


def load_syncnet(folder: Location) -> SyncNet:
    """Load the sync network of a checkpoint in evaluation mode."""
    syncnet = SyncNet(SyncNetConfig(**read_meta(folder)["syncnet"]))
    _load(syncnet, lambda state: state["networks"]["syncnet"], folder)
    return syncnet.eval()


def _load(network: nn.Module, weights: Callable[[dict[str, Any]], dict[str, Any]], folder: Location) -> None:
    state = read_state(folder)
    try:
        network.load_state_dict(weights(state))
    except (KeyError, RuntimeError) as error:
        kind = type(network).__name__.lower()
        raise ValueError(f"{folder}: the {kind} does not match its {META} ({error})") from None
