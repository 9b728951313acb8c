"""HuBERT, wav2vec 2.0 and WavLM: features learned from speech without text, so they know no single language.

Shape letters: T rows at 25 Hz, C feature dimension, B pieces, S samples.
"""

from __future__ import annotations

import json
import logging
import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lawdnet.audio.base import Pieces, check_mono, in_pieces
from lawdnet.models.device import pick_device
from lawdnet.storage import files_sha256
from lawdnet.types import FPS, SAMPLES_PER_FRAME, Beat, Float32, no_beat
from lawdnet.weights import need_package, weights_folders

if TYPE_CHECKING:
    from lawdnet.audio.hubert_model import SpeechModel

MODEL = "facebook/hubert-base-ls960"
TYPES = ("hubert", "wav2vec2", "wavlm")
BLOCK = 480_000
"""Samples (30 s) measured at a time, which bounds the memory."""
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
PUBLISHED = "it is published at https://huggingface.co/{}: copy its files to a folder, and name that"

logger = logging.getLogger(__name__)


class Hubert:
    """Hidden states of a HuBERT, wav2vec 2.0 or WavLM network, whichever the folder's config.json names.

    The wave is normalised to mean 0 and deviation 1 over the whole file where the network's preprocessor asks for
    it, and padded by half of what the network hears at once (12.5 ms), so that its 20 ms rows are centred on 20·i
    ms; every second one is kept. Row t is centred on 40·t ms, where t is the video's frame.

    Sound of more than 16 s goes through the network in pieces of 16 s that overlap by 4 s (attention grows with the
    square of the length, and these networks learned on pieces like that). The statistics of the first layer's group
    norm are those of the whole file; attention sees its piece only, which is where a row differs from whole-file
    processing.

    Args:
        model: a folder with config.json and weights (safetensors, or a .bin that holds nothing but tensors), a
            folder name in `weights_folders`, or a name on huggingface.co, which is downloaded to its usual cache.
        layer: hidden state after that many transformer layers; None is the network's output.
        batch: pieces at once; None is 8 on a GPU and 1 elsewhere.
        weights_dir: where the model's folder is looked for first.
        device: auto, cpu or cuda.

    Raises:
        ValueError: transformers is not installed, the model is not there or of another kind, or it has no such layer.
    """

    name = "hubert"
    frame_shift = 1 / FPS

    def __init__(
        self,
        *,
        model: str = MODEL,
        layer: int | None = None,
        batch: int | None = None,
        weights_dir: Path | None = None,
        device: str = "auto",
    ) -> None:
        need_package("transformers", self.name)
        self.folder = _find_model(model, weights_dir)
        config = _check_config(self.folder, layer)
        self.feature_dim = int(config["hidden_size"])
        self.model_sha256: str | None = _weights_sha256(self.folder)
        self.layer, self.device, self.batch = layer, device, batch
        self.pieces = Pieces(rows=400, context=50)
        self._hop = math.prod(config["conv_stride"])
        self._heard = _receptive_field(config["conv_kernel"], config["conv_stride"])
        self._normalise = bool(_read_json(self.folder / "preprocessor_config.json").get("do_normalize", True))

    def extract(self, wave: Float32, beat: Beat = no_beat) -> Float32:
        """A 16 kHz mono wave in [-1, 1] as T×C rows at 25 Hz, T = ceil(samples / 640).

        Raises:
            ValueError: the wave is not mono, or the weights cannot be read.
        """
        check_mono(wave)
        rows = -(-len(wave) // SAMPLES_PER_FRAME)
        if rows == 0:
            return np.empty((0, self.feature_dim), np.float32)
        mean, deviation = _statistics(wave) if self._normalise else (0.0, 1.0)
        margin = self._heard - self._hop

        def samples(start: int, length: int) -> Float32:
            """What the network hears from its sample `start` on: normalised, silent beyond the ends."""
            first = start - self._heard // 2
            part_S = np.zeros(length, np.float32)
            inside = wave[max(0, first) : max(0, first + length)]
            at = max(0, -first)
            part_S[at : at + len(inside)] = (inside - mean) / deviation
            return part_S

        def run(starts: list[int], length: int) -> Float32:
            begins = [start * SAMPLES_PER_FRAME for start in starts]
            parts_BS = np.stack([samples(begin, length * SAMPLES_PER_FRAME + margin) for begin in begins])
            return self._network.run(parts_BS)[:, :: SAMPLES_PER_FRAME // self._hop]

        self._network.measure(samples, rows * SAMPLES_PER_FRAME + margin)
        batch = self.batch or (8 if self._network.device.type == "cuda" else 1)
        pieces = Pieces(rows=self.pieces.rows, context=self.pieces.context, batch=batch)
        return in_pieces(run, rows, self.feature_dim, pieces, beat)

    @cached_property
    def _network(self) -> SpeechModel:
        from lawdnet.audio.hubert_model import SpeechModel

        return SpeechModel(self.folder, self.layer, pick_device(self.device))


def _statistics(wave: Float32) -> tuple[float, float]:
    """Mean and deviation, as transformers' Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm has them."""
    mean = float(wave.mean(dtype=np.float64))
    blocks = (wave[start : start + BLOCK].astype(np.float64) for start in range(0, len(wave), BLOCK))
    variance = sum(float(((block - mean) ** 2).sum()) for block in blocks) / len(wave)
    return mean, math.sqrt(variance + 1e-7)


def _receptive_field(kernels: list[int], strides: list[int]) -> int:
    """Samples that a stack of convolutions hears for one row."""
    heard, hop = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        heard, hop = heard + (kernel - 1) * hop, hop * stride
    return heard


def _check_config(folder: Path, layer: int | None) -> dict[str, Any]:
    """The folder's config.json, where it is of a network that this extractor can run."""
    config = _read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in TYPES:
        raise ValueError(f"{folder}: a model of type {kind!r}, expected one of {', '.join(TYPES)}")
    if config.get("add_adapter"):
        raise ValueError(f"{folder}: the network has an adapter, which thins out its rows; save it without")
    layers = config["num_hidden_layers"]
    if layer is not None and not 1 <= layer <= layers:
        raise ValueError(f"layer: {layer!r}, expected 1 … {layers} (what {folder.name} has)")
    if SAMPLES_PER_FRAME % math.prod(config["conv_stride"]):
        raise ValueError(f"{folder}: rows of {math.prod(config['conv_stride'])} samples do not fall on video frames")
    return config


def _find_model(model: str, weights_dir: Path | None) -> Path:
    """A folder as named, one of that name in `weights_folders`, or the hub's, from its cache or downloaded."""
    folders = weights_folders(weights_dir)
    near = [Path(model).expanduser(), *(folder / part for folder in folders for part in (model, Path(model).name))]
    for path in near:
        if (path / "config.json").is_file():
            return path
    try:
        return _from_hub(model)
    except Exception as error:  # the hub's client raises many kinds: no connection, no such model, not a name
        logger.debug("%s", model, exc_info=error)
        looked_in = ", ".join(str(folder) for folder in folders)
        where = f"not a folder, in none of {looked_in}, and not to be had from the hub ({type(error).__name__})"
        raise ValueError(f"{model}: {where}; {PUBLISHED.format(model)}") from None


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(model, allow_patterns=["*.json", WEIGHTS[0]]))
    if not any(folder.glob(WEIGHTS[0])):
        snapshot_download(model, allow_patterns=[WEIGHTS[1]])
    return folder


def _weights_sha256(folder: Path) -> str:
    """Of the weights file; of the parts' digests where there are several."""
    found = next((files for pattern in WEIGHTS if (files := sorted(folder.glob(pattern)))), [])
    if not found:
        raise ValueError(f"{folder}: no weights beside config.json, expected {' or '.join(WEIGHTS)}")
    return files_sha256(found)


def _read_json(path: Path) -> dict[str, Any]:
    """What a JSON file says, nothing where there is none."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error})") from None
    return found
