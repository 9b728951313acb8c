"""A small network and a drawn head for live sessions, and a clock that needs no time."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import torch

from lawdnet.inference.engine import Engine
from lawdnet.inference.template import Template
from lawdnet.landmarks.openface import OpenFace
from lawdnet.models.generator import Generator, GeneratorConfig
from lawdnet.synthetic import write_talking_head
from lawdnet.types import Float32
from tests.support.tiny_checkpoints import checkpoint

MOUTH_PX = 32
TICKS = 12
"""Length of the template: short, so that it turns around in a test."""


def make_engine(folder: Path) -> Engine:
    """Return an engine with an untrained network that listens."""
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(audio_dim=320, base_channels=8, warp_grid=8))
    torch.nn.init.normal_(generator.warp.similarity.weight)  # zero at first, so that the audio would change nothing
    meta = {"stage": "frame_32", "stage_index": 0, "mouth_px": MOUTH_PX, "crop_width": 80}
    path = checkpoint(folder / "epoch_0001", meta=meta | {"features": {"mel": {"dim": 320}}}, generator=generator)
    return Engine(path, device="cpu")


def make_template(folder: Path, engine: Engine, ticks: int = TICKS) -> Template:
    """Return a drawn head of 160×128 px."""
    path = folder / "head.mp4"
    write_talking_head(path, identity=1, motion=2, speech=3, seconds=ticks / 25, size=(160, 128))
    return engine.prepare(path, OpenFace())


def noise(frames: float, seed: int = 1, rate: int = 16_000) -> Float32:
    """Return loud noise whose loudness varies."""
    count = round(frames * rate / 25)
    loud = 0.2 + 0.2 * np.sin(np.arange(count) * 40 / rate)
    return (loud * np.random.default_rng(seed).standard_normal(count)).clip(-1, 1).astype(np.float32)


class FakeClock:
    """Time passes only by waiting, and by `delay` seconds at every wait (a receiver that is late)."""

    def __init__(self) -> None:
        self.time = 0.0
        self.delay = 0.0

    def now(self) -> float:
        """Return seconds."""
        return self.time

    def wait(self, until: float, stop: threading.Event) -> None:
        """Let time pass."""
        self.time = max(self.time, until) + self.delay
