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
    rows = torch.empty(len(candidates), heads.parameters, device=device)
    slopes = torch.zeros_like(rows)
    weights, gradients = _by_name(heads, rows), _by_name(heads, slopes)
    for name, value in heads.first([candidate.seed for candidate in candidates]).items():
        weights[name].copy_(value)
        weights[name].requires_grad_()
    optimizer = _optimizer(heads, rows, slopes, candidates)
    done = 0
    for features, labels in batches:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = heads.logits(weights, features)
        loss = functional.cross_entropy(
            logits.float().flatten(0, 1), labels.repeat(len(candidates)), reduction="sum"
        )
        found = torch.autograd.grad(loss / len(labels), list(weights.values()))
        for gradient, value in zip(gradients.values(), found, strict=True):
            gradient.copy_(value)
        for group in optimizer.param_groups:
            group["lr"] = group["highest"] * rate_at(done, steps)
        optimizer.step()
        done += 1
    if done != steps:
        raise ValueError(f"{done} batches for {steps} steps")
    return {name: value.detach().contiguous() for name, value in weights.items()}


def _by_name(heads: Heads, rows: Tensor) -> Weights:
    """Weights [G, ...] within rows [G, parameters], a row a head; those that decay come first."""
    found: Weights = {}
    at = 0
    for name, shape in sorted(heads.shapes().items(), key=lambda weight: not heads.decayed(weight[0])):
        size = math.prod(shape)
        found[name] = rows[:, at : at + size].unflatten(1, shape)
        at += size
    return found


def _optimizer(heads: Heads, rows: Tensor, slopes: Tensor, candidates: list[Candidate]) -> torch.optim.AdamW:
    """AdamW of all heads, whose gradients are always in `slopes`. Every tensor and every group costs time:
    a head is two tensors, and heads of one learning rate and weight decay are a group."""
    first = sum(math.prod(shape) for name, shape in heads.shapes().items() if heads.decayed(name))
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for candidate, row, slope in zip(candidates, rows, slopes, strict=True):
        for part, decay in ((slice(first), candidate.weight_decay), (slice(first, None), 0.0)):
            own = row[part]
            own.grad = slope[part]
            groups.setdefault((candidate.lr, decay), []).append(own)
    described: list[dict[str, Any]] = [
        {"params": own, "highest": lr, "weight_decay": decay} for (lr, decay), own in groups.items()
    ]
    return torch.optim.AdamW(described, lr=0.0, betas=BETAS, eps=EPS, fused=True)


@torch.no_grad()
def probabilities(heads: Heads, weights: Weights, features: Tensor, half: bool = False) -> Tensor:
    """float32 [G, B, C]."""
    with torch.autocast(features.device.type, torch.bfloat16, enabled=half):
        logits = heads.logits(weights, features)
    return logits.float().softmax(-1)


def one_head(weights: Weights, head: int) -> Weights:
    """A single head of a grid, with a leading dimension of 1."""
    return {name: value[head : head + 1] for name, value in weights.items()}
