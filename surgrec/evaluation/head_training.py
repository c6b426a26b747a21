"""Training a grid of heads in one pass over the features: each gets the weights that it gets alone.

Heads share the order of the samples, and nothing else: first weights by their own seed, AdamW with their own
learning rate and weight decay. The loss is the sum over heads, so that a gradient is its own head's; a head
that diverges disturbs no other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

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
    lr, decay = (
        torch.tensor([getattr(c, name) for c in candidates], device=device) for name in ("lr", "weight_decay")
    )
    first = {name: torch.zeros_like(value) for name, value in weights.items()}
    second = {name: torch.zeros_like(value) for name, value in weights.items()}
    done = 0
    for features, labels in batches:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = heads.logits(weights, features)
        loss = functional.cross_entropy(
            logits.float().flatten(0, 1), labels.repeat(len(candidates)), reduction="sum"
        )
        gradients = torch.autograd.grad(loss / len(labels), list(weights.values()))
        now = lr * rate_at(done, steps)
        done += 1
        with torch.no_grad():
            for (name, value), gradient in zip(weights.items(), gradients, strict=True):
                each = (-1, *[1] * (value.ndim - 1))
                rate = now.view(each)
                if heads.decayed(name):
                    value.mul_(1 - rate * decay.view(each))
                mean = first[name].lerp_(gradient, 1 - BETAS[0])
                square = second[name].mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
                size = (square / (1 - BETAS[1] ** done)).sqrt_().add_(EPS)
                value.sub_(mean / (1 - BETAS[0] ** done) / size * rate)
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
