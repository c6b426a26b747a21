"""First weights, as the two methods choose them."""

from __future__ import annotations

import math

import torch
from torch import nn

from surgrec.models.vit import Block, Blocks


def initialise_mae(module: nn.Module) -> None:
    """VideoMAE: every linear layer Xavier-uniform with zero bias.

    Call it on all but the patch embedding, which keeps PyTorch's own (VideoMAE's is a Conv3d, whose
    default is that of a linear layer of the same 1536 inputs).
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def initialise_jepa(module: nn.Module) -> None:
    """V-JEPA: linear layers normal with deviation 0.02 (cut off at +-2) and zero bias.

    In layer n, counted from 1, the two matrices that write to the residual stream are divided by sqrt(2 n).
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, Blocks):
                for number, block in enumerate(part, start=1):
                    assert isinstance(block, Block)
                    block.attention.proj.weight.div_(math.sqrt(2.0 * number))
                    block.mlp.fc2.weight.div_(math.sqrt(2.0 * number))
