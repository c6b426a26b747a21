"""DINOv3's vision transformers, by the names of their own files or by those of transformers.

Siméoni et al. 2025, arXiv 2508.10104. An image model, applied to each frame; the network is timm's, with the
periods of the rotary positions that the file holds.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import torch
from torch import nn

from surgrec.weights.coverage import Taker
from surgrec.weights.dinov3_keys import EPS, REGISTERS, Form, official, transformers
from surgrec.weights.errors import WeightsError
from surgrec.weights.files import Content
from surgrec.weights.layout import Imported, Layout, ReadOptions, refuse
from surgrec.weights.per_frame import assume_images, fill, imported, pooling_of, side_of
from surgrec.weights.transformers_video import colours

NAME: Final = "dinov3"
SIZE: Final = 224
TRANSFORMERS: Final = "dinov3_vit"


def fits(content: Content) -> bool:
    """Registers by DINOv3's own name, or a configuration of transformers'."""
    if content.config is not None:
        return content.config.get("model_type") == TRANSFORMERS
    return any(key.rpartition("/")[2].removeprefix("backbone.") == REGISTERS for key in content.tensors)


def read(content: Content, options: ReadOptions) -> Imported:
    """Raises WeightsError."""
    refuse(content, NAME, part=options.part, heads=options.heads)
    if options.inflate is not None:
        raise WeightsError(
            f"{content.path}: DINOv3 cannot be inflated to tubelets: its rotary positions, class token and"
            " registers have no place in this project's transformer; leave inflate out, it is applied to each"
            " frame"
        )
    pooling = pooling_of(content, options)
    taker = Taker(content.path, content.tensors)
    if content.config is None:
        form, weights = official(content, taker)
    else:
        form, weights = transformers(taker, content.config)
    told = (content.config or {}).get("image_size")
    usual: int = told if isinstance(told, int) and told > 0 else SIZE
    size = side_of(content, options, usual, form.patch)
    rate = assume_images(taker, options, None if usual == told else size)
    mean, std = colours(content)
    if content.preprocessor is None:
        taker.assume("mean, std", "ImageNet's", "those of DINOv3's training on natural images")
    coverage = taker.finish()
    model = _build(form, size)
    fill(model, weights)
    return imported(content.path, model, coverage, options.frames, rate, pooling, size, mean, std)


DINOV3: Final = Layout(
    NAME, "DINOv3's image transformers (official files, or transformers' folders), on each frame", fits, read
)


def _build(form: Form, size: int) -> Any:
    """The network without weights, on the meta device, but for what is no weight."""
    from timm.models.eva import Eva

    with torch.device("meta"):
        model: Any = Eva(
            img_size=size,
            patch_size=form.patch,
            num_classes=0,
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
    model.rope.periods = form.periods
    for block in model.blocks:
        if block.attn.k_bias is not None:
            block.attn.k_bias = torch.zeros(form.width)
    return model
