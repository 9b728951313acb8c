"""The losses, each a plain function of tensors.

Shape letters: B batch, A audio clips, H W crop, h w score map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

PIXEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": F.l1_loss, "l2": F.mse_loss}


def lsgan(score: Tensor, target: float) -> Tensor:
    """Least-squares GAN loss (Mao et al. 2017): mean squared distance of a score map from 1 (real) or 0 (fake)."""
    return (score - target).square().mean()


def mouth_l1(generated_B3HW: Tensor, true_B3HW: Tensor, hidden_HW: Tensor) -> Tensor:
    """Mean absolute error in the region hidden from the generator, weighted by how hidden each pixel was."""
    return ((generated_B3HW - true_B3HW).abs().mean(1) * hidden_HW).sum() / (hidden_HW.sum() * len(generated_B3HW))


def perceptual(features: Callable[[Tensor], Sequence[Tensor]], generated_B3HW: Tensor, true_B3HW: Tensor) -> Tensor:
    """L1 distance of the features, in the mean over slices, summed over full and half size (LawDNet 2024)."""
    total = generated_B3HW.new_zeros(())
    for _ in range(2):
        with torch.no_grad():
            wanted = features(true_B3HW)
        pairs = zip(features(generated_B3HW), wanted, strict=True)
        total = total + torch.stack([F.l1_loss(a, b) for a, b in pairs]).mean()
        generated_B3HW, true_B3HW = F.avg_pool2d(generated_B3HW, 2), F.avg_pool2d(true_B3HW, 2)
    return total


def equal_audio(audio_AC9: Tensor) -> Tensor:
    """A number for each of A audio clips; clips with the same number are equal to the last bit."""
    return torch.unique(audio_AC9.flatten(1), dim=0, return_inverse=True)[1]


NEAR_FRAMES = 5
"""Audio that begins fewer frames from the right one is nearly right itself."""


def rivals(kind_A: Tensor, origin_A2: Tensor | None, faces: int) -> Tensor:
    """B×A: the pairs that are compared, which are a face's own audio and what is wrong for it.

    Audio that is equal to the right one (a clip drawn twice, digital silence) is not wrong. With `origin_A2` only other
    moments of the same segment are, `NEAR_FRAMES` away or more: whoever must also tell voices and faces apart learns
    that first, and learns little of the moment.

    Args:
        kind_A: numbers of the audio clips as `equal_audio` gives them.
        origin_A2: recording and first frame of each audio clip.
        faces: B; face b belongs to audio b.
    """
    are_rivals_BA = kind_A[:faces, None] != kind_A[None]
    if origin_A2 is not None:
        recording_A, start_A = origin_A2.unbind(1)
        are_rivals_BA &= recording_A[:faces, None] == recording_A[None]
        are_rivals_BA &= (start_A[:faces, None] - start_A[None]).abs() >= NEAR_FRAMES
    are_rivals_BA[:, :faces].fill_diagonal_(True)
    return are_rivals_BA


def contrast(score_BA: Tensor, rivals_BA: Tensor, sharpness: float = 12.0) -> Tensor:
    """InfoNCE: each face must pick its own audio out of its rivals, and each of the first B audio clips its own face.

    Args:
        score_BA: cosines; face b belongs to audio b.
        rivals_BA: see `rivals`.
        sharpness: inverse temperature of the softmax.
    """
    count = len(score_BA)
    logit_BA = (sharpness * score_BA).masked_fill(~rivals_BA, -torch.inf)
    target_B = torch.arange(count, device=score_BA.device)
    return (F.cross_entropy(logit_BA, target_B) + F.cross_entropy(logit_BA[:, :count].T, target_B)) / 2


def contrast_chance(rivals_BA: Tensor) -> Tensor:
    """The value of `contrast` for a network that scores all pairs alike.

    A softmax over n equal scores gives each 1/n, a cross-entropy of ln n: with A rivals for each audio and B for each
    face, (ln A + ln B) / 2 in the mean. With one wrong clip the first is ln 2, the 0.69 of single pairs.
    """
    count = len(rivals_BA)
    audio = rivals_BA.sum(1).log().mean()
    return (audio + rivals_BA[:, :count].sum(0).log().mean()) / 2


def image_gradients(losses: Mapping[str, Tensor], image: Tensor) -> dict[str, Tensor]:
    """The gradient of each loss at the generated image.

    The graph between the losses and the image is freed, the graph behind the image is kept:
    `torch.autograd.backward(image, sum of the gradients)` is the backward pass of the losses' sum.

    Args:
        losses: scalars by name, whose graphs share only the image.
    """
    return {name: torch.autograd.grad(loss, image)[0] for name, loss in losses.items()}


def gradient_shares(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The share of each loss in what the generator is taught: the norm of its gradient over the sum of all norms.

    Returns:
        share_NAME, each in [0, 1], 1 in sum; all 0 if every gradient is 0 or one overflows.
    """
    norms = {name: gradient.norm() for name, gradient in gradients.items()}
    total = sum(norms.values(), torch.tensor(torch.finfo(torch.float32).tiny))
    return {f"share_{name}": (norm / total).nan_to_num(0.0) for name, norm in norms.items()}
