"""Cross attention between what is heard and what is seen.

Shape letters: B batch, C channels, H W the fixed 8×6 picture that the attention works on, P its pixels,
A audio columns, D code width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PICTURE = (8, 6)
AUDIO_COLUMNS = 2


class CrossAttention(nn.Module):
    """One code vector from a picture feature and an audio feature.

    The C channels are the tokens: channel rows of the audio ask, channel rows of the picture answer.

    Args:
        channels: C, of both features.
        code_dim: D, an even number.
        squeezed: channels that are left before the last linear layer.
    """

    def __init__(self, channels: int, code_dim: int, squeezed: int) -> None:
        super().__init__()
        pixels = PICTURE[0] * PICTURE[1]
        self.position_picture = nn.Parameter(torch.randn(channels, *PICTURE))
        self.position_audio = nn.Parameter(torch.randn(channels, AUDIO_COLUMNS))
        self.query = nn.Linear(AUDIO_COLUMNS, code_dim)
        self.key = nn.Linear(pixels, code_dim)
        self.value = nn.Linear(pixels, code_dim)
        self.mix = nn.Linear(code_dim, code_dim)
        self.squeeze = nn.Conv1d(channels, squeezed, 3, padding=1)
        self.code = nn.Linear(squeezed * code_dim // 2, code_dim)

    def forward(self, picture_BCHW: Tensor, audio_BCA: Tensor) -> Tensor:
        """B×C×8×6 and B×C×2 → B×D, not negative."""
        picture_BCP = (picture_BCHW + self.position_picture).flatten(2)
        query_BCD = self.query(audio_BCA + self.position_audio)
        key_BCD, value_BCD = self.key(picture_BCP), self.value(picture_BCP)
        mixed_BCD = self.mix(F.scaled_dot_product_attention(query_BCD, key_BCD, value_BCD))
        squeezed = F.max_pool1d(F.relu(self.squeeze(mixed_BCD)), 2)
        return F.relu(self.code(squeezed.flatten(1)))
