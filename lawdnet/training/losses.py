"""The losses, each a plain function of tensors.

Shape letters: B batch, H W crop, h w score map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

PIXEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": F.l1_loss, "l2": F.mse_loss}


def lsgan(score: Tensor, target: float) -> Tensor:
    """Least-squares GAN loss (Mao et al. 2017): mean squared distance of a score map from 1 (real) or 0 (fake)."""
    return (score - target).square().mean()


def mouth_l1(made_B3HW: Tensor, true_B3HW: Tensor, hidden_HW: Tensor) -> Tensor:
    """Mean absolute error where the generator could not look, weighted by how hidden each pixel was."""
    return ((made_B3HW - true_B3HW).abs().mean(1) * hidden_HW).sum() / (hidden_HW.sum() * len(made_B3HW))


def perceptual(features: Callable[[Tensor], Sequence[Tensor]], made_B3HW: Tensor, true_B3HW: Tensor) -> Tensor:
    """Mean over feature slices of their L1 distance, at full and half size (LawDNet 2024)."""
    total = made_B3HW.new_zeros(())
    for _ in range(2):
        with torch.no_grad():
            wanted = features(true_B3HW)
        pairs = zip(features(made_B3HW), wanted, strict=True)
        total = total + torch.stack([F.l1_loss(a, b) for a, b in pairs]).mean()
        made_B3HW, true_B3HW = F.avg_pool2d(made_B3HW, 2), F.avg_pool2d(true_B3HW, 2)
    return total


def contrast(score_BA: Tensor, own_BC9: Tensor, sounds_AC9: Tensor, sharpness: float = 12.0) -> Tensor:
    """Each face must pick its own sound out of all A, and each of the first B sounds its own face (InfoNCE).

    Pairs whose sounds are the same numbers (one clip drawn twice, digital silence) are no mistakes and left out.

    Args:
        score_BA: cosines; face b belongs to sound b.
        own_BC9: the first B of sounds_AC9.
        sharpness: of the softmax, the inverse of a temperature.
    """
    count = len(score_BA)
    same_BA = (own_BC9[:, None] == sounds_AC9[None]).flatten(2).all(2)
    same_BA[:, :count].fill_diagonal_(False)
    logit_BA = (sharpness * score_BA).masked_fill(same_BA, -torch.inf)
    target_B = torch.arange(count, device=score_BA.device)
    return (F.cross_entropy(logit_BA, target_B) + F.cross_entropy(logit_BA[:, :count].T, target_B)) / 2
