"""Both sides of an export on the same clip."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from surgrec.exports.source import Part, Source
from surgrec.kernels.counter_rng import random_u64, stream_key
from surgrec.weights.errors import WeightsError

EXACT: Final = 1e-4
"""Bound for the same arithmetic in another program, in float32."""
GRAPH: Final = 1e-3
"""Bound for a graph whose operations were put together anew."""


@dataclass(frozen=True)
class Check:
    """difference: of what both sides gave, the largest absolute one, divided by the largest value where that
    is above 1. bound: what it must not exceed."""

    what: str
    difference: float
    bound: float


def compare(what: str, ours: Tensor, theirs: Tensor, bound: float = EXACT) -> Check:
    """Raises WeightsError where it is above the bound, not a number, or the shapes differ."""
    if ours.shape != theirs.shape:
        raise WeightsError(
            f"{what}: this program gives {tuple(ours.shape)}, the written model {tuple(theirs.shape)};"
            " nothing was written. Please report it with the model's configuration"
        )
    ours, theirs = ours.detach().double(), theirs.detach().double()
    difference = float((ours - theirs).abs().max() / max(1.0, float(ours.abs().max())))
    if not difference <= bound or not math.isfinite(difference):
        raise WeightsError(
            f"{what}: the written model differs by {difference:.2g}, which is more than {bound:g}; nothing"
            " was written. Where the weights are not finite, give an earlier checkpoint; otherwise please"
            " report it with the model's configuration"
        )
    return Check(what, difference, bound)


def clips_for(source: Source, count: int = 1) -> Tensor:
    """Noise, uint8 [count, T, S, S, 3], of a stream of its own; fewer clips are the first of more."""
    data = source.config.data
    shape = (count, data.frames, data.size, data.size, 3)
    size = math.prod(shape)
    bits = random_u64(stream_key(0, "convert/clips"), torch.arange(math.ceil(size / 8)))
    return bits.view(torch.uint8)[:size].view(shape)


@torch.no_grad()
def features_of(source: Source, part: Part, clips: Tensor) -> Tensor:
    """Of this program: float32 [B, N, D]."""
    features: Tensor = source.encoder(part)(clips)
    return features
