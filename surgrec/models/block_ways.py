"""How the blocks of a model compute: as they are written, by torch.compile, or by functions made for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from surgrec.configs.pretrain import BlockWay
from surgrec.models.vit import Block

LARGEST_CACHE = 64
"""Graphs of one piece of code that are kept: encoder, teacher, predictor and decoder, with gradients and
without, each with its own width; PyTorch's own limit of 8 would send some back to the interpreter."""


def way_on(device_type: str, way: BlockWay) -> BlockWay:
    """What `auto` is on a kind of device; any other way as it is."""
    if way != "auto":
        return way
    return "fused" if device_type == "cuda" else "plain"


def set_blocks(model: nn.Module, way: BlockWay) -> BlockWay:
    """Lets the blocks of `model` compute as configs/pretrain.py says; which way that is on its device."""
    way = way_on(next(model.parameters()).device.type, way)
    for part in model.modules():
        if isinstance(part, Block):
            # Cosine attention has no fused way; its stack computes plainly.
            part.fused = way == "fused" and not part.attention.cosine
            part.halves = dict.fromkeys((False, True), (part.before, part.behind))
    if way == "compiled":
        compile_blocks(model)
    return way


def compile_blocks(model: nn.Module, backend: str = "inductor") -> int:
    """Compiles both halves of every Block in `model`, when they are first called; how many blocks there are.

    Without graph breaks, and with one graph for all blocks of a kind.
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
