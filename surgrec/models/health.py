"""Scalars that tell the health of a joint-embedding model, whose loss does not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

# A singular value decomposition of this many rows takes milliseconds.
_ROWS = 512
LEAST_STD: Final = 0.1
LEAST_RANK: Final = 5.0
"""Below either, features have collapsed. Normalised ones have a mean square of 1, so that a standard
deviation of 0.1 over the tokens says that 99 % of it is the same for all. docs/evidence.md has runs on both
sides."""


@torch.no_grad()
def feature_health(features: Tensor) -> dict[str, Tensor]:
    """Of features [B, N, D]:

    - feature_std: standard deviation over all tokens, mean over columns; near 0 when collapsed.
    - rankme: effective rank, exp of the entropy of the normalised singular values (Garrido et al. 2023,
      arXiv 2210.02885), of up to 512 tokens spread evenly over the batch; between 1 and min(512, D).
    - clip_cosine: mean cosine between the mean features of different clips; near 1 when collapsed, and in
      an untrained network, too. Left out for a batch of one.

    Returns:
        float32 scalars.
    """
    features = features.float()
    rows = features.flatten(0, 1)
    picked = torch.linspace(0, len(rows) - 1, min(_ROWS, len(rows)), device=rows.device).long()
    health = {"feature_std": rows.std(dim=0).mean(), "rankme": effective_rank(rows[picked])}
    clips = len(features)
    if clips > 1:
        unit = functional.normalize(features.mean(dim=1), dim=-1)
        total = unit.sum(dim=0).square().sum()
        health["clip_cosine"] = (total - clips) / (clips * (clips - 1))
    return health


def collapsed(health: Mapping[str, float]) -> bool:
    """Whether features are the same for nearly all tokens, or lie in few directions. health: what
    `feature_health` gave of layer-normalised features, as numbers."""
    return health["feature_std"] < LEAST_STD or health["rankme"] < LEAST_RANK


def effective_rank(rows: Tensor) -> Tensor:
    """RankMe of [n, D]: exp(-sum p log p), p the singular values over their sum, plus 1e-7."""
    values = torch.linalg.svdvals(rows)
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + 1e-7
    return (-(shares * shares.log()).sum()).exp()


@torch.no_grad()
def relative_distance(student: Iterable[Tensor], teacher: Iterable[Tensor]) -> Tensor:
    """Euclidean distance of two sets of parameters, over the length of the second: float32 []."""
    pairs = list(zip(student, teacher, strict=True))
    distance = torch.stack([(s.detach().float() - t.float()).norm() for s, t in pairs]).norm()
    return distance / torch.stack([t.float().norm() for _, t in pairs]).norm()
