"""Numbers of a picture that say how it was taken: light, sharpness, motion, combs, colour, flatness.

Pure functions on uint8 arrays. `inside` is a mask of what counts. Luma is 0 black to 255 white. Small
pictures have a longest side of 320, so that what is called sharp does not depend on the recorder.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

BLACK: Final = 24
DARK: Final = 48
WHITE: Final = 248
CONTRAST: Final = 30
"""Levels between the darkest and the lightest pixel of a window from which on it has an edge to judge."""
WINDOW: Final = 8
AROUND: Final = 6
COMB: Final = 10
"""Levels by which lines must alternate to count as combed (tritical's TFM calls it cthresh)."""
COLOURED: Final = 40
"""Levels between the largest and smallest of red, green and blue from which on a pixel has a hue."""

Luma = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def luma_of(rgb: NDArray[np.uint8]) -> Luma:
    """uint8 [..., H, W] of RGB uint8 [..., H, W, 3], by the weights of BT.601."""
    weighted = rgb[..., 0] * np.uint16(77) + rgb[..., 1] * np.uint16(150) + rgb[..., 2] * np.uint16(29)
    return (weighted >> 8).astype(np.uint8)


def light(luma: Luma, inside: Mask) -> tuple[float, float, float, float]:
    """Mean luma, and the shares of pixels that are black (< 24), dark (< 48) and white (>= 248)."""
    counts = np.bincount(luma[inside], minlength=256)
    total = max(1, int(counts.sum()))
    mean = float((counts * np.arange(256)).sum() / total)
    shares = counts[:BLACK].sum(), counts[:DARK].sum(), counts[WHITE:].sum()
    return mean, float(shares[0] / total), float(shares[1] / total), float(shares[2] / total)


@njit(cache=True, nogil=True)
def _apart(one, other):
    """Levels from one to the other."""
    return abs(np.int64(one) - np.int64(other))


@njit(cache=True, nogil=True)
def _alternates(five):
    """Whether five pixels in a row lie by turns on two levels."""
    outer, inner = np.int64(five[0]) + np.int64(five[4]), np.int64(five[1]) + np.int64(five[3])
    return abs(outer + 4 * np.int64(five[2]) - 3 * inner) > 6 * COMB


@njit(cache=True, nogil=True)
def sharpness(luma: Luma, inside: Mask) -> float:
    """How steep the steepest edges are, 0 (no edge) to 1 (from dark to light within one pixel).

    For each window of 8 x 8 pixels: the largest difference of neighbours in it over the contrast of the
    window and 6 pixels around it, where that is enough. A step blurred with a Gaussian of s pixels gives
    0.4 / s. The value is the mean over the steepest tenth of the windows, so that one plane in focus makes a
    picture sharp.
    """
    height, width = luma.shape
    found = np.empty((height // WINDOW + 1) * (width // WINDOW + 1), np.float64)
    count = 0
    for top in range(AROUND, height - WINDOW - AROUND + 1, WINDOW):
        for left in range(AROUND, width - WINDOW - AROUND + 1, WINDOW):
            low, high = np.uint8(255), np.uint8(0)
            whole = True
            for y in range(top - AROUND, top + WINDOW + AROUND):
                for x in range(left - AROUND, left + WINDOW + AROUND):
                    whole &= inside[y, x]
                    low, high = min(low, luma[y, x]), max(high, luma[y, x])
            contrast = _apart(high, low)
            if not whole or contrast < CONTRAST:
                continue
            steep = 0
            for y in range(top, top + WINDOW):
                for x in range(left, left + WINDOW):
                    here = luma[y, x]
                    steep = max(steep, _apart(luma[y, x + 1], here), _apart(luma[y + 1, x], here))
            found[count] = min(1.0, steep / contrast)
            count += 1
    if count == 0:
        return 0.0
    best = np.sort(found[:count])[-max(1, count // 10) :]
    return float(best.mean())


@njit(cache=True, nogil=True)
def flatness(luma: Luma, inside: Mask) -> float:
    """The share of windows of 8 x 8 pixels in which neighbours differ by under 1.5 levels on average."""
    height, width = luma.shape
    total, flat = 0, 0
    for top in range(0, height - WINDOW + 1, WINDOW):
        for left in range(0, width - WINDOW + 1, WINDOW):
            if not (inside[top, left] and inside[top + WINDOW - 1, left + WINDOW - 1]):
                continue
            change = 0
            for y in range(top, top + WINDOW - 1):
                for x in range(left, left + WINDOW - 1):
                    change += _apart(luma[y, x + 1], luma[y, x]) + _apart(luma[y + 1, x], luma[y, x])
            total += 1
            flat += change < 1.5 * 2 * (WINDOW - 1) ** 2
    return flat / total if total else 0.0


@njit(cache=True, nogil=True)
def motion(one: Luma, other: Luma, inside: Mask) -> float:
    """How much the most changed tenth of the picture changes, in levels.

    The 90th percentile, over blocks of 8 x 8, of the mean absolute difference: noise that the encoder leaves
    out of one picture gives little, and a clock in a corner of a still picture gives nothing.
    """
    height, width = one.shape
    found = np.empty((height // WINDOW + 1) * (width // WINDOW + 1), np.float64)
    count = 0
    for top in range(0, height - WINDOW + 1, WINDOW):
        for left in range(0, width - WINDOW + 1, WINDOW):
            if not (inside[top, left] and inside[top + WINDOW - 1, left + WINDOW - 1]):
                continue
            change = 0
            for y in range(top, top + WINDOW):
                for x in range(left, left + WINDOW):
                    change += _apart(one[y, x], other[y, x])
            found[count] = change / (WINDOW * WINDOW)
            count += 1
    return float(np.percentile(found[:count], 90)) if count else 0.0


@njit(cache=True, nogil=True)
def comb(luma: Luma, inside_rows: tuple[int, int], inside_columns: tuple[int, int]) -> float:
    """The share of pixels whose lines alternate as two fields of different times do, less what columns do.

    The metric of TFM (tritical): |a + 4c + e - 3(b + d)| > 6 * COMB for five pixels a..e one below the other.
    The same metric along lines is subtracted, since fine texture alternates both ways. At full height: a
    scaled picture has no combs. Rows and columns: first and end.
    """
    top, bottom = inside_rows
    left, right = inside_columns
    down, along, total = 0, 0, 0
    for y in range(top + 2, bottom - 2):
        for x in range(left + 2, right - 2, 3):
            down += _alternates(luma[y - 2 : y + 3, x])
            along += _alternates(luma[y, x - 2 : x + 3])
            total += 1
    return max(0.0, (down - along) / total) if total else 0.0


def colour(rgb: NDArray[np.uint8], inside: Mask) -> tuple[float, float, float]:
    """Colourfulness, the share of pixels that have a hue, and the share of those whose hue is warm.

    Colourfulness is that of Hasler and Suesstrunk, Measuring colourfulness in natural images, 2003. Warm is
    from pink over red to yellow (hue -40 to 65 degrees); 1 where fewer than 2 % of pixels have a hue.
    """
    red, green, blue = (rgb[..., channel][inside].astype(np.float32) for channel in range(3))
    if not red.size:
        return 0.0, 0.0, 1.0
    rg, yb = red - green, (red + green) / 2 - blue
    spread = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
    high = np.maximum(np.maximum(red, green), blue)
    chroma = high - np.minimum(np.minimum(red, green), blue)
    hued = chroma >= COLOURED
    share = float(hued.mean())
    if share < 0.02:
        return float(spread), share, 1.0
    # Within 65 degrees of red on the yellow side, 40 on the pink one.
    warm = (red == high) & (green - blue <= chroma) & (blue - green <= chroma * (40 / 60))
    warm |= (green == high) & (red - blue >= chroma * (55 / 60))
    return float(spread), share, float(warm[hued].mean())


def texture(luma: Luma, inside: Mask) -> float:
    """Mean absolute difference of horizontal neighbours, in levels."""
    both = inside[:, 1:] & inside[:, :-1]
    change = np.abs(luma[:, 1:].astype(np.int16) - luma[:, :-1])
    return float(change[both].mean()) if both.any() else 0.0
