"""Which frames of a source a proxy shows, and when.

A source of 25 frames a second with a gap, a grid of 6.25 a second, and the frame shown at each grid time:

    source  0   1   2   3   4   5                   6   7   8   9
    grid    |               |               |               |
    proxy   0               4               5               6 ...

Each grid time gets the last frame at or before it, by the rule of loaders/clip_plan.py; half a tick of the
source's time base is allowed for rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

SLOWER: Final = 0.995
"""A source below this share of the asked rate is slower than it; above, it is the same rate, rounded."""
MAX_TIMESCALE: Final = 2**31 - 1
"""MP4 stores ticks per second in 32 bits."""
FINE_TIME_BASE: Final = Fraction(1, 1_000_000)


@dataclass(frozen=True, slots=True)
class FrameGrid:
    """The frames of a proxy.

    positions: int64 [M], display positions in the source, non-decreasing. times: int64 [M], pts in the
    proxy, rising from 0, in units of `time_base` seconds. `repeats` frames show what the one before shows.
    """

    positions: NDArray[np.int64]
    times: NDArray[np.int64]
    time_base: Fraction
    rate: Fraction
    repeats: int
    note: str


def make_grid(pts: NDArray[np.int64], time_base: Fraction, source_rate: float, rate: Fraction) -> FrameGrid:
    """pts: int64 [N], of the source in display order, non-decreasing, in units of `time_base` seconds.

    source_rate: frames per second that the index gives. rate: frames per second of the proxy; 0 keeps the
    source's frames at their own times, less the first one's. So does a source that is slower than `rate`,
    whose frames would be shown twice otherwise. Raises ValueError for a source without frames.
    """
    if len(pts) == 0:
        raise ValueError("a source without frames")
    if rate == 0 or source_rate < SLOWER * float(rate):
        note = "" if rate == 0 else f"slower than {float(rate):g} frames/s: all frames, at their own times"
        return _own_times(pts, time_base, source_rate, note)
    elapsed = (pts - pts[0]).astype(np.float64)
    step = float(1 / (time_base * rate))
    count = int((elapsed[-1] + 0.5) / step) + 1
    targets = np.arange(count) * step + 0.5
    targets = targets[targets <= elapsed[-1] + 0.5 + step / 2**20]
    positions = np.searchsorted(elapsed, targets, side="right") - 1
    repeats = int((np.diff(positions) == 0).sum())
    note = f"{repeats} frames repeat the one before: the source has gaps" if repeats else ""
    return FrameGrid(positions, np.arange(len(positions)), 1 / rate, rate, repeats, note)


def _own_times(pts: NDArray[np.int64], time_base: Fraction, source_rate: float, note: str) -> FrameGrid:
    # Of frames with one time stamp players show the last; times must rise in a proxy.
    last = np.flatnonzero(np.append(np.diff(pts) > 0, True))
    times = pts[last] - pts[0]
    if time_base.denominator > MAX_TIMESCALE:
        times = np.round(times * float(time_base / FINE_TIME_BASE)).astype(np.int64)
        time_base = FINE_TIME_BASE
    if len(last) < len(pts):
        note = "; ".join(filter(None, (note, f"{len(pts) - len(last)} frames share a time stamp: left out")))
    rate = Fraction(source_rate).limit_denominator(1001)
    return FrameGrid(last, times, time_base, rate, 0, note)
