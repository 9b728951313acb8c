"""Similarity of two images.

Shape letters: H W image height and width, C channels.
"""

from __future__ import annotations

import cv2
import numpy as np

from lawdnet.types import Float32, UInt8

MAX_PSNR = 100.0
"""PSNR in dB of equal images; fewer than 600 million values that differ at all stay below it."""
SSIM_SIGMA, SSIM_RADIUS = 1.5, 5
SSIM_K1, SSIM_K2 = 0.01, 0.03


def psnr(first_HWC: UInt8, second_HWC: UInt8) -> float:
    """Return the peak signal-to-noise ratio in dB: 10·log10(255² / mean squared difference), at most 100.

    Raises:
        ValueError: the images differ in size or are not uint8.
    """
    _check(first_HWC, second_HWC)
    count = first_HWC.size
    squared = cv2.norm(first_HWC, second_HWC, cv2.NORM_L2SQR) / count
    return MAX_PSNR if squared == 0 else min(MAX_PSNR, 10 * float(np.log10(255**2 / squared)))


def ssim(first_HWC: UInt8, second_HWC: UInt8) -> float:
    """Return the structural similarity (Wang et al. 2004), averaged over pixels and channels; 1 for equal images.

    It uses a Gaussian window of sigma 1.5 and 11×11 px, K1 = 0.01, K2 = 0.03 and population variances, without the 5 px
    at the border: `skimage.metrics.structural_similarity(gaussian_weights=True, use_sample_covariance=False)`.

    Raises:
        ValueError: the images differ in size, are not uint8, or are smaller than 11×11 px.
    """
    _check(first_HWC, second_HWC)
    if min(first_HWC.shape[:2]) < 2 * SSIM_RADIUS + 1:
        raise ValueError(f"images of shape {first_HWC.shape}: SSIM needs at least 11×11 px")
    x, y = first_HWC.astype(np.float32), second_HWC.astype(np.float32)
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (SSIM_K1 * 255) ** 2, (SSIM_K2 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return float(similarity.mean(dtype=np.float64))


def _blur(values: Float32) -> Float32:
    size = 2 * SSIM_RADIUS + 1
    inner = slice(SSIM_RADIUS, -SSIM_RADIUS)
    return np.asarray(cv2.GaussianBlur(values, (size, size), SSIM_SIGMA)[inner, inner], dtype=np.float32)


def _check(first_HWC: UInt8, second_HWC: UInt8) -> None:
    if first_HWC.shape != second_HWC.shape or first_HWC.dtype != np.uint8 or second_HWC.dtype != np.uint8:
        shapes = f"{first_HWC.dtype} {first_HWC.shape} and {second_HWC.dtype} {second_HWC.shape}"
        raise ValueError(f"images: {shapes}, expected uint8 of equal size")
