"""k nearest neighbours by cosine, without training: every k of a list at once, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

TEMPERATURE: Final = 0.07
"""Of a neighbour's vote, exp(cosine / 0.07) (Wu et al., arXiv 1805.01978; DINO, arXiv 2104.14294)."""


@torch.no_grad()
def knn_scores(
    queries: Tensor, bank: Iterable[tuple[Tensor, Tensor]], ks: Sequence[int], classes: int
) -> Tensor:
    """Shares of the votes of the k nearest, float32 [len(ks), n, C].

    queries: float32 [n, D]. bank: features float32 [b, D] and labels int64 [b] of the train rows, part by
    part. Where the bank holds fewer than k rows, all vote.
    """
    asked = functional.normalize(queries, dim=1)
    near = torch.empty(len(queries), 0, device=queries.device)
    labels = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for features, truth in bank:
        cosine = asked @ functional.normalize(features, dim=1).T
        near = torch.cat([near, cosine], 1)
        labels = torch.cat([labels, truth.expand(len(queries), -1)], 1)
        # A stable sort, not topk: of equal neighbours the earlier row goes first on every device.
        near, order = near.sort(dim=1, descending=True, stable=True)
        near, labels = near[:, : max(ks)], labels.gather(1, order[:, : max(ks)])
    votes = (near / TEMPERATURE - 1 / TEMPERATURE).exp()[:, :, None] * functional.one_hot(labels, classes)
    found = torch.stack([votes[:, :k].sum(1) for k in ks])
    # Neighbours at an angle beyond 90 degrees may all have votes next to 0, never 0.
    return found / found.sum(-1, keepdim=True)
