"""Our weights by the names that VideoMAE, V-JEPA and timm share.

Blocks are `N.norm1`, `N.attn.qkv`, `N.attn.proj`, `N.norm2`, `N.mlp.fc1`, `N.mlp.fc2` in all three. MAE's
bias of queries and values is `N.attn.q_bias` and `N.attn.v_bias` in VideoMAE; where it is one vector with
that of the keys, that is zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def shared_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a stack of blocks and what belongs to it, our names ending in those of the blocks."""
    return {name.replace(".attention.", ".attn."): tensor for name, tensor in tensors.items()}


def fused_bias(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`attn.q_bias` and `attn.v_bias` as one `attn.qkv.bias` [3 D], that of the keys zero."""
    fused: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(".q_bias"):
            stem = name.removesuffix("q_bias")
            fused[f"{stem}qkv.bias"] = torch.cat([tensor, torch.zeros_like(tensor), tensors[f"{stem}v_bias"]])
        elif not name.endswith(".v_bias"):
            fused[name] = tensor
    return fused


def convolution(weight: Tensor, tubelet: int, patch: int) -> Tensor:
    """The patch embedding [D, tubelet * patch * patch * 3] as a Conv3d's weight [D, 3, tubelet, patch,
    patch]."""
    return weight.view(-1, tubelet, patch, patch, 3).permute(0, 4, 1, 2, 3).contiguous()


def shared_encoder(tensors: Mapping[str, Tensor], tubelet: int, patch: int) -> dict[str, Tensor]:
    """Weights of a VisionTransformer: `patch_embed.proj`, `blocks.N...`, `norm`."""
    named = shared_names(tensors)
    weight, bias = named.pop("patch_embedding.weight"), named.pop("patch_embedding.bias")
    kernel = convolution(weight, tubelet, patch)
    return {"patch_embed.proj.weight": kernel, "patch_embed.proj.bias": bias} | named


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with `prefix` before their names."""
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def within(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
