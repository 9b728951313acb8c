"""The losses, each a plain function of tensors.

Shape letters: B batch, H W crop, h w score map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

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


def same_numbers(sounds_AC9: Tensor) -> Tensor:
    """A number for each of A sounds, the same where sounds are equal to the last bit."""
    return torch.unique(sounds_AC9.flatten(1), dim=0, return_inverse=True)[1]


def contrast(score_BA: Tensor, kind_A: Tensor, sharpness: float = 12.0) -> Tensor:
    """Each face must pick its own sound out of all A, and each of the first B sounds its own face (InfoNCE).

    Pairs whose sounds are the same numbers (one clip drawn twice, digital silence) are no mistakes and left out.

    Args:
        score_BA: cosines; face b belongs to sound b.
        kind_A: of the sounds, see `same_numbers`.
        sharpness: of the softmax, the inverse of a temperature.
    """
    count = len(score_BA)
    same_BA = kind_A[:count, None] == kind_A[None]
    same_BA[:, :count].fill_diagonal_(False)
    logit_BA = (sharpness * score_BA).masked_fill(same_BA, -torch.inf)
    target_B = torch.arange(count, device=score_BA.device)
    return (F.cross_entropy(logit_BA, target_B) + F.cross_entropy(logit_BA[:, :count].T, target_B)) / 2


def contrast_chance(faces: int, sounds: int) -> float:
    """What `contrast` gives a network that finds all pairs alike.

    A softmax over n equal scores gives each 1/n, a cross-entropy of ln n: ln A for the choice of a sound, ln B for that
    of a face, (ln A + ln B) / 2 in the mean. With one wrong sound the first is ln 2, the 0.69 of single pairs.
    """
    return (math.log(sounds) + math.log(faces)) / 2


def pulls(losses: Mapping[str, Tensor], picture: Tensor) -> dict[str, Tensor]:
    """Where each loss would move the drawn picture: its gradient there.

    What lies between losses and picture is walked through once and then forgotten, what lies behind the picture is
    kept: `torch.autograd.backward(picture, sum of the pulls)` is the backward pass of the losses' sum.

    Args:
        losses: scalars by name that have nothing in common but the picture.
    """
    return {name: torch.autograd.grad(loss, picture)[0] for name, loss in losses.items()}


def gradient_shares(pulled: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How loudly each loss speaks to the generator: the norm of its pull over the sum of all norms.

    Returns:
        share_NAME, each in [0, 1], together 1; all 0 where no loss pulls, or one of them overflows.
    """
    norms = {name: pull.norm() for name, pull in pulled.items()}
    total = sum(norms.values(), torch.tensor(torch.finfo(torch.float32).tiny))
    return {f"share_{name}": (norm / total).nan_to_num(0.0) for name, norm in norms.items()}
