"""DINOv3's vision transformer (Siméoni et al. 2025, arXiv 2508.10104): timm's, with the periods of a file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import nn

EPS: Final = 1e-5


@dataclass(frozen=True)
class DinoForm:
    """hidden: width inside the MLPs. gated: SwiGLU. biased: of queries and values. fused: whether queries,
    keys and values have one matrix. periods: [head width / 4], float32 values, of the rotary positions."""

    depth: int
    width: int
    heads: int
    hidden: int
    patch: int
    registers: int
    gated: bool
    biased: bool
    fused: bool
    eps: float
    periods: tuple[float, ...]


def build_dino(form: DinoForm, size: int) -> Any:
    """The network without weights, on the meta device, but for what is no weight. It pools the class token,
    as DINOv3's own code and transformers do."""
    from timm.models.eva import Eva

    with torch.device("meta"):
        model: Any = Eva(
            img_size=size,
            patch_size=form.patch,
            num_classes=0,
            global_pool="token",
            embed_dim=form.width,
            depth=form.depth,
            num_heads=form.heads,
            # A half more, so that the quotient rounds down to the width.
            mlp_ratio=(form.hidden + 0.5) / form.width,
            swiglu_mlp=form.gated,
            swiglu_align_to=1,
            qkv_bias=form.biased,
            qkv_fused=form.fused,
            init_values=EPS,
            rope_type="dinov3",
            rope_rotate_half=True,
            use_rot_pos_emb=True,
            use_abs_pos_emb=False,
            num_reg_tokens=form.registers,
            use_fc_norm=False,
            dynamic_img_size=True,
            norm_layer=partial(nn.LayerNorm, eps=form.eps),
        )
    model.rope.periods = torch.tensor(form.periods, dtype=torch.float32)
    for block in model.blocks:
        if block.attn.k_bias is not None:
            block.attn.k_bias = torch.zeros(form.width)
    return model
