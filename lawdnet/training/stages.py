"""The stages as rows of numbers, and the presets that bring them: `full`, `published`, and `small` for a laptop.

The number in a stage's name is the side of its mouth square in pixels; `published` alone keeps LawDNet's own names.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights of the generator's losses; 0 switches a loss off."""

    pixel: float = 1.0
    """Mean squared error over the image (LawDNet 2024), or mean absolute error with `pixel_loss=l1`."""
    mouth: float = 0.0
    """Mean absolute error inside the masked rectangle."""
    perceptual: float = 10.0
    """VGG19 features; needs `perceptual_weights`."""
    gan: float = 1.0
    """Image discriminator (LSGAN)."""
    clip_gan: float = 0.0
    """Discriminator over five frames (LSGAN)."""
    sync: float = 0.0
    """Squared distance of the sync network's score from that of true pairs (from 1 without a `sync_ramp`)."""
    lips: float = 0.0
    """Squared error of the lips' shape that a linear layer reads off the audio feature. It teaches the audio encoder
    what to listen for: with many faces, an image is explained by the face long before by the audio, and a generator
    that learns from images alone draws a mouth that does not move."""
    read: float = 0.0
    """Distance between the lips that a small network reads in the generated and in the true image. It learns to read
    meanwhile, from true images and their landmarks. Errors of pixels make blurred mouths that move too little."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One row: everything that differs between stages."""

    name: str
    kind: Literal["gan", "syncnet"] = "gan"
    mouth_px: int
    """Side of the mouth square in px; crops are 13/8 as high and 5/4 as wide."""
    num_frames: int = 1
    init_from: str | None = None
    """Stage from whose generator this one starts."""
    batch_size: int
    """Samples of a micro-batch."""
    samples_per_segment: int
    """Samples drawn from each segment in an epoch."""
    epochs_constant: int
    epochs_decay: int
    lr: float = 1e-4
    warmup_steps: int = 0
    """Optimiser steps in which the rate rises linearly to `lr`. Adam's first steps are of full length whatever the
    gradient; at a high rate they can drive the warp's parameters into saturation, from where the generator never learns
    to listen."""
    accumulate: int = 1
    """Micro-batches of each virtual rank in one optimiser step."""
    global_batch: int = 0
    """Samples per optimiser step for which `lr` is meant. It sets the number of virtual ranks, and `accumulate` is
    ignored. 0: each worker adds its own samples."""
    weights: Weights = field(default_factory=Weights)

    def __post_init__(self) -> None:
        if self.mouth_px < 32 or self.mouth_px % 32:
            raise ValueError(f"{self.name}.mouth_px: must be a multiple of 32, not {self.mouth_px}")
        if self.num_frames not in (1, 5):
            raise ValueError(f"{self.name}.num_frames: must be 1 or 5, not {self.num_frames}")
        for name in ("batch_size", "samples_per_segment", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{self.name}.{name}: must be at least 1")
        if self.warmup_steps < 0:
            raise ValueError(f"{self.name}.warmup_steps: must be 0 (none) or positive")
        if self.global_batch < 0:
            raise ValueError(f"{self.name}.global_batch: must be 0 (each worker adds its own samples) or positive")
        if min(self.epochs_constant, self.epochs_decay) < 0 or not self.epochs:
            raise ValueError(f"{self.name}: epochs_constant + epochs_decay must be at least 1")
        if self.num_frames == 1 and (self.kind == "syncnet" or self.weights.clip_gan or self.weights.sync):
            raise ValueError(f"{self.name}.num_frames: must be 5 for the sync network, clip_gan or sync")
        if not self.lr > 0:
            raise ValueError(f"{self.name}.lr: must be positive")

    @property
    def epochs(self) -> int:
        """Number of epochs of the stage."""
        return self.epochs_constant + self.epochs_decay

    def lr_factor(self, epoch: int) -> float:
        """Factor of `lr` in an epoch (from 0): 1 while constant, then linearly towards 0, and never negative."""
        return max(0.0, 1.0 - max(0, epoch + 1 - self.epochs_constant) / (self.epochs_decay + 1))

    def warmup_factor(self, step: int) -> float:
        """Factor of `lr` in an optimiser step of the stage (from 0): rises linearly to 1, which it then stays."""
        return min(1.0, (step + 1) / (self.warmup_steps + 1))


def micro_batches(stage: Stage, world: int) -> int:
    """Number of micro-batches that each of `world` ranks adds to an optimiser step.

    It is the stage's `accumulate`; with `global_batch`, the number that comes closest to it.
    """
    if not stage.global_batch:
        return stage.accumulate
    return max(1, round(stage.global_batch / (stage.batch_size * world)))


def scaled_lr(stage: Stage, world: int, accumulate: int) -> float:
    """The learning rate for the number of samples that an optimiser step really takes.

    If the ranks cannot make up `global_batch` exactly, the rate is scaled in proportion (linear scaling, Goyal et al.
    2017, arXiv 1706.02677); without a `global_batch` it is the stage's.
    """
    if not stage.global_batch:
        return stage.lr
    return stage.lr * (stage.batch_size * world * accumulate) / stage.global_batch


_CLIP = Weights(clip_gan=1.0, sync=0.1)

# The published system does not train its sync network. 256 faces per step: 128 stay at chance (LatentSync).
PUBLISHED = (
    Stage(name="syncnet", kind="syncnet", mouth_px=256, num_frames=5, batch_size=16, samples_per_segment=32,
          epochs_constant=20, epochs_decay=20, accumulate=16),
    Stage(name="frame_64", mouth_px=64, batch_size=16, samples_per_segment=32, epochs_constant=5, epochs_decay=5),
    Stage(name="frame_128", mouth_px=128, init_from="frame_64", batch_size=8, samples_per_segment=100,
          epochs_constant=5, epochs_decay=5),
    Stage(name="frame_256", mouth_px=256, init_from="frame_128", batch_size=4, samples_per_segment=20,
          epochs_constant=5, epochs_decay=5),
    Stage(name="clip_256", mouth_px=288, num_frames=5, init_from="frame_256", batch_size=1, samples_per_segment=3,
          epochs_constant=85, epochs_decay=85, weights=_CLIP),
)  # fmt: skip
"""LawDNet 2024's own numbers and names, kept for parity: its `clip_256` runs at 288 px."""

_FRAME = Weights(lips=1.0)

FULL = (
    replace(PUBLISHED[0], global_batch=256, warmup_steps=500),
    replace(PUBLISHED[1], warmup_steps=500, weights=_FRAME),
    replace(PUBLISHED[2], warmup_steps=200, lr=7e-5, weights=_FRAME),
    replace(PUBLISHED[3], warmup_steps=200, lr=5e-5, weights=_FRAME),
    replace(PUBLISHED[4], warmup_steps=200, lr=2e-5, weights=replace(_CLIP, lips=1.0), name="clip_288"),
)
"""The published sizes under names that tell them, with a warm-up, a rate that falls from stage to stage (at the rate of
the first stage, fresh optimisers wreck a finished generator, docs/training.md), and the lips' loss. Not tested on a
GPU."""

# Without VGG19 weights, absolute errors replace the perceptual loss, most of all in the hidden region.
_SMALL = Weights(pixel=3.0, mouth=10.0, perceptual=0.0, gan=0.1, lips=1.0, read=0.1)

SMALL = (
    Stage(name="syncnet", kind="syncnet", mouth_px=32, num_frames=5, batch_size=96, samples_per_segment=144,
          epochs_constant=3, epochs_decay=2, lr=1e-3, warmup_steps=30),
    Stage(name="frame_32", mouth_px=32, batch_size=4, samples_per_segment=40, epochs_constant=4, epochs_decay=3,
          lr=1e-3, warmup_steps=100, weights=_SMALL),
    Stage(name="frame_64", mouth_px=64, init_from="frame_32", batch_size=16, samples_per_segment=32,
          epochs_constant=1, epochs_decay=2, lr=7e-4, warmup_steps=10, weights=_SMALL),
    Stage(name="frame_96", mouth_px=96, init_from="frame_64", batch_size=8, samples_per_segment=10,
          epochs_constant=1, epochs_decay=1, lr=5e-4, warmup_steps=10, weights=_SMALL),
    Stage(name="clip_96", mouth_px=96, num_frames=5, init_from="frame_96", batch_size=2, samples_per_segment=2,
          epochs_constant=1, epochs_decay=0, lr=2e-4, warmup_steps=10,
          weights=replace(_SMALL, clip_gan=0.1, sync=0.1)),
)  # fmt: skip
"""Trains on a laptop in minutes."""

PRESETS = {"full": FULL, "published": PUBLISHED, "small": SMALL}
