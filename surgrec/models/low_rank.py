"""Low-rank additions to matrices (LoRA: Hu et al. 2021, arXiv 2106.09685).

A matrix W is replaced by W + (alpha / rank) * up @ down, where W stays as it is and `up` begins at 0. The sum
is what the layer's `weight` is (torch.nn.utils.parametrize), however a block uses it; merged is that very
sum.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRank(nn.Module):
    """Of a matrix [out, in]: down [rank, in], up [out, rank]."""

    def __init__(self, shape: torch.Size, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.scale = alpha / rank
        bound = 1 / math.sqrt(shape[1])
        first = torch.empty(rank, shape[1]).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(first)
        self.up = nn.Parameter(torch.zeros(shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        return torch.addmm(weight, self.up, self.down, alpha=self.scale)


def add_low_rank(blocks: nn.Module, rank: int, alpha: float, seed: int) -> None:
    """Freezes `blocks` and adds to the weight of every linear layer in it. On the CPU: first weights depend
    on the seed alone. Raises ValueError where there is none, and for a rank
    below 1 or above what a matrix has."""
    generator = torch.Generator().manual_seed(seed)
    blocks.requires_grad_(False)
    layers = [layer for layer in blocks.modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise ValueError(
            "the model has no linear layers to which low-rank additions could be made: give --mode full or"
            " head"
        )
    least = min(min(layer.weight.shape) for layer in layers)
    if not 1 <= rank <= least:
        raise ValueError(
            f"--rank is {rank}; it is at least 1, and at most {least}, the smallest side of a matrix"
        )
    for layer in layers:
        addition = LowRank(layer.weight.shape, rank, alpha, generator)
        parametrize.register_parametrization(layer, "weight", addition)


def merge_low_rank(network: nn.Module) -> None:
    """Takes all additions into their matrices, in place: plain layers again, which compute the same."""
    for layer in list(network.modules()):
        if isinstance(layer, nn.Linear) and parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
