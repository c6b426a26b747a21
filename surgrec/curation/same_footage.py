"""Whether two stretches of video show the same footage: by what changes in them, not by what they look like.

Segments of one scene look alike, but nothing moves twice in the same way. So of the samples of a few seconds
the mean is taken away, and what is left of both is correlated. Over windows of 3 s, measured on five real
videos and twelve drawn operations (25 minutes of copies), the lowest correlations are

    re-encoded at CRF 28 / 35 / 42   0.99 / 0.97 / 0.85 (1 % are below 0.89)
    rescaled, mirrored, 25 -> 30 fps 0.98, 0.99, 0.99
    2.5 % or 5 % cropped from each side 0.96, 0.93
    trimmed by 33 frames, a logo     0.95, 0.98

and the highest between other times of one video are 0.73 (an eye under a fixed microscope), 0.64, 0.56. AGREE
lies between.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from surgrec.curation.fingerprint import RATE, SIDE, dct_rows

WINDOW: Final = 3 * RATE
"""Samples over which is correlated."""
AGREE: Final = 0.85
"""Correlation from which on two windows show the same."""
LONG: Final = 5 * RATE
"""Samples of a stretch from which on AGREE is enough."""
SURE: Final = 0.92
"""Mean correlation that a shorter stretch needs. Of those of bench/duplicates_found.py, seed 0, shorter true
ones have 0.94 and more; false ones have up to 0.90, and 18 samples at most."""
STILL: Final = 0.02
"""Mean square of what changes in a window, in levels, weighted by frequency, below which nothing moves."""
BRIDGED: Final = 5 * RATE
"""Samples without agreement between two stretches of the same lag that are taken to be the same footage,
too."""
CROPS: Final = (0.0, 0.025, 0.05)
"""Shares of the picture's height and width, from each side, by which one of two may be cropped."""
UNLIKE: Final = 0.35
"""Correlation of uncropped windows below which cropping is not tried: 5 % from each side leave above 0.5."""
LAG_STEP: Final = 0.25
"""Samples; finer lags are interpolated."""
_SHIFTS: Final = np.arange(-2, 2 + LAG_STEP, LAG_STEP)
COMPARED: Final = 8
"""Frequencies of each direction that are compared; those above only serve to crop."""

_VERTICAL, _HORIZONTAL = np.mgrid[:SIDE, :SIDE]
_USED: Final = ((_VERTICAL + _HORIZONTAL > 0) & (_VERTICAL < COMPARED) & (_HORIZONTAL < COMPARED)).ravel()
_WEIGHT: Final = np.hypot(_VERTICAL, _HORIZONTAL).ravel().astype(np.float32)
MIRROR: Final = np.where(_HORIZONTAL % 2, -1, 1).ravel().astype(np.float32)
"""float32 [SIDE * SIDE]: times this, samples are those of the picture mirrored left to right."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Match:
    """Samples [start, end) of video `one` show what samples from start + lag on of video `other` show,
    mirrored left to right if so. score: mean correlation of its windows."""

    one: int
    other: int
    start: int
    end: int
    lag: float
    mirrored: bool
    score: float


@dataclass(frozen=True, slots=True)
class _Look:
    """How two videos come to look alike: shares by which they are cropped, and the lag in samples."""

    crop_one: float
    crop_other: float
    lag: float


_CROPPED: Final = [(a, b) for a, b in product(CROPS, CROPS) if a == 0 or b == 0]


def features(samples: NDArray[Any], crop: float = 0.0, mirrored: bool = False) -> Floats:
    """float32 [S, 63]: of the picture cropped from each side, and mirrored; each frequency weighted by
    itself, as pictures have less of the higher ones."""
    found: Floats = samples.astype(np.float32)
    if crop:
        by = _crop(crop)
        found = np.matmul(by @ found.reshape(-1, SIDE, SIDE), by.T, dtype=np.float32).reshape(len(found), -1)
    if mirrored:
        found = found * MIRROR
    return np.ascontiguousarray((found * _WEIGHT)[:, _USED])


def correlations(one: Floats, other: Floats, window: int) -> NDArray[np.float64]:
    """float64 [S - window + 1]: of the changes in each window of two equally long rows of features; 0 where
    one of them stands still."""
    if len(one) < window:
        return np.zeros(0)
    sum_one, sum_other = _window_sums(one, window), _window_sums(other, window)

    def product_of(a: Floats, b: Floats, sums_a: Any, sums_b: Any) -> NDArray[np.float64]:
        both = _window_sums((a * b).sum(1, keepdims=True), window)[:, 0]
        found: NDArray[np.float64] = both - (sums_a * sums_b).sum(1) / window
        return found

    squares = product_of(one, one, sum_one, sum_one), product_of(other, other, sum_other, sum_other)
    moving = np.minimum(*squares) > STILL * window
    size = np.sqrt(np.where(moving, squares[0] * squares[1], 1.0))
    return np.where(moving, product_of(one, other, sum_one, sum_other) / size, 0.0)


def follow(
    numbers: tuple[int, int],
    one: NDArray[Any],
    other: NDArray[Any],
    places: list[int],
    lag: int,
    mirrored: bool,
) -> list[Match]:
    """The stretches in which two videos agree at about this lag, in samples, if they do around one of
    `places`, samples of `one`. numbers: of the two videos."""
    look = max((_look_at(one, other, place, lag, mirrored) for place in places), key=lambda found: found[0])
    if look[0] < AGREE:
        return []
    how = look[1]
    first = max(0, int(np.ceil(-how.lag)))
    end = min(len(one), int(np.floor(len(other) - 1 - how.lag)) + 1)
    if end - first < WINDOW:
        return []
    a = features(one[first:end], how.crop_one, mirrored)
    b = features(_shifted(other, first + how.lag, end - first), how.crop_other)
    near = correlations(a, b, WINDOW)
    agree = np.flatnonzero(near >= AGREE)
    if not len(agree):
        return []
    breaks = np.flatnonzero(np.diff(agree) > WINDOW + BRIDGED)
    found = []
    for start, last in zip(
        np.append(agree[0], agree[breaks + 1]), np.append(agree[breaks], agree[-1]), strict=True
    ):
        inside = near[start : last + 1]
        score = float(inside[inside >= AGREE].mean())
        if score >= SURE or last - start + WINDOW >= LONG:
            found.append(
                Match(*numbers, first + int(start), first + int(last) + WINDOW, how.lag, mirrored, score)
            )
    return found


def _look_at(
    one: NDArray[Any], other: NDArray[Any], place: int, lag: int, mirrored: bool
) -> tuple[float, _Look]:
    """The best correlation of the window around a sample, over all lags near by and ways to crop, and
    which."""
    nothing = (-1.0, _Look(0.0, 0.0, float(lag)))
    start = max(0, min(place - WINDOW // 2, len(one) - WINDOW))
    shifts = start + lag + _SHIFTS
    shifts = shifts[(shifts >= 0) & (np.ceil(shifts) + WINDOW <= len(other))]
    if len(one) < WINDOW or not len(shifts):
        return nothing
    whole = np.floor(shifts).astype(np.int64)
    rows = whole[:, None] + np.arange(WINDOW)
    part = (shifts - whole).astype(np.float32)[:, None, None]
    between = (1 - part) * other[rows] + part * other[np.minimum(rows + 1, len(other) - 1)]
    best = nothing
    for crop_one, crop_other in _CROPPED:
        a = _changes(features(one[start : start + WINDOW], crop_one, mirrored)[None])
        b = _changes(
            features(between.reshape(-1, between.shape[2]), crop_other).reshape(len(shifts), WINDOW, -1)
        )
        near = b @ a[0]
        k = int(near.argmax())
        if near[k] > best[0]:
            best = (float(near[k]), _Look(crop_one, crop_other, float(shifts[k]) - start))
        if best[0] < UNLIKE:
            break  # the first way is not to crop
    return best


def _changes(rows: Floats) -> Floats:
    """float32 [n, WINDOW * 63] of length 1 from features [n, WINDOW, 63]; 0 where nothing moves."""
    flat = (rows - rows.mean(1, keepdims=True)).reshape(len(rows), -1)
    square = (flat * flat).sum(1, keepdims=True)
    found: Floats = np.where(square > STILL * WINDOW, flat / np.sqrt(np.maximum(square, 1e-9)), 0)
    return found


def _shifted(rows: NDArray[Any], start: float, count: int) -> Floats:
    """`count` rows from a place between two on, interpolated."""
    whole = int(np.floor(start))
    part = np.float32(start - whole)
    found = rows[whole : whole + count].astype(np.float32)
    if part:
        found = (1 - part) * found + part * rows[whole + 1 : whole + 1 + count].astype(np.float32)
    return found


def _window_sums(rows: NDArray[Any], window: int) -> NDArray[np.float64]:
    total = np.zeros((len(rows) + 1, rows.shape[1]))
    np.cumsum(rows, axis=0, dtype=np.float64, out=total[1:])
    found: NDArray[np.float64] = total[window:] - total[:-window]
    return found


@cache
def _crop(share: float) -> Floats:
    """float32 [SIDE, SIDE]: from the coefficients of a line to those of the line with a share cut from both
    ends. What lies above SIDE frequencies is not known; of those below COMPARED it matters little."""
    size = 256
    place = share + (1 - 2 * share) * (np.arange(size) + 0.5) / size
    waves = np.cos(np.pi * np.arange(SIDE)[:, None] * place)
    waves *= np.where(np.arange(SIDE) > 0, 2**0.5, 1.0)[:, None]
    return (dct_rows(size) @ waves.T).astype(np.float32)
