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
    """A number for each of A audio clips; clips with the same number are equal to the last bit.

    It is a hash of 64 bits, the same on every rank: sorting out equal rows (`torch.unique`) makes the host wait.
    """
    bits_AK = (audio_AC9.float() + 0.0).flatten(1).view(torch.int32).long()  # + 0.0: there are two zeros
    place_K = torch.arange(1, bits_AK.shape[1] + 1, device=bits_AK.device)
    return _mixed(bits_AK * 0x9E3779B1 + _mixed(place_K)).sum(1)


def _mixed(number: Tensor) -> Tensor:
    """Mix the bits of 64-bit integers (the finaliser of SplitMix64, with arithmetic shifts)."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        number = (number ^ (number >> shift)) * factor
    return number ^ (number >> 31)


NEAR_FRAMES = 5
"""Audio that begins fewer frames from the right one is nearly right itself."""


def rivals(kind_A: Tensor, origin_A2: Tensor | None, faces: int, rows: slice = slice(None)) -> Tensor:
    """B×A, or some of its rows: the pairs that are compared, which are a face's own audio and what is wrong for it.

    Audio that is equal to the right one (a clip drawn twice, digital silence) is not wrong. With `origin_A2` only other
    moments of the same segment are, `NEAR_FRAMES` away or more: whoever must also tell voices and faces apart learns
    that first, and learns little of the moment.

    Args:
        kind_A: numbers of the audio clips as `equal_audio` gives them.
        origin_A2: recording and first frame of each audio clip.
        faces: B; face b belongs to audio b.
        rows: a range of faces.
    """
    number_A = torch.arange(len(kind_A), device=kind_A.device)
    number_b = number_A[:faces][rows]
    are_rivals_bA = kind_A[number_b, None] != kind_A[None]
    if origin_A2 is not None:
        recording_A, start_A = origin_A2.unbind(1)
        are_rivals_bA &= recording_A[number_b, None] == recording_A[None]
        are_rivals_bA &= (start_A[number_b, None] - start_A[None]).abs() >= NEAR_FRAMES
    return are_rivals_bA | (number_b[:, None] == number_A[None])


def contrast(score_BA: Tensor, back_BB: Tensor, rivals_BA: Tensor, first: int = 0, sharpness: float = 12.0) -> Tensor:
    """InfoNCE: each face must pick its own audio out of its rivals, and each of the first B audio clips its own face.

    Rows may be left out: the loss of all is the sum over their parts.

    Args:
        score_BA: cosines of faces with audio; face b belongs to audio b.
        back_BB: cosines of the first B audio clips with the faces.
        rivals_BA: see `rivals`.
        first: number of the first row.
        sharpness: inverse temperature of the softmax.

    Returns:
        Sum over the rows of the mean of both losses.
    """
    own_B = torch.arange(first, first + len(score_BA), device=score_BA.device)
    total = score_BA.new_zeros(())
    for score in (score_BA, back_BB):
        logit = (sharpness * score).masked_fill(~rivals_BA[:, : score.shape[1]], -torch.inf)
        total = total + F.cross_entropy(logit, own_B, reduction="sum")
    return total / 2


def contrast_chance(rivals_BA: Tensor, faces: int) -> Tensor:
    """The value of `contrast` for a network that scores all pairs alike; of these rows, as their sum.

    A softmax over n equal scores gives each 1/n, a cross-entropy of ln n: with A rivals for each audio and B for each
    face, (ln A + ln B) / 2 in the mean. With one wrong clip the first is ln 2, the 0.69 of single pairs.
    """
    return (rivals_BA.sum(1).log().sum() + rivals_BA[:, :faces].sum(1).log().sum()) / 2


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
