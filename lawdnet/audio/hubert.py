"""HuBERT, wav2vec 2.0 and WavLM: features learned from speech without text, not tied to one language.

Shape letters: T rows at 25 Hz, C feature dimension, B chunks, S samples, P samples of a patch, N patches, Q = 1 + P.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lawdnet.audio.base import GPU_BATCH, Chunking, check_mono, chunks_at_once, in_chunks
from lawdnet.audio.mfcc import Float64
from lawdnet.models.device import pick_device
from lawdnet.networks import Network
from lawdnet.storage import Location, files_sha256
from lawdnet.types import FPS, SAMPLES_PER_FRAME, Beat, Float32, no_beat
from lawdnet.weights import need_package, weights_folders

if TYPE_CHECKING:
    from lawdnet.audio.hubert_model import SpeechModel

MODEL = "facebook/hubert-base-ls960"
TYPES = ("hubert", "wav2vec2", "wavlm")
BLOCK = 480_000
"""Samples (30 s) processed at a time, to bound memory."""
PATCHES = 100_000
"""Patches of the first convolution processed at a time, to bound memory."""
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
PUBLISHED = "it is published at https://huggingface.co/{}: copy its files to a folder and give that folder"

logger = logging.getLogger(__name__)


class Hubert:
    """Computes hidden states of a HuBERT, wav2vec 2.0 or WavLM network; the folder's config.json says which.

    Audio is normalised to mean 0 and deviation 1 over the whole file if the network's preprocessor asks for it, and
    padded by half of the network's receptive field (12.5 ms), so that its 20 ms rows are centred on 20·i ms; every
    second row is kept. Row t, for frame t of the video, is centred on 40·t ms.

    Audio of more than 16 s goes through the network in chunks of 16 s that overlap by 4 s: the cost of attention grows
    with the square of the length, and these networks were trained on such chunks. The group norm of the first layer
    uses the statistics of the whole file. Attention sees only its chunk, which is why a row differs from whole-file
    processing.

    Args:
        model: a folder with config.json and weights (safetensors, or a .bin with nothing but tensors), the name of a
            folder in `weights_folders`, or a name on huggingface.co, which is downloaded to its usual cache.
        layer: take the hidden state after this many transformer layers; None takes the network's output.
        batch: chunks at once; None means 8 on a GPU and 1 elsewhere.
        weights_dir: the folder searched first for the model's folder.
        device: auto, cpu or cuda.

    Raises:
        ValueError: transformers is not installed, the model is missing or of another type, or it has no such layer.
    """

    name = "hubert"
    frame_shift = 1 / FPS

    def __init__(
        self,
        *,
        model: str = MODEL,
        layer: int | None = None,
        batch: int | None = None,
        weights_dir: Location | None = None,
        device: str = "auto",
    ) -> None:
        need_package("transformers", self.name)
        self.folder = _find_model(model, weights_dir)
        config = _check_config(self.folder, layer)
        self.feature_dim = int(config["hidden_size"])
        self.model_sha256: str | None = _weights_sha256(self.folder)
        self.layer, self.device, self.batch = layer, device, batch
        self.chunking = Chunking(rows=400, context=50)
        self.calls = 1
        self.networks = {"speech": Network(lambda *batch: self._network.run(*batch), batch or GPU_BATCH)}
        self._hop = math.prod(config["conv_stride"])
        self._receptive = _receptive_field(config["conv_kernel"], config["conv_stride"])
        has_group_norm = config.get("feat_extract_norm", "group") == "group"
        self._patch = (config["conv_kernel"][0], config["conv_stride"][0]) if has_group_norm else None
        self._normalise = bool(_read_json(self.folder / "preprocessor_config.json").get("do_normalize", True))

    def extract(self, audio: Float32, beat: Beat = no_beat) -> Float32:
        """Return T×C rows at 25 Hz for 16 kHz mono audio in [-1, 1], with T = ceil(samples / 640).

        Raises:
            ValueError: the audio is not mono, or the weights cannot be read.
        """
        check_mono(audio)
        rows = -(-len(audio) // SAMPLES_PER_FRAME)
        if rows == 0:
            return np.empty((0, self.feature_dim), np.float32)
        mean, deviation = _statistics(audio) if self._normalise else (0.0, 1.0)
        margin = self._receptive - self._hop

        def samples(start: int, length: int) -> Float32:
            """Return the network's input from its sample `start` on: normalised, and silent beyond the ends."""
            first = start - self._receptive // 2
            padded_S = np.zeros(length, np.float32)
            inside = audio[max(0, first) : max(0, first + length)]
            at = max(0, -first)
            padded_S[at : at + len(inside)] = (inside - mean) / deviation
            return padded_S

        def run(starts: list[int], length: int) -> Float32:
            begins = [start * SAMPLES_PER_FRAME for start in starts]
            chunks_BS = np.stack([samples(begin, length * SAMPLES_PER_FRAME + margin) for begin in begins])
            rows_BRC = self.networks["speech"].compute(chunks_BS, np.stack([moments_QP] * len(starts)))
            return np.asarray(rows_BRC)[:, :: SAMPLES_PER_FRAME // self._hop]

        moments_QP = self._moments(samples, rows * SAMPLES_PER_FRAME + margin)
        chunking = replace(self.chunking, batch=chunks_at_once(self.batch, self.device))
        return in_chunks(run, rows, self.feature_dim, chunking, beat, self.calls)

    def _moments(self, samples: Callable[[int, int], Float32], total: int) -> Float64:
        """Return what the group norm of the first layer needs to know of the whole audio; see `SpeechModel.run`."""
        return patch_moments(samples, total, *self._patch) if self._patch else np.empty((0, 0))

    @cached_property
    def _network(self) -> SpeechModel:
        from lawdnet.audio.hubert_model import SpeechModel

        return SpeechModel(self.folder, self.layer, pick_device(self.device))


def _statistics(audio: Float32) -> tuple[float, float]:
    """Return mean and deviation as in transformers' Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm."""
    mean = float(audio.mean(dtype=np.float64))
    blocks = (audio[start : start + BLOCK].astype(np.float64) for start in range(0, len(audio), BLOCK))
    variance = sum(float(((block - mean) ** 2).sum()) for block in blocks) / len(audio)
    return mean, math.sqrt(variance + 1e-7)


def patch_moments(samples: Callable[[int, int], Float32], total: int, size: int, stride: int) -> Float64:
    """Return the mean (first row) and the covariance of all patches that a convolution sees.

    Args:
        samples: (start, length) → that part of the padded, normalised audio.
        total: number of samples of that audio.
        size, stride: of the convolution.

    Returns:
        Q×P, with P the samples of a patch and Q = 1 + P.
    """
    count = (total - size) // stride + 1
    sums_P = np.zeros(size)
    products_PP = np.zeros((size, size))
    for start in range(0, count, PATCHES):
        patches = min(PATCHES, count - start)
        block_S = samples(start * stride, (patches - 1) * stride + size).astype(np.float64)
        patches_NP = np.lib.stride_tricks.sliding_window_view(block_S, size)[::stride]
        sums_P += patches_NP.sum(0)
        products_PP += patches_NP.T @ patches_NP
    mean_P = sums_P / count
    return np.vstack([mean_P, products_PP / count - np.outer(mean_P, mean_P)])


def _receptive_field(kernels: list[int], strides: list[int]) -> int:
    """Return how many samples of the input affect one row of a stack of convolutions."""
    samples = hop = 1
    for kernel, stride in zip(kernels, strides, strict=True):
        samples += (kernel - 1) * hop
        hop *= stride
    return samples


def _check_config(folder: Path, layer: int | None) -> dict[str, Any]:
    """Read the folder's config.json and check that this extractor can run the network.

    Raises:
        ValueError: it cannot, or the network has no such layer.
    """
    config = _read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in TYPES:
        raise ValueError(f"{folder}: the model has type {kind!r}, expected one of {', '.join(TYPES)}")
    if config.get("add_adapter"):
        raise ValueError(
            f"{folder}: the network has an adapter, which reduces its row rate; save it without the adapter"
        )
    layers = config["num_hidden_layers"]
    if layer is not None and not 1 <= layer <= layers:
        raise ValueError(f"layer: {layer!r}, expected 1 … {layers} (the layers of {folder.name})")
    if SAMPLES_PER_FRAME % math.prod(config["conv_stride"]):
        raise ValueError(f"{folder}: rows of {math.prod(config['conv_stride'])} samples do not align with video frames")
    return config


def _find_model(model: str, weights_dir: Location | None) -> Path:
    """Find the folder of a model: as named, in `weights_folders`, or on the hub (cached or downloaded)."""
    folders = weights_folders(weights_dir)
    candidates = [
        Path(model).expanduser(),
        *(folder / part for folder in folders for part in (model, Path(model).name)),
    ]
    for path in candidates:
        if (path / "config.json").is_file():
            return path
    try:
        return _from_hub(model)
    except Exception as error:  # the hub's client raises many kinds: no connection, no such model, not a valid name
        logger.debug("%s", model, exc_info=error)
        searched = ", ".join(str(folder) for folder in folders)
        where = f"not a folder, not found in {searched}, and the hub did not give it ({type(error).__name__})"
        raise ValueError(f"{model}: {where}; {PUBLISHED.format(model)}") from None


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(model, allow_patterns=["*.json", WEIGHTS[0]]))
    if not any(folder.glob(WEIGHTS[0])):
        snapshot_download(model, allow_patterns=[WEIGHTS[1]])
    return folder


def _weights_sha256(folder: Path) -> str:
    """Return the SHA-256 of the weights, which may be split over several files."""
    found = next((files for pattern in WEIGHTS if (files := sorted(folder.glob(pattern)))), [])
    if not found:
        raise ValueError(f"{folder}: no weights next to config.json, expected {' or '.join(WEIGHTS)}")
    return files_sha256(found)


def _read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file, {} if there is none."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error})") from None
    return found
