"""Opening a trained generator, with the extractor of the audio feature that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lawdnet.audio.base import AudioExtractor, extractor_options, make_extractor
from lawdnet.face.geometry import stage_size
from lawdnet.models.generator import Generator
from lawdnet.models.legacy import load_legacy_generator
from lawdnet.models.saved import find_checkpoint, load_generator, read_meta
from lawdnet.storage import Location, local_copy


@dataclass(frozen=True, kw_only=True)
class GeneratorInfo:
    """What inference needs to know about a generator."""

    mouth_px: int
    """Size of the mouth square in px."""
    crop_width: int
    """Width in px of the crops in the training data."""
    audio_feature: str
    features: Mapping[str, Mapping[str, Any]]
    """Feature of the training data → `options` and `model_sha256` of its extractor; empty for a `.pth`."""

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> GeneratorInfo:
        """Return the part of a checkpoint's metadata that inference needs."""
        return cls(
            mouth_px=int(meta["mouth_px"]),
            crop_width=int(meta["crop_width"]),
            audio_feature=meta["audio_feature"],
            features=meta.get("features", {}),
        )


def generator_info(checkpoint: Location) -> GeneratorInfo:
    """Read what inference needs to know about a generator, of a checkpoint without its weights; see `Engine`.

    Raises:
        ValueError: there is no such checkpoint, or it is damaged.
    """
    if checkpoint.is_file():
        return GeneratorInfo.from_meta(open_generator(checkpoint)[1])
    return GeneratorInfo.from_meta(read_meta(find_checkpoint(checkpoint)))


def open_generator(
    checkpoint: Location, *, mouth_px: int | None = None, audio_feature: str | None = None
) -> tuple[Generator, Mapping[str, Any]]:
    """Open the generator of a run, a checkpoint or a `.pth`, in evaluation mode; return it with its metadata.

    Args:
        checkpoint: see `Engine`.
        mouth_px, audio_feature: see `Engine`.

    Raises:
        ValueError: there is no such checkpoint, it is damaged, or an argument was given that the checkpoint contains.
    """
    told = {"mouth_px": mouth_px, "audio_feature": audio_feature}
    told = {name: value for name, value in told.items() if value is not None}
    if checkpoint.is_file():
        with local_copy(checkpoint) as path:
            generator, meta = load_legacy_generator(path)
        if mouth_px is not None:
            told["crop_width"] = stage_size(mouth_px)[1]
    elif told:
        raise ValueError(f"{', '.join(told)}: {checkpoint} contains this already; leave it out")
    else:
        generator, meta = load_generator(find_checkpoint(checkpoint))
    return generator, meta | told


def extractor_of(info: GeneratorInfo, weights_dir: Location | None) -> AudioExtractor:
    """Return the extractor that the training data were made with, with its options.

    Raises:
        ValueError: its weights are missing, or differ from those of the training data.
    """
    name = info.audio_feature
    known = info.features.get(name, {})
    options = dict(known.get("options", {}))
    if "weights_dir" in extractor_options(name):
        options["weights_dir"] = weights_dir
    extractor = make_extractor(name, **options)
    if known.get("model_sha256") not in (None, extractor.model_sha256):
        found = f"SHA-256 {extractor.model_sha256}, expected {known['model_sha256']}"
        hint = "give the folder with the right ones with --weights-dir"
        raise ValueError(f"{name}: these weights are not those of the training data ({found}); {hint}")
    return extractor
