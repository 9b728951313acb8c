"""From a frame to an upright face crop and back: fit, crop, paste. Building and inference share this file.

Shape letters: T video frames, H W height and width, K points; 33 a matrix that takes frame px to crop px,
as columns (x, y, 1). Pixel centres are at integers (see geometry).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lawdnet.face.geometry import crop_height, template_px
from lawdnet.face.points import ALIGN_POINTS
from lawdnet.types import Float32, UInt8

Matrix = NDArray[np.floating[Any]]

MIN_SPREAD_PX = 1e-2
"""Smallest root mean square distance of the points from their centre that still determines a pose."""
MIN_SCALE = 1e-4
"""Smallest scale (crop px per frame px) of a face; below it, a crop would span millions of frame px."""
SHRINK_BELOW = 0.6
"""Scale below which images are area-averaged first: linear interpolation reads two px per axis and would skip some."""
MARGIN_PX = 2
"""Width of the border read around a region, for the interpolation at its edge."""


def fit_all(points_T68x2: Float32, crop_width: int) -> Float32:
    """Fit the similarities (rotation, one scale, shift) that best map each frame's face to the template.

    In complex numbers a similarity is w = a z + b. Its least-squares solution over centred points is
    a = Σ w z̄ / Σ |z|² (Umeyama 1991 in two dimensions; never a reflection).

    Args:
        points_T68x2: iBUG points in frame px.
        crop_width: px.

    Returns:
        T×3×3 matrices, frame px → crop px; all NaN where the points are not finite, coincide or determine no scale.
    """
    points = np.asarray(points_T68x2, np.float64)[:, ALIGN_POINTS]
    template = template_px(crop_width).astype(np.float64) @ (1, 1j)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        z = points @ (1, 1j)
        z_mean = z.mean(1, keepdims=True)
        spread = np.square(np.abs(z - z_mean)).sum(1)
        a = ((template - template.mean()) * (z - z_mean).conj()).sum(1) / spread
        b = template.mean() - a * z_mean[:, 0]
        usable = np.isfinite(a + b) & (spread > len(ALIGN_POINTS) * MIN_SPREAD_PX**2) & (np.abs(a) > MIN_SCALE)
    rows = [[a.real, -a.imag, b.real], [a.imag, a.real, b.imag], [0 * a.real, 0 * a.real, 0 * a.real + 1]]
    matrix_T33 = np.moveaxis(np.array(rows), -1, 0)
    matrix_T33[~usable] = np.nan
    return matrix_T33.astype(np.float32)


def transform_points(points_K2: NDArray[Any], matrix_33: NDArray[Any]) -> Float32:
    """Transform points …×K×2 by a 3×3 matrix, or T×K×2 by T×3×3 (each frame by its own matrix)."""
    matrix = np.asarray(matrix_33, np.float64)
    shift = matrix[:2, 2] if matrix.ndim == 2 else matrix[..., None, :2, 2]
    moved = np.asarray(points_K2, np.float64) @ matrix[..., :2, :2].swapaxes(-1, -2) + shift
    return moved.astype(np.float32)


def scale_matrix(matrix_33: NDArray[Any], from_width: int, to_width: int) -> Float32:
    """Return the matrix (or T matrices) for the same crop at another width: x' = (x + 0.5) s - 0.5, s = to / from.

    Fitting at `to_width` gives another result: the published template is centred on W/2, half a px off the middle.
    """
    s = to_width / from_width
    resize = np.array([[s, 0, (s - 1) / 2], [0, s, (s - 1) / 2], [0, 0, 1]])
    return (resize @ np.asarray(matrix_33, np.float64)).astype(np.float32)


def crop_face(frame_HW3: UInt8, matrix_33: Float32, crop_width: int) -> UInt8:
    """Crop the aligned face from a frame; where the crop leaves the frame, the edge is repeated.

    Args:
        frame_HW3: uint8.
        matrix_33: frame px → crop px, for a crop of this width.
        crop_width: px; the crop is 1.3 times as high.

    Returns:
        uint8 crop, crop_height(crop_width) × crop_width × 3; area-averaged first if the face is much larger.

    Raises:
        ValueError: the matrix is not finite or cannot be inverted.
    """
    size = (crop_height(crop_width), crop_width)
    crop: UInt8 = _warp(frame_HW3, _checked(matrix_33), size, cv2.BORDER_REPLICATE)
    return crop


def part_of_crop(matrix_33: Matrix, x: float, y: float) -> Float32:
    """Return the matrix for the part of a crop that begins at column x and row y of it."""
    return (_shift(-x, -y) @ np.asarray(matrix_33, np.float64)).astype(np.float32)


def paste_face(
    frame_HW3: UInt8, crop_HW3: UInt8, matrix_33: Float32, alpha_HW: Float32, *, in_place: bool = False
) -> UInt8:
    """Paste a crop back into its frame; every frame px looks up its value in the crop, so there are no holes.

    Args:
        frame_HW3: uint8; changed only `in_place`.
        crop_HW3: uint8, the new face.
        matrix_33: frame px → crop px, as given to `crop_face`.
        alpha_HW: opacity of the crop's px in [0, 1]; it is 0 outside the crop.
        in_place: paste into the given frame instead of a copy.

    Returns:
        A frame identical to the old one wherever the opacity is 0.

    Raises:
        ValueError: the matrix is not finite or cannot be inverted, or alpha and crop differ in size.
    """
    if crop_HW3.shape[:2] != alpha_HW.shape:
        raise ValueError(f"alpha: shape {alpha_HW.shape}, expected that of the crop, {crop_HW3.shape[:2]}")
    to_frame = np.linalg.inv(_checked(matrix_33))
    pasted = frame_HW3 if in_place else frame_HW3.copy()
    x, y, width, height = cv2.boundingRect((alpha_HW > 0).astype(np.uint8))
    # one more crop px on each side, because interpolated opacity reaches that far
    box_to_frame = to_frame @ _shift(x - 1, y - 1)
    x0, y0, x1, y1 = _bounds(box_to_frame, (height + 2, width + 2), frame_HW3.shape[:2])
    if not width or x0 >= x1 or y0 >= y1:
        return pasted
    to_region = _shift(-x0, -y0) @ to_frame
    size = (y1 - y0, x1 - x0)
    face = _warp(crop_HW3, to_region, size, cv2.BORDER_REPLICATE)
    alpha = _warp(np.asarray(alpha_HW, np.float32), to_region, size, cv2.BORDER_CONSTANT)
    region = pasted[y0:y1, x0:x1]
    region[:] = cv2.blendLinear(face, region, alpha, 1 - alpha)
    return pasted


def _checked(matrix_33: Float32) -> Matrix:
    matrix = np.asarray(matrix_33, np.float64)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < MIN_SCALE**2:
        raise ValueError("matrix: must be a finite, invertible 3×3 matrix; a frame without a valid face has none")
    return matrix


def _shift(x: float, y: float) -> Matrix:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def _bounds(matrix_33: Matrix, size: tuple[int, ...], inside: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the box x0, y0, x1, y1 of a mapped image plus a margin, clipped to another; empty if they are apart."""
    height, width = size
    corners = np.array([(x, y) for x in (-0.5, width - 0.5) for y in (-0.5, height - 0.5)])
    mapped = transform_points(corners, matrix_33)
    low = np.floor(mapped.min(0)) - MARGIN_PX
    high = np.ceil(mapped.max(0)) + MARGIN_PX + 1
    return np.clip([*low, *high], 0, [*inside[::-1], *inside[::-1]]).astype(np.int64)


def _warp(image: NDArray[Any], matrix_33: Matrix, size: tuple[int, int], border: int) -> NDArray[Any]:
    """Warp `image` into a new one of (height, width) without holes or aliasing; the matrix maps old px to new px."""
    scale = np.sqrt(abs(np.linalg.det(matrix_33)))
    shrink = round(1 / scale) if scale < SHRINK_BELOW else 1
    height, width = image.shape[:2]
    x0, y0, x1, y1 = _bounds(np.linalg.inv(matrix_33), size, (height, width))
    x0, y0 = min(x0, width - 1), min(y0, height - 1)
    part = image[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
    matrix = matrix_33 @ _shift(x0, y0)
    if shrink > 1:
        bottom = -part.shape[0] % shrink
        right = -part.shape[1] % shrink
        part = cv2.copyMakeBorder(part, 0, bottom, 0, right, border)
        part = cv2.resize(part, (part.shape[1] // shrink, part.shape[0] // shrink), interpolation=cv2.INTER_AREA)
        half = (shrink - 1) / 2  # the first small px lies in the middle of the px that it averages
        matrix = matrix @ np.array([[shrink, 0, half], [0, shrink, half], [0, 0, 1]])
    return cv2.warpAffine(part, matrix[:2], size[::-1], flags=cv2.INTER_LINEAR, borderMode=border)
