"""Training a grid of heads in one pass over the features: each gets the weights that it gets alone.

Heads share the order of the samples, and nothing else: first weights by their own seed, AdamW with their own
learning rate and weight decay. The loss is the sum over heads, so that a gradient is its own head's; a head
that diverges disturbs no other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from surgrec.evaluation.heads import Heads, Weights

BETAS: Final = (0.9, 0.999)
EPS: Final = 1e-8
WARMUP: Final = 0.1
"""Share of the steps over which the learning rate rises from 0."""


@dataclass(frozen=True, order=True)
class Candidate:
    """One head of a grid."""

    lr: float
    weight_decay: float
    seed: int


def rate_at(step: int, steps: int) -> float:
    """Factor of the learning rate at a step, from 0: a linear warm-up, then a cosine to 0."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train_heads(
    heads: Heads,
    candidates: list[Candidate],
    batches: Iterable[tuple[Tensor, Tensor]],
    steps: int,
    device: torch.device,
    half: bool = False,
) -> Weights:
    """Weights [G, ...] of G candidates after `steps` batches.

    batches: features, [B, D] or [B, N, D], and labels int64 [B], on the device; as many as steps. half:
    compute products in bfloat16. Weights and their optimizer stay float32.
    """
    weights = {name: value.to(device) for name, value in heads.first([c.seed for c in candidates]).items()}
    for value in weights.values():
        value.requires_grad_()
    groups: list[dict[str, Any]] = []
    for head, candidate in enumerate(candidates):
        for decayed in (True, False):
            own = [value.detach()[head] for name, value in weights.items() if heads.decayed(name) == decayed]
            groups.append({"params": own, "weight_decay": candidate.weight_decay if decayed else 0.0})
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=BETAS, eps=EPS, fused=True)
    done = 0
    for features, labels in batches:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = heads.logits(weights, features)
        loss = functional.cross_entropy(
            logits.float().flatten(0, 1), labels.repeat(len(candidates)), reduction="sum"
        )
        gradients = torch.autograd.grad(loss / len(labels), list(weights.values()))
        for head, candidate in enumerate(candidates):
            for decayed, group in zip(
                (True, False), optimizer.param_groups[2 * head : 2 * head + 2], strict=True
            ):
                group["lr"] = candidate.lr * rate_at(done, steps)
                parts = [
                    gradient[head].contiguous()
                    for name, gradient in zip(weights, gradients, strict=True)
                    if heads.decayed(name) == decayed
                ]
                for parameter, gradient in zip(group["params"], parts, strict=True):
                    parameter.grad = gradient
        optimizer.step()
        done += 1
    if done != steps:
        raise ValueError(f"{done} batches for {steps} steps")
    return {name: value.detach() for name, value in weights.items()}


@torch.no_grad()
def probabilities(heads: Heads, weights: Weights, features: Tensor, half: bool = False) -> Tensor:
    """float32 [G, B, C]."""
    with torch.autocast(features.device.type, torch.bfloat16, enabled=half):
        logits = heads.logits(weights, features)
    return logits.float().softmax(-1)


def one_head(weights: Weights, head: int) -> Weights:
    """A single head of a grid, with a leading dimension of 1."""
    return {name: value[head : head + 1] for name, value in weights.items()}
