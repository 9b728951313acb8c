"""Teaches the generator's audio encoder what to listen for.

Shape letters: R frames that are heard, C feature dimension.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lawdnet.models.attention import AUDIO_COLUMNS
from lawdnet.models.generator import Generator

NUM_LIP_VALUES = 40
"""x and y of the 20 mouth landmarks."""


class LipHead(nn.Module):
    """Reads the shape of the lips off the audio feature; it is linear, so the feature itself has to say it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.read = nn.Linear(channels * AUDIO_COLUMNS, NUM_LIP_VALUES)
        nn.init.zeros_(self.read.weight)  # it shall not disturb a trained encoder before it has learnt something
        nn.init.zeros_(self.read.bias)

    def forward(self, audio_RCA: Tensor) -> Tensor:
        """Return R×40, as `lawdnet.data.lips.lip_shapes`."""
        flat = audio_RCA.flatten(1)
        lips_R40: Tensor = self.read(F.layer_norm(flat, flat.shape[1:]))
        return lips_R40


class Listening(nn.Module):
    """A generator, and what a lip head reads off its audio encoder, in one forward as DistributedDataParallel wants."""

    def __init__(self, generator: Generator, head: LipHead | None) -> None:
        super().__init__()
        self.generator, self.head = generator, head

    def forward(
        self, masked_source_B3HW: Tensor, reference_B15HW: Tensor, audio_BC5: Tensor, lip_audio_RC5: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the generated images, and the lips R×40 if there is a head."""
        images_B3HW = self.generator(masked_source_B3HW, reference_B15HW, audio_BC5)
        if self.head is None:
            return images_B3HW, None
        return images_B3HW, self.head(self.generator.audio_encoder(lip_audio_RC5))
