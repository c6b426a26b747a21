"""From probabilities of windows to what is shown when: cells, smoothing, stretches of one class.

An instant belongs to the window whose middle is nearest, as far as that window saw it:

    window 0   [-------|-------]
    window 1        [-------|-------]
    window 2             [-------|-------]
    cells      [         |    |          ]

What a window that cannot be read stands for is a gap: its neighbours do not fill it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from surgrec.evaluation.window_plan import Window, WindowPlan

Smoothing = Literal["median", "mean"]
SMOOTHINGS: Final[tuple[Smoothing, ...]] = get_args(Smoothing)
TOUCHING: Final = 1e-6
"""Seconds between cells that follow one another."""

NO_FRAME: Final = "the video has no frame there"

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Seconds [start, end) of one class, and its mean probability there. label: None for a gap, where reason
    says why nothing could be read."""

    start: float
    end: float
    label: int | None
    probability: float | None
    reason: str = ""


def cells_of(windows: Sequence[Window]) -> Floats:
    """float64 [n, 2]: seconds [start, end) that each window stands for."""
    starts, ends = (np.array([getattr(each, name) for each in windows]) for name in ("start", "end"))
    middles = (starts + ends) / 2
    borders = (middles[:-1] + middles[1:]) / 2
    lows = np.maximum(starts, np.append(-np.inf, borders))
    highs = np.minimum(ends, np.append(borders, np.inf))
    return np.stack([lows, highs], 1).round(6)


def smooth(
    plan: WindowPlan, shares: Floats, present: NDArray[np.bool_], kind: Smoothing, seconds: float
) -> Floats:
    """Probabilities [n, C] of windows, each the median or mean of those whose middles lie at most seconds / 2
    away, and of which no gap or hole parts it. Rows of windows that are not present stay as they are.

    The median is taken class by class, and scaled to a sum of 1; where it is 0 for all classes, which takes
    three of them that are equally often certain, the mean stands for it.
    """
    middles = np.array([(each.start + each.end) / 2 for each in plan.windows])
    gaps = np.cumsum(~present) + np.searchsorted([end for _, end in plan.holes], middles)
    found = shares.copy()
    for at in np.flatnonzero(present):
        low = np.searchsorted(middles, middles[at] - seconds / 2 - TOUCHING)
        high = np.searchsorted(middles, middles[at] + seconds / 2 + TOUCHING)
        near = np.arange(low, high)
        near = near[(gaps[near] == gaps[at]) & present[near]]
        value = np.median(shares[near], 0) if kind == "median" else shares[near].mean(0)
        if not value.sum() > 0:
            value = shares[near].mean(0)
        found[at] = value / value.sum()
    return found


def stretches_of(plan: WindowPlan, shares: Floats, missing: dict[int, str]) -> list[Stretch]:
    """What is shown when, in order. shares: float64 [n, C]. missing: windows that could not be read, with the
    reason; a gap has that of its first one. Holes of the video are gaps, too."""
    found: list[Stretch] = []
    weights: list[float] = []
    for number, (low, high) in enumerate(cells_of(plan.windows).tolist()):
        if high - low <= TOUCHING:
            continue
        label = None if number in missing else int(shares[number].argmax())
        share = None if label is None else float(shares[number, label])
        reason = missing.get(number, "")
        last = found[-1] if found else None
        if last is None or last.label != label or low - last.end > TOUCHING:
            found.append(Stretch(low, high, label, share, reason))
            weights.append(high - low)
            continue
        weight = high - low
        if share is not None and last.probability is not None:
            share = (last.probability * weights[-1] + share * weight) / (weights[-1] + weight)
        weights[-1] += weight
        found[-1] = Stretch(last.start, high, label, share, last.reason)
    found += [Stretch(start, end, None, None, NO_FRAME) for start, end in plan.holes]
    return sorted(found, key=lambda stretch: stretch.start)
