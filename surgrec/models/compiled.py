"""torch.compile for the blocks of a model: without graph breaks, one graph for all blocks of a kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from surgrec.models.vit import Block

LARGEST_CACHE = 64
"""Graphs of one piece of code that are kept: encoder, teacher, predictor and decoder, with gradients and
without, each with its own width; PyTorch's own limit of 8 would send some back to the interpreter."""


def compile_blocks(model: nn.Module, backend: str = "inductor") -> int:
    """Compiles both halves of every Block in `model`, when they are first called; how many blocks there are.

    Batches of equal sequences are compiled for their shape, and once more for any other batch size; packed
    tokens for any number of them, so that no step compiles anew.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, LARGEST_CACHE)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for block in blocks:
        halves = block.before, block.behind
        for packed, dynamic in ((False, None), (True, True)):
            compiled: Any = [
                torch.compile(half, fullgraph=True, dynamic=dynamic, backend=backend) for half in halves
            ]
            block.halves[packed] = compiled[0], compiled[1]
    return len(blocks)
