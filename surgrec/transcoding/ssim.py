"""Structural similarity of two pictures.

Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural
similarity", IEEE TIP 2004, equation 13, over windows of 8x8 pixels, 4 apart, in which all pixels weigh alike.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

BLOCK: Final = 4
LUMA_STEADIER: Final = (0.01 * 255) ** 2
CONTRAST_STEADIER: Final = (0.03 * 255) ** 2
PLANE_WEIGHTS: Final = (4 / 6, 1 / 6, 1 / 6)
"""Of Y, U and V: their shares of the samples in 4:2:0."""

PictureYuv = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]


def ssim(one: PictureYuv, other: PictureYuv) -> float:
    """Mean over all windows of Y, U and V, weighted by their samples. Each picture: uint8 [H, W], twice
    [H/2, W/2], sides of at least 8 pixels; both of one size."""
    planes = zip(PLANE_WEIGHTS, one, other, strict=True)
    return float(sum(weight * ssim_plane(a, b) for weight, a, b in planes))


def ssim_plane(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Mean over the windows of one plane; a remainder of up to 3 rows or columns is left out."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    count = (2 * BLOCK) ** 2
    mean_a, mean_b = _window_sums(a) / count, _window_sums(b) / count
    variance_a = _window_sums(a * a) / count - mean_a**2
    variance_b = _window_sums(b * b) / count - mean_b**2
    covariance = _window_sums(a * b) / count - mean_a * mean_b
    likeness = (2 * mean_a * mean_b + LUMA_STEADIER) * (2 * covariance + CONTRAST_STEADIER)
    bound = (mean_a**2 + mean_b**2 + LUMA_STEADIER) * (variance_a + variance_b + CONTRAST_STEADIER)
    return float((likeness / bound).mean())


def _window_sums(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    rows, columns = plane.shape[0] // BLOCK, plane.shape[1] // BLOCK
    blocks = plane[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK).sum((1, 3))
    return blocks[:-1, :-1] + blocks[1:, :-1] + blocks[:-1, 1:] + blocks[1:, 1:]
