"""The resolved configuration of a run: stages, networks, features and the few knobs they share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lawdnet.data.sampling import REFERENCES, SampleSpec
from lawdnet.models.warp import LAYOUTS
from lawdnet.settings import convert, parse_setting, unknown_key
from lawdnet.training.precision import DTYPES
from lawdnet.training.stages import PRESETS, Stage, Weights

_CHOICES = {
    "precision": ("auto", *DTYPES),
    "pixel_loss": ("l1", "l2"),
    "references": REFERENCES,
    "warp_layout": LAYOUTS,
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything besides the dataset that decides the weights of a run."""

    preset: str = "full"
    stages: tuple[Stage, ...]
    """The stages to train, in order."""
    seed: int = 456
    audio_feature: str = "mel"
    """Audio feature of the generator."""
    sync_feature: str = "mel"
    """Audio feature of the sync network."""
    base_channels: int = 64
    """Width of the generator's first layer; 64 is the published network."""
    sync_channels: int = 64
    disc_channels: int = 64
    disc_max_channels: int = 256
    key_points: int = 5
    warp_grid: int = 60
    warp_layout: str = "correct"
    """`lawdnet2024` for published weights, which were trained with a scrambled field."""
    normalise: bool = True
    """Normalise what decides the warp, without which it may never hear the audio; see `GeneratorConfig`. Off in
    `published`."""
    audio_from_lips: bool = False
    """Let the loss `lips` alone teach the audio encoder, where a stage has it, and not the images, but for those whose
    lips are not known. From a few people it learns their recordings by heart otherwise: what it hears of strangers gets
    worse again."""
    augment: bool = False
    """Whether samples of generator stages are mirrored and shown in other light."""
    audio_dropout: float = 0.0
    """Share of the audio feature's channels that are hidden from the loss `lips`, others for every frame; also against
    learning by heart."""
    perceptual_weights: str = ""
    """Path or URI of torchvision's VGG19 weights, which every stage with a perceptual loss needs."""
    pixel_loss: str = "l2"
    precision: str = "auto"
    """fp32, tf32, bf16, fp16 with a gradient scaler, or auto: bf16 on a GPU that has it, tf32 on others."""
    channels_last: bool | None = None
    """Store the channels of a pixel together, which suits tensor cores; on a GPU if not given."""
    compile: bool | None = None
    """Compile the warp with torch.compile, 16 s of one core at the first step; on a GPU if not given. If that fails,
    there is an alarm, and it runs uncompiled."""
    grad_clip: float = 2.0
    """Largest norm of a network's gradient, in multiples of its running mean; 0: no clipping."""
    ema_decay: float = 0.999
    """Decay of the running mean of the generator's weights, which validation and inference use; 0: no mean."""
    sync_windows: int = 8
    """Windows of each segment in a batch of the sync network, which contrasts them with each other."""
    mix_segments: int = 64
    """Segments whose samples are mixed into the same optimiser steps, shared by the virtual ranks, at least 8 each. A
    discriminator that sees few people at a time learns to know them. Each task that draws samples holds the JPEGs of
    its share: 6 MB a segment at a crop width of 320 px."""
    references: str = "random"
    """`random` as published, or `diverse`: sharp frames in which pose and mouth differ most."""
    sync_ramp: int = 1000
    """Optimiser steps in which the sync loss grows to its weight, once it starts; 0: full weight from the start."""
    sync_below: float = 0.75
    """It starts once its mean is below this, on true pairs and on generated ones (Wav2Lip's rule and value)."""
    sync_share: float = 0.3
    """Largest share of the sync loss in the gradients of all losses at the generated image; 1: no bound."""
    share_every: int = 50
    """Optimiser steps between two measurements of each loss's share of the gradient; 0: never."""
    max_skipped: int = 3
    """Steps of an epoch that may be skipped because a loss is not finite, before the run stops."""
    plateau_steps: int = 500
    """Steps after which there is an alarm if the sync network stays at chance, or the sync loss waits for its ramp; 0:
    never."""
    sample_every: int = 1
    """Epochs between two sheets in `samples/`."""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(choices)}")
        for name in (
            "base_channels",
            "sync_channels",
            "disc_channels",
            "disc_max_channels",
            "key_points",
            "sample_every",
            "mix_segments",
            "sync_windows",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1")
        for name in ("grad_clip", "sync_ramp", "sync_below", "share_every", "max_skipped", "plateau_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must be 0 (off) or positive")
        if not 0 < self.sync_share <= 1:
            raise ValueError("sync_share: must be above 0 and at most 1 (no bound)")
        if not 0 <= self.audio_dropout < 1:
            raise ValueError("audio_dropout: must be 0 (off) or below 1")
        if not 0 <= self.ema_decay < 1:
            raise ValueError("ema_decay: must be 0 (off) or below 1")
        names = [row.name for row in PRESETS[self.preset]]
        for stage in self.stages:
            if stage.init_from is None:
                continue
            if stage.init_from not in names:
                raise ValueError(f"{stage.name}.init_from: unknown {stage.init_from!r}; choose from {', '.join(names)}")
            if names.index(stage.init_from) >= names.index(stage.name):
                raise ValueError(f"stages: {stage.name} starts from {stage.init_from}, which must come before it")

    def index(self, name: str) -> int:
        """Position of a stage among all rows of the preset, which is the order in which stages run."""
        return [row.name for row in PRESETS[self.preset]].index(name)

    def stage(self, name: str) -> Stage:
        """The row of that name.

        Raises:
            ValueError: there is no such row; the message lists the names.
        """
        for row in self.stages:
            if row.name == name:
                return row
        raise ValueError(f"stages: unknown {name!r}; choose from {', '.join(s.name for s in self.stages)}")

    def sample_spec(self, stage: Stage) -> SampleSpec:
        """What the sampler must draw for a stage."""
        uses_sync = stage.kind == "syncnet" or stage.weights.sync > 0
        return SampleSpec(
            mouth_px=stage.mouth_px,
            num_frames=stage.num_frames,
            batch_size=stage.batch_size,
            samples_per_segment=stage.samples_per_segment,
            audio=self.audio_feature,
            sync=self.sync_feature if uses_sync else None,
            contrast=stage.kind == "syncnet",
            lips=stage.kind == "gan" and max(stage.weights.lips, stage.weights.read) > 0,
            augment=self.augment and stage.kind == "gan",
            audio_dropout=self.audio_dropout if stage.kind == "gan" else 0.0,
            references=self.references,
            windows=self.sync_windows if stage.kind == "syncnet" else 1,
            mix_segments=self.mix_segments,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)


_SMALL: dict[str, Any] = {
    "mix_segments": 24,
    "audio_from_lips": True,
    "audio_dropout": 0.7,
    "base_channels": 16,
    "sync_channels": 16,
    "disc_channels": 8,
    "disc_max_channels": 64,
    "warp_grid": 12,
    "pixel_loss": "l1",
    "sync_ramp": 20,
    "plateau_steps": 150,
}
_NETWORKS: dict[str, dict[str, Any]] = {"small": _SMALL, "published": {"normalise": False}}


def make_config(preset: str = "full", stages: Sequence[str] | None = None, settings: Iterable[str] = ()) -> TrainConfig:
    """Make the configuration of a preset, with some of its stages and with `key=value` settings.

    A key is a field of `TrainConfig`, or `STAGE.field`, `STAGE.weights.field` for a field of one stage; `stages.field`
    sets it in all stages.

    Raises:
        ValueError: a preset, stage or key is unknown (the message lists the valid ones), or a value does not fit.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset: unknown {preset!r}; choose from {', '.join(PRESETS)}")
    rows = PRESETS[preset]
    config = TrainConfig(preset=preset, stages=rows, **_NETWORKS.get(preset, {}))
    for setting in settings:
        config = _set(config, *parse_setting(setting))
    if stages:
        chosen = {config.stage(name).name for name in stages}
        config = replace(config, stages=tuple(row for row in config.stages if row.name in chosen))
    return config


def valid_keys(config: TrainConfig) -> list[str]:
    """Every key that `--set` takes."""
    top = [f.name for f in dataclasses.fields(config) if f.name not in ("preset", "stages")]
    row = [f.name for f in dataclasses.fields(Stage) if f.name not in ("name", "kind", "weights")]
    row += [f"weights.{f.name}" for f in dataclasses.fields(Weights)]
    return top + [f"{name}.{key}" for name in ("stages", *(s.name for s in config.stages)) for key in row]


def _set(config: TrainConfig, key: str, value: Any) -> TrainConfig:
    keys = valid_keys(config)
    if key not in keys:
        stage_keys = [k.removeprefix("stages.") for k in keys if k.startswith("stages.")]
        top = [k for k in keys if "." not in k]
        raise unknown_key(key, keys, f"{', '.join(top)}, and for a stage or `stages`: {', '.join(stage_keys)}")
    target, _, rest = key.partition(".")
    if not rest:
        return replace(config, **{key: _fit(key, getattr(config, key), value)})
    rows = tuple(_set_row(s, key, rest, value) if target in ("stages", s.name) else s for s in config.stages)
    return replace(config, stages=rows)


def _set_row(stage: Stage, key: str, rest: str, value: Any) -> Stage:
    if rest.startswith("weights."):
        name = rest.removeprefix("weights.")
        weights = replace(stage.weights, **{name: _fit(key, getattr(stage.weights, name), value)})
        return replace(stage, weights=weights)
    return replace(stage, **{rest: _fit(key, getattr(stage, rest), value)})


def _fit(key: str, old: Any, value: Any) -> Any:
    """The value as the type of the field's old one; some may be None."""
    optional = {"init_from": str, "channels_last": bool, "compile": bool}.get(key.rpartition(".")[2])
    if optional and value is None:
        return None
    return convert(key, value, optional or type(old))
