"""The network of `hubert`: load it safely, and process long audio in chunks with unchanged results.

Shape letters: B chunks, S samples, R rows (50 Hz), C feature dimension, K channels, P samples of a patch, N patches.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lawdnet.types import Float32

BLOCK = 100_000
"""Patches of the first convolution processed at a time, to bound memory."""
OPTIONAL_WEIGHT = "masked_spec_embed"
"""Only training uses this weight; some published files lack it."""

logger = logging.getLogger(__name__)


class SpeechModel:
    """Runs a HubertModel, Wav2Vec2Model or WavLMModel of transformers and returns one layer's rows.

    Args:
        folder: holds config.json and weights.
        layer: take the hidden state after this many transformer layers; None takes the network's output.
        device: where to run.

    Raises:
        ValueError: the weights cannot be read, or do not belong to the configuration.
    """

    def __init__(self, folder: Path, layer: int | None, device: torch.device) -> None:
        self.device = device
        self._model = _load(folder).to(device)
        self._hidden: Tensor | None = None
        if layer is not None:
            # Later layers are not needed. The hook gets the layer's own output, before any norm after the last layer.
            self._model.encoder.layers = self._model.encoder.layers[:layer]
            self._model.encoder.layers[-1].register_forward_hook(self._keep)
        first = self._model.feature_extractor.conv_layers[0]
        self._convolution: nn.Conv1d = first.conv
        self._norm = None
        if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
            first.layer_norm = self._norm = _FixedNorm(first.layer_norm)

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._hidden = output[0] if isinstance(output, tuple) else output

    @torch.inference_mode()
    def run(self, audio_BS: Float32) -> Float32:
        """Return B×R×C rows of padded, normalised chunks."""
        output: Tensor = self._model(torch.from_numpy(audio_BS).to(self.device)).last_hidden_state
        chosen = output if self._hidden is None else self._hidden
        return np.asarray(chosen.float().cpu().numpy())

    @torch.inference_mode()
    def measure(self, samples: Callable[[int, int], Float32], total: int) -> None:
        """Set the group norm's statistics to those of the whole audio, so that chunks are scaled as the whole would be.

        The output of a convolution is linear in its input patch: if the patches have mean m and covariance Σ, a channel
        with weights w and bias b has mean w·m + b and variance wᵀΣw.

        Args:
            samples: (start, length) → that part of the padded, normalised audio.
            total: number of samples of that audio.
        """
        if self._norm is None:
            return
        weight_KP = self._convolution.weight[:, 0].double().cpu().numpy()
        mean_P, covariance_PP = _patches(samples, total, weight_KP.shape[1], self._convolution.stride[0])
        bias = 0.0 if self._convolution.bias is None else self._convolution.bias.double().cpu().numpy()
        mean_K = weight_KP @ mean_P + bias
        variance_K = np.einsum("kp,pq,kq->k", weight_KP, covariance_PP, weight_KP).clip(min=0)
        self._norm.fix(mean_K, variance_K)


class _FixedNorm(nn.Module):
    """A group norm with one channel per group that uses given statistics instead of those of its input."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        assert norm.num_groups == norm.num_channels, "only one channel per group is supported"
        self.norm = norm
        self.scale_K1 = self.shift_K1 = torch.empty(0)

    def fix(self, mean_K: np.ndarray, variance_K: np.ndarray) -> None:
        """Set mean and variance of each channel."""
        weight_K, bias_K = (parameter.double().cpu() for parameter in (self.norm.weight, self.norm.bias))
        scale_K = weight_K / (torch.from_numpy(variance_K) + self.norm.eps).sqrt()
        shift_K = bias_K - torch.from_numpy(mean_K) * scale_K
        self.scale_K1, self.shift_K1 = (x.float().to(self.norm.weight.device)[:, None] for x in (scale_K, shift_K))

    def forward(self, x_BKN: Tensor) -> Tensor:
        return x_BKN * self.scale_K1 + self.shift_K1


def _patches(
    samples: Callable[[int, int], Float32], total: int, size: int, stride: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and covariance of all patches that a convolution of that size and stride sees."""
    count = (total - size) // stride + 1
    sums_P = np.zeros(size)
    products_PP = np.zeros((size, size))
    for start in range(0, count, BLOCK):
        patches = min(BLOCK, count - start)
        block_S = samples(start * stride, (patches - 1) * stride + size).astype(np.float64)
        patches_NP = np.lib.stride_tricks.sliding_window_view(block_S, size)[::stride]
        sums_P += patches_NP.sum(0)
        products_PP += patches_NP.T @ patches_NP
    mean_P = sums_P / count
    return mean_P, products_PP / count - np.outer(mean_P, mean_P)


def _load(folder: Path) -> Any:
    """Load the network of a folder in float32, ready to run; nothing is downloaded, no code of the folder is run."""
    from transformers import AutoModel
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        model, info = AutoModel.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, trust_remote_code=False
        )
    except Exception as error:  # transformers raises many kinds
        logger.debug("%s", folder, exc_info=error)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{folder}: the network cannot be loaded ({reason})") from None
    missing = sorted(key for key in info["missing_keys"] if OPTIONAL_WEIGHT not in key)
    if missing:
        # transformers would initialise them randomly and only warn
        raise ValueError(f"{folder}: {len(missing)} weights are missing, the first is {missing[0]}")
    return model.float().eval()
