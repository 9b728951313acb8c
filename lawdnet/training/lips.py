"""What teaches the generator about lips: its audio encoder hears them, and a reader sees them in its images.

Frames whose landmarks are not known (NaN, as in imported datasets) teach nothing, and count as no error.

Shape letters: B batch, R frames that are heard, M images, N those and their blurred versions, C channels, A audio
columns, S side of the mouth's square.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lawdnet.data.lips import INNER_LOWER, INNER_UPPER
from lawdnet.models.attention import AUDIO_COLUMNS
from lawdnet.models.generator import Generator
from lawdnet.models.lip_reader import NUM_LIP_VALUES, LipReader

BLURS = (3, 5)
"""Sides in px of the boxes that blur what the reader learns from: the generator's first images are no sharper."""
ROUND = 0.5
"""Errors below it, in usual deviations, count by their square: they are no more than the reader's own."""


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
        self,
        masked_source_B3HW: Tensor,
        reference_B15HW: Tensor,
        audio_BC5: Tensor,
        teaches_B: Tensor | None,
        lip_audio_RC5: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the generated images, and the lips R×40 if there is a head; `teaches_B` as in `Generator`."""
        images_B3HW = self.generator(masked_source_B3HW, reference_B15HW, audio_BC5, teaches_B)
        if self.head is None:
            return images_B3HW, None
        return images_B3HW, self.head(self.generator.audio_encoder(lip_audio_RC5))


def lips_loss(found_R40: Tensor, wanted_R40: Tensor) -> Tensor:
    """Mean squared error of the shapes of lips that were heard, in usual deviations."""
    return F.mse_loss(found_R40, _where_known(wanted_R40, wanted_R40, found_R40))


def reader_loss(reader: nn.Module, mouth_M3SS: Tensor, points_M40: Tensor) -> Tensor:
    """What the lip reader learns from: its error on true mouths, as they are and blurred."""
    blurred = [F.avg_pool2d(mouth_M3SS, side, 1, side // 2, count_include_pad=False) for side in BLURS]
    found_N40 = reader(torch.cat([mouth_M3SS, *blurred])).float()
    points_N40 = points_M40.repeat(1 + len(BLURS), 1)
    return _distance(found_N40, _where_known(points_N40, points_N40, found_N40))


def read_loss(reader: LipReader, generated_M3SS: Tensor, true_M3SS: Tensor, points_M40: Tensor) -> Tensor:
    """How far the lips that a reader sees in generated mouths are from those that it sees in the true ones.

    The reader is as wrong about the one as about the other, so the stored points only say whether they are known.
    """
    with torch.no_grad():
        wanted_M40 = reader(true_M3SS).float()
    found_M40 = reader(generated_M3SS).float()
    return _distance(found_M40, _where_known(points_M40, wanted_M40, found_M40))


def _distance(found_M40: Tensor, wanted_M40: Tensor) -> Tensor:
    """Distance of the points, and of how far the inner lips are apart: that is what is seen."""
    pairs = ((found_M40, wanted_M40), (_gap(found_M40), _gap(wanted_M40)))
    return torch.stack([F.smooth_l1_loss(*pair, beta=ROUND) for pair in pairs]).sum()


def _where_known(points_M40: Tensor, wanted_M40: Tensor, found_M40: Tensor) -> Tensor:
    return torch.where(points_M40.isfinite(), wanted_M40, found_M40.detach())


def _gap(points_M40: Tensor) -> Tensor:
    y_M20 = points_M40[:, 1::2]
    return y_M20[:, INNER_LOWER] - y_M20[:, INNER_UPPER]
