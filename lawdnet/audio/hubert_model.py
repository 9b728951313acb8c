"""The network of `hubert`: load it safely, and process long audio in chunks with unchanged results.

Shape letters: B chunks, S samples, R rows (50 Hz), C feature dimension, K channels, P samples of a patch, Q = 1 + P,
N positions.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lawdnet.audio.mfcc import Float64
from lawdnet.types import Float32

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
    def run(self, audio_BS: Float32, moments_BQP: Float64) -> Float32:
        """Return B×R×C rows of padded, normalised chunks.

        The group norm takes the statistics of the whole audio, so that a chunk is scaled as the whole would be. The
        output of a convolution is linear in its input patch: if the patches have mean m and covariance Σ, a channel
        with weights w and bias b has mean w·m + b and variance wᵀΣw.

        Args:
            audio_BS: the chunks, of any audios.
            moments_BQP: `patch_moments` of the audio that each belongs to; not used without a group norm.
        """
        if self._norm is not None:
            self._norm.fix(*self._statistics(moments_BQP))
        output: Tensor = self._model(torch.from_numpy(audio_BS).to(self.device)).last_hidden_state
        chosen = output if self._hidden is None else self._hidden
        return np.asarray(chosen.float().cpu().numpy())

    def _statistics(self, moments_BQP: Float64) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and variance, B×K each, of the first convolution's channels."""
        weight_KP = self._convolution.weight[:, 0].double().cpu().numpy()
        bias = 0.0 if self._convolution.bias is None else self._convolution.bias.double().cpu().numpy()
        mean_BK = [weight_KP @ moments_QP[0] + bias for moments_QP in moments_BQP]
        variance_BK = [np.einsum("kp,pq,kq->k", weight_KP, moments_QP[1:], weight_KP) for moments_QP in moments_BQP]
        return np.stack(mean_BK), np.stack(variance_BK).clip(min=0)


class _FixedNorm(nn.Module):
    """A group norm with one channel per group that uses given statistics instead of those of its input."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        assert norm.num_groups == norm.num_channels, "only one channel per group is supported"
        self.norm = norm
        self.scale_BK1 = self.shift_BK1 = torch.empty(0)

    def fix(self, mean_BK: np.ndarray, variance_BK: np.ndarray) -> None:
        """Set mean and variance of each channel, for each entry of the batch that comes next."""
        weight_K, bias_K = (parameter.double().cpu() for parameter in (self.norm.weight, self.norm.bias))
        scale_BK = weight_K / (torch.from_numpy(variance_BK) + self.norm.eps).sqrt()
        shift_BK = bias_K - torch.from_numpy(mean_BK) * scale_BK
        device = self.norm.weight.device
        self.scale_BK1, self.shift_BK1 = (x_BK.float().to(device)[..., None] for x_BK in (scale_BK, shift_BK))

    def forward(self, x_BKN: Tensor) -> Tensor:
        return x_BKN * self.scale_BK1 + self.shift_BK1


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
