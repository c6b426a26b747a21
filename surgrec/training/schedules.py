"""Learning rate, weight decay: values of a step, as plain functions of its number.

Steps count from 1, as V-JEPA's schedulers do: the first update already has a learning rate above its start.
"""

from __future__ import annotations

import math


def warmup_steps(warmup: float, total: int) -> int:
    """Length of the warm-up in steps: `warmup` itself from 1 upwards, a share of `total` steps below 1."""
    return round(warmup) if warmup >= 1 else round(warmup * total)


def learning_rate(
    step: int, total: int, warmup: int, start: float, peak: float, final: float, stretch: float = 1.0
) -> float:
    """Linear from `start` to `peak` over `warmup` steps, then a cosine to `final`.

    step: number of the update, 1..total. total, warmup: steps. stretch: the cosine is laid out for
    stretch * total steps and cut off at total (V-JEPA: 1.25), so that it ends above `final`.
    Source: V-JEPA, src/utils/schedulers.py, WarmupCosineSchedule; VideoMAE's cosine_scheduler is the same
    with stretch 1.
    """
    if step < warmup:
        return start + (peak - start) * step / warmup
    length = max(stretch * total - warmup, 1.0)
    progress = min((step - warmup) / length, 1.0)
    return final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def weight_decay(step: int, total: int, first: float, final: float, stretch: float = 1.0) -> float:
    """Half a cosine from `first` to `final` over stretch * total steps; constant where they are equal.

    Source: V-JEPA, src/utils/schedulers.py, CosineWDSchedule.
    """
    progress = min(step / max(stretch * total, 1.0), 1.0)
    return final + (first - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
