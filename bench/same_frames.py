"""Did two decoders return the same frames? By mean differences, in levels of 0..255.

Decoders convert to RGB in slightly different ways, which costs a level or two; neighbouring frames of the
corpora differ by more. Some take another colour matrix or range than the stream's, which every frame shows
alike: that is an affine map of RGB, so `difference_but_colour` fits one per frame first. Twelve numbers
cannot turn one frame into another.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def difference(clip: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> float:
    """Largest mean absolute difference of a frame of two clips [T, H, W, 3]; infinite where shapes differ."""
    if clip.shape != wanted.shape:
        return float("inf")
    return max(
        float(np.abs(image.astype(np.int16) - other).mean())
        for image, other in zip(clip, wanted, strict=True)
    )


def difference_but_colour(clip: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> float:
    """The same after the affine map of RGB that brings each frame closest in least squares."""
    if clip.shape != wanted.shape:
        return float("inf")
    worst = 0.0
    # Every fourth line and column tells frames apart as well, sixteen times as fast.
    for image, other in zip(clip[:, ::4, ::4], wanted[:, ::4, ::4], strict=True):
        pixels = np.ones((image.shape[0] * image.shape[1], 4), np.float32)
        pixels[:, :3] = image.reshape(-1, 3)
        aim = other.reshape(-1, 3).astype(np.float32)
        fit = np.linalg.lstsq(pixels.T @ pixels, pixels.T @ aim, rcond=None)[0]
        plain = float(np.abs(pixels[:, :3] - aim).mean())  # rounding can make the fit the worse of both
        worst = max(worst, min(plain, float(np.abs(pixels @ fit - aim).mean())))
    return worst
