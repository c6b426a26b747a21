"""A descriptor of pictures that needs no weights: where which colours, edges and coarse shapes are.

Five parts of known length, each of unit length and then weighted: colour moments on a grid, a histogram of
hue and saturation, histograms of oriented gradients (Dalal and Triggs, 2005), the lowest coefficients of the
brightness's cosine transform, and the energy of gradients at four scales. Meant for grouping segments before
there is a model; a model's features are better (`--embedder`).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

SIZE: Final = 64
"""Pictures are scaled to SIZE x SIZE."""
GRID: Final = 4
HUES, SATURATIONS = 8, 4
ORIENTATIONS: Final = 8
WAVES: Final = 8
SCALES: Final = 4
WEIGHTS: Final = (1.0, 1.0, 1.0, 0.7, 0.7)
"""Of colour moments, hue and saturation, gradients, waves, energies."""
DIMENSIONS: Final = (
    2 * 3 * GRID**2 + HUES * SATURATIONS + ORIENTATIONS * GRID**2 + WAVES**2 + SCALES * GRID**2
)
"""384"""


def describe(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The mean descriptor of some pictures of one segment, of unit length: float32 [DIMENSIONS].

    Black pictures, of which every number is 0, get the direction of all numbers alike, so that they are like
    each other and can be grouped.

    pictures: uint8 [K, h, w, 3], RGB, K at least 1. Raises ValueError for another shape or type.
    """
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3 or not pictures.size:
        raise ValueError(f"pictures are {pictures.dtype} {pictures.shape}; uint8 [K, h, w, 3] is needed")
    mean = np.mean([_describe_one(picture) for picture in pictures], axis=0)
    length = np.linalg.norm(mean)
    direction = mean / length if length > 0 else np.full(DIMENSIONS, DIMENSIONS**-0.5)
    found: NDArray[np.float32] = direction.astype(np.float32)
    return found


def _describe_one(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    small = _scaled(picture).astype(np.float64) / 255
    luma = small @ np.array([0.299, 0.587, 0.114])
    opponent = np.stack(
        [luma, small[..., 0] - small[..., 1], 0.5 * (small[..., 0] + small[..., 1]) - small[..., 2]], -1
    )
    parts = (
        _moments(opponent),
        _hue_and_saturation(small),
        _gradients(luma),
        _waves(luma),
        _energies(luma),
    )
    return np.concatenate([weight * _unit(part) for weight, part in zip(WEIGHTS, parts, strict=True)])


def _scaled(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    import cv2

    return np.asarray(cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA), np.uint8)


def _unit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.linalg.norm(values)
    return values / length if length > 1e-12 else np.zeros_like(values)


def _cells(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[SIZE, SIZE, ...] as [GRID * GRID, pixels of a cell, ...]."""
    cell = SIZE // GRID
    split = values.reshape(GRID, cell, GRID, cell, *values.shape[2:])
    return np.moveaxis(split, 2, 1).reshape(GRID * GRID, cell * cell, *values.shape[2:])


def _moments(opponent: NDArray[np.float64]) -> NDArray[np.float64]:
    cells = _cells(opponent)
    return np.concatenate([cells.mean(1).ravel(), cells.std(1).ravel()])


def _hue_and_saturation(small: NDArray[np.float64]) -> NDArray[np.float64]:
    """Square roots of a histogram in which each pixel counts by its saturation and value."""
    most, least = small.max(-1), small.min(-1)
    range_ = most - least
    there = range_ > 1e-6
    red, green, blue = np.moveaxis(small, -1, 0)
    safe = np.where(there, range_, 1.0)
    hue = np.where(
        most == red,
        (green - blue) / safe % 6,
        np.where(most == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    saturation = np.where(most > 0, range_ / np.where(most > 0, most, 1.0), 0.0)
    place = (hue / 6 * HUES).astype(int) % HUES * SATURATIONS
    place += np.minimum((saturation * SATURATIONS).astype(int), SATURATIONS - 1)
    return np.sqrt(np.bincount(place.ravel(), weights=most.ravel(), minlength=HUES * SATURATIONS))


def _slopes(luma: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    down: NDArray[np.float64] = np.gradient(luma, axis=0)
    right: NDArray[np.float64] = np.gradient(luma, axis=1)
    return down, right


def _gradients(luma: NDArray[np.float64]) -> NDArray[np.float64]:
    down, right = _slopes(luma)
    strength = _cells(np.hypot(down, right))
    angle = _cells(np.arctan2(down, right) % np.pi)
    place = np.minimum((angle / np.pi * ORIENTATIONS).astype(int), ORIENTATIONS - 1)
    rows = np.arange(GRID * GRID)[:, None] * ORIENTATIONS + place
    counts = np.bincount(rows.ravel(), weights=strength.ravel(), minlength=GRID * GRID * ORIENTATIONS)
    return np.sqrt(counts)


def _waves(luma: NDArray[np.float64]) -> NDArray[np.float64]:
    """The WAVES x WAVES lowest coefficients of the cosine transform, the mean left out (0)."""
    at = (np.arange(SIZE) + 0.5) * np.pi / SIZE
    basis = np.cos(np.outer(np.arange(WAVES), at))
    found = basis @ (luma - luma.mean()) @ basis.T
    found[0, 0] = 0.0
    return np.sign(found.ravel()) * np.sqrt(np.abs(found.ravel()))


def _energies(luma: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean strength of gradients in each cell, at SCALES scales, each half as fine as the one before."""
    found = []
    current = luma
    for _ in range(SCALES):
        down, right = _slopes(current)
        strength = np.hypot(down, right)
        cell = len(strength) // GRID
        found.append(strength.reshape(GRID, cell, GRID, cell).mean((1, 3)).ravel())
        half = len(current) // 2
        current = current.reshape(half, 2, half, 2).mean((1, 3))
    return np.concatenate(found)
