"""Cross attention between audio and image features.

Shape letters: B batch, C channels, H W size of the image feature (8×6), P its pixels, A audio columns, D code width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE_FEATURE_SIZE = (8, 6)
AUDIO_COLUMNS = 2


class CrossAttention(nn.Module):
    """Computes one code vector from an image feature and an audio feature.

    The C channels are the tokens: those of the audio are queries, those of the image are keys and values.

    Args:
        channels: C, of both features.
        code_dim: D, an even number.
        squeezed: number of channels before the last linear layer.
    """

    def __init__(self, channels: int, code_dim: int, squeezed: int) -> None:
        super().__init__()
        pixels = IMAGE_FEATURE_SIZE[0] * IMAGE_FEATURE_SIZE[1]
        # its name is a key of stored checkpoints
        self.position_picture = nn.Parameter(torch.randn(channels, *IMAGE_FEATURE_SIZE))
        self.position_audio = nn.Parameter(torch.randn(channels, AUDIO_COLUMNS))
        self.query = nn.Linear(AUDIO_COLUMNS, code_dim)
        self.key = nn.Linear(pixels, code_dim)
        self.value = nn.Linear(pixels, code_dim)
        self.mix = nn.Linear(code_dim, code_dim)
        self.squeeze = nn.Conv1d(channels, squeezed, 3, padding=1)
        self.code = nn.Linear(squeezed * code_dim // 2, code_dim)

    def forward(self, image_BCHW: Tensor, audio_BCA: Tensor) -> Tensor:
        """Return B×D non-negative codes for features B×C×8×6 and B×C×2."""
        image_BCP = (image_BCHW + self.position_picture).flatten(2)
        query_BCD = self.query(audio_BCA + self.position_audio)
        attended_BCD = F.scaled_dot_product_attention(query_BCD, self.key(image_BCP), self.value(image_BCP))
        mixed_BCD = self.mix(attended_BCD)
        squeezed = F.max_pool1d(F.relu(self.squeeze(mixed_BCD)), 2)
        return F.relu(self.code(squeezed.flatten(1)))
