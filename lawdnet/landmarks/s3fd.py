"""Boxes from the outputs of S3FD (Zhang et al. 2017, arXiv 1708.05237), the detector of the package face-alignment.

The package decodes candidate by candidate in Python, each for all images of the batch, while a GPU waits. Here an image
has its own candidates, so that its boxes do not depend on the batch.

Shape letters: B images, H W images or the cells of a level, N candidates, K boxes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lawdnet.types import Float32, UInt8

MEAN = (104.0, 117.0, 123.0)
"""Of the training images, BGR."""
CANDIDATE = 0.05
"""Score above which a cell is looked at."""
SAME_FACE_IOU = 0.3
STRIDES = (4, 8, 16, 32, 64, 128)
"""Of the levels, in px. The prior box of a cell has four times this side."""
VARIANCES = [0.1, 0.2]


def detect(network: Any, images_BHW3: UInt8, device: Any, min_score: float) -> list[Float32]:
    """Find the faces of images as `face_alignment.detection.sfd.SFDDetector.detect_from_batch` does.

    Args:
        network: `face_alignment.detection.sfd.net_s3fd.s3fd`.
        images_BHW3: RGB.
        device: of torch, where the network is.
        min_score: smallest score, 0 … 1.

    Returns:
        For each image K×5: x0 y0 x1 y1 in px, and the score.
    """
    import torch
    from face_alignment.detection.sfd.bbox import nms

    batch_B3HW = torch.from_numpy(images_BHW3[..., ::-1].transpose(0, 3, 1, 2).copy()).to(device).float()
    batch_B3HW -= torch.tensor(MEAN, device=device).view(1, 3, 1, 1)
    with torch.inference_mode():
        outputs = network(batch_B3HW)
    levels = [_candidates(outputs[2 * n], outputs[2 * n + 1], stride) for n, stride in enumerate(STRIDES)]
    image_N, boxes_N5 = (np.concatenate(parts) for parts in zip(*levels, strict=True))
    found = []
    for image in range(len(images_BHW3)):
        own_N5 = boxes_N5[image_N == image]
        best_K5 = own_N5[nms(own_N5, SAME_FACE_IOU)]
        found.append(best_K5[best_K5[:, 4] > min_score].astype(np.float32))
    return found


def _candidates(logits_B2HW: Any, offsets_B4HW: Any, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the image and the box, N×5, of every cell of a level that may be a face."""
    from face_alignment.detection.sfd.bbox import decode

    score_BHW = logits_B2HW.softmax(1)[:, 1]
    image_N, row_N, column_N = (score_BHW > CANDIDATE).nonzero(as_tuple=True)
    offsets_N4 = offsets_B4HW[image_N, :, row_N, column_N].cpu().numpy()
    score_N = score_BHW[image_N, row_N, column_N].cpu().numpy()
    centres_N2 = stride / 2 + np.stack([column_N.cpu().numpy(), row_N.cpu().numpy()], 1) * stride
    priors_N4 = np.concatenate([centres_N2, np.full_like(centres_N2, 4.0 * stride)], 1)
    return image_N.cpu().numpy(), np.concatenate([decode(offsets_N4, priors_N4, VARIANCES), score_N[:, None]], 1)
