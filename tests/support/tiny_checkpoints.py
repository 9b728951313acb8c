"""Checkpoints of untrained networks, as training writes them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from lawdnet.models.discriminator import Discriminator
from lawdnet.models.saved import META, STATE


def checkpoint(folder: Path, kind: str = "gan", /, *, meta: dict[str, Any] | None = None, **networks: Any) -> Path:
    """Write a checkpoint's folder.

    Args:
        meta: entries of meta.json that differ from the usual.
        networks: networks by the names under which they are saved.
    """
    config = {name: dataclasses.asdict(n.config) for name, n in networks.items() if not isinstance(n, Discriminator)}
    usual = {
        "kind": kind,
        "stage": "syncnet" if kind == "syncnet" else "clip_96",
        "stage_index": 4,
        "epoch": 12,
        "mouth_px": 96,
        "crop_width": 200,
        "audio_feature": "mel",
        "sync_feature": "mel",
        "code_version": "1",
        "features": {"mel": {"dim": 7}, "other": {"dim": 3}},
    }
    folder.mkdir(parents=True)
    torch.save({"networks": {name: network.state_dict() for name, network in networks.items()}}, folder / STATE)
    size = {"state_bytes": (folder / STATE).stat().st_size}
    (folder / META).write_text(json.dumps(usual | size | config | (meta or {})))
    return folder
