"""A checkpoint of a small generator that listens."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch

from lawdnet.models.generator import Generator, GeneratorConfig

MOUTH_PX = 64


def save_listening(folder: Path, **changes: object) -> Path:
    """Save an untrained generator with mel at mouth 64. Args: changes: of its meta.json."""
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(audio_dim=320, base_channels=8, warp_grid=8))
    torch.nn.init.normal_(generator.warp.similarity.weight)  # zero at first, so that the audio would change nothing
    meta = {
        "kind": "gan",
        "stage_index": 0,
        "epoch": 1,
        "mouth_px": MOUTH_PX,
        "crop_width": 160,
        "audio_feature": "mel",
        "generator": dataclasses.asdict(generator.config),
        "features": {"mel": {"dim": 320}},
    }
    folder.mkdir(parents=True)
    torch.save({"networks": {"generator": generator.state_dict()}}, folder / "state.pt")
    meta["state_bytes"] = (folder / "state.pt").stat().st_size
    (folder / "meta.json").write_text(json.dumps(meta | changes))
    return folder
