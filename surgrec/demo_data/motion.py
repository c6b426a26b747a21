"""Smooth movement over time: cameras, instruments, breathing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SmoothPath:
    """A sum of K sinusoids in D dimensions: endless, smooth, never repeating."""

    centre: Floats
    """[D]"""
    amplitude: Floats
    """[K, D]"""
    speed: Floats
    """[K, D], radians a second."""
    phase: Floats
    """[K, D], radians."""

    def at(self, seconds: float) -> Floats:
        """Position at a time: float64 [D]."""
        return self.centre + (self.amplitude * np.sin(self.speed * seconds + self.phase)).sum(axis=0)


def smooth_path(
    rng: np.random.Generator,
    centre: tuple[float, ...],
    spread: tuple[float, ...],
    periods: tuple[float, float] = (2.5, 11.0),
    waves: int = 4,
) -> SmoothPath:
    """A path around `centre` that stays within `spread` of it, with periods of so many seconds."""
    shape = (waves, len(centre))
    weight = rng.uniform(0.4, 1.0, shape)
    weight /= weight.sum(axis=0)
    return SmoothPath(
        np.array(centre, dtype=np.float64),
        weight * np.array(spread, dtype=np.float64),
        2 * np.pi / rng.uniform(*periods, shape),
        rng.uniform(0, 2 * np.pi, shape),
    )


def smoothstep(value: float) -> float:
    """0 below 0, 1 above 1, and a cubic without corners between."""
    x = min(max(value, 0.0), 1.0)
    return x * x * (3 - 2 * x)


def presence(seconds: float, start: float, end: float, ramp: float) -> float:
    """How far something is in the picture, 0..1: it comes in after `start` and is gone at `end`."""
    return smoothstep((seconds - start) / ramp) * smoothstep((end - seconds) / ramp)
