"""Decoder and predictor in timm's blocks: what the original programs compute from the weights of a file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from surgrec.exports.names import fused_bias, within
from surgrec.exports.video_vit import RotaryAttention
from surgrec.kernels.masking import TubeMask
from surgrec.models.jepa import Jepa
from surgrec.models.mae import MaskedAutoencoder
from surgrec.models.packing import Packed
from surgrec.models.position import rotary_3d, sinusoid_1d
from surgrec.models.vit import LAYER_NORM_EPS


def divided(jepa: Jepa, clips: int) -> tuple[Tensor, Tensor]:
    """Every second token as context, the others as targets: two int64 [clips, n], the last token a target."""
    tokens = torch.arange(jepa.grid[0] * jepa.grid[1] * jepa.grid[2])
    target = (tokens % 2 == 1) | (tokens == len(tokens) - 1)
    return tokens[~target].expand(clips, -1), tokens[target].expand(clips, -1)


def our_predictions(jepa: Jepa, features: Tensor, group: int) -> Tensor:
    """Of the targets of `divided`, from features [B, N, D] of all tokens: [B, n, D]."""
    clips = len(features)
    context, target = divided(jepa, clips)
    packs = [
        Packed.join([t.flatten()], [torch.full((clips,), t.shape[1])], features.device)
        for t in (context, target)
    ]
    rows = features[:, context[0]].flatten(0, 1)
    groups = torch.full((clips,), group)
    predicted: Tensor = jepa.predictor(rows, packs[0], packs[1], groups)
    return predicted.unflatten(0, (clips, -1))


def predictions(jepa: Jepa, weights: Mapping[str, Tensor], features: Tensor, group: int) -> Tensor:
    """`our_predictions` from the weights of a predictor of V-JEPA, by its names."""
    config = jepa.config
    context, target = divided(jepa, len(features))
    order = torch.cat([context[0], target[0]])
    embedded = functional.linear(
        features[:, context[0]], weights["predictor_embed.weight"], weights["predictor_embed.bias"]
    )
    masked = weights[f"mask_tokens.{group}"].expand(len(features), target.shape[1], -1)
    x = torch.cat([embedded, masked], dim=1)
    factors = None
    if config.position == "rotary_3d":
        factors = rotary_3d(jepa.grid, config.predictor_width // config.predictor_heads)[order]
    else:
        x = x + weights["predictor_pos_embed"][:, order]
    x = _blocks(within("predictor_blocks.", weights), x, config.predictor_heads, factors)
    x = x[:, context.shape[1] :]
    x = _norm(x, weights["predictor_norm.weight"], weights["predictor_norm.bias"])
    return functional.linear(x, weights["predictor_proj.weight"], weights["predictor_proj.bias"])


def decoded(mae: MaskedAutoencoder, weights: Mapping[str, Tensor], visible: Tensor, mask: TubeMask) -> Tensor:
    """What a decoder of VideoMAE, by its names, makes of the encoder's output for the visible tokens."""
    positions = sinusoid_1d(mae.grid[0] * mae.grid[1] * mae.grid[2], mae.config.decoder_width)
    seen = functional.linear(visible, weights["encoder_to_decoder.weight"]) + positions[mask.visible]
    x = torch.cat([seen, weights["mask_token"] + positions[mask.masked]], dim=1)
    x = _blocks(within("decoder.blocks.", weights), x, mae.config.decoder_heads, None)
    x = _norm(x[:, seen.shape[1] :], weights["decoder.norm.weight"], weights["decoder.norm.bias"])
    return functional.linear(x, weights["decoder.head.weight"], weights["decoder.head.bias"])


def _blocks(weights: Mapping[str, Tensor], x: Tensor, heads: int, factors: Tensor | None) -> Tensor:
    """Blocks 0, 1, ... of these weights, in order."""
    width, depth = x.shape[-1], len({name.split(".")[0] for name in weights})
    blocks = nn.Sequential(*(_block(width, heads) for _ in range(depth)))
    if factors is not None:
        for block in blocks:
            block.attn = RotaryAttention(width, heads, factors)
    blocks.load_state_dict(fused_bias(weights))
    out: Tensor = blocks.eval()(x)
    return out


def _block(width: int, heads: int) -> Block:
    norm: Any = partial(nn.LayerNorm, eps=LAYER_NORM_EPS)
    return Block(width, heads, qkv_bias=True, norm_layer=norm)


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], weight, bias, LAYER_NORM_EPS)
