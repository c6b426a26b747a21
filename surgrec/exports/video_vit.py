"""The encoder as a model of timm: timm's VisionTransformer on the tubelets of a clip.

Its parts have the names that timm, VideoMAE and V-JEPA share (patch_embed.proj, blocks.N.attn.qkv, ...). It
has no class token. Fixed positions are a parameter that is not trained, so that a file of weights holds those
it was made with; rotary ones have no tensor, and a file with `pos_embed` is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import Attention, VisionTransformer  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn import functional

from surgrec.configs.model import Position
from surgrec.kernels.masking import Grid
from surgrec.kernels.rotary import plain_rotate
from surgrec.models.position import rotary_3d, sincos_3d, sinusoid_1d
from surgrec.models.vit import LAYER_NORM_EPS


class TubeletEmbed(nn.Module):
    """Clips [B, 3, T, S, S] to tokens [B, N, width], time-major."""

    def __init__(
        self,
        img_size: int,
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        frames: int,
        tubelet: int,
        bias: bool = True,
        **_: Any,
    ) -> None:
        super().__init__()
        if frames % tubelet or img_size % patch_size:
            raise ValueError(
                f"clips of {frames} frames of {img_size} pixels do not divide into tokens of {tubelet} frames"
                f" of {patch_size} pixels"
            )
        self.clip = (in_chans, frames, img_size, img_size)
        side = img_size // patch_size
        self.grid: Grid = (frames // tubelet, side, side)
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (side, side)
        self.num_patches = self.grid[0] * side * side
        kernel = (tubelet, patch_size, patch_size)
        self.proj = nn.Conv3d(in_chans, embed_dim, kernel, kernel, bias=bias)

    def forward(self, clips: Tensor) -> Tensor:
        if tuple(clips.shape[1:]) != self.clip:
            raise ValueError(f"clips have shape {tuple(clips.shape)}; [B, {', '.join(map(str, self.clip))}]")
        tokens: Tensor = self.proj(clips).flatten(2).transpose(1, 2)
        return tokens


class RotaryAttention(Attention):
    """timm's attention, with queries and keys turned by where their tokens are."""

    factors: Tensor

    def __init__(self, width: int, heads: int, factors: Tensor) -> None:
        """factors: float32 [N, 2, head width], of the tokens in their order."""
        super().__init__(width, num_heads=heads, qkv_bias=True)
        self.register_buffer("factors", factors, persistent=False)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        q, k, v = (t.transpose(1, 2) for t in (self._turn(q), self._turn(k), v))
        drop = self.attn_drop.p if self.training else 0.0
        attended = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=attn_mask, dropout_p=drop, is_causal=is_causal
        )
        out: Tensor = self.proj_drop(self.proj(attended.transpose(1, 2).flatten(2)))
        return out

    def _turn(self, x: Tensor) -> Tensor:
        return plain_rotate(x, self.factors)


class VideoTransformer(VisionTransformer):
    """forward_features: normalised clips [B, 3, T, S, S] -> [B, N, D]; forward: the mean of the tokens, and a
    linear layer where num_classes is above 0."""

    def __init__(
        self,
        frames: int = 16,
        img_size: int = 224,
        patch_size: int = 16,
        tubelet: int = 2,
        position: Position = "sinusoid_1d",
        uniform_power: bool = False,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        num_classes: int = 0,
        global_pool: str = "avg",
        **kwargs: Any,
    ) -> None:
        turns = position == "rotary_3d"
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            num_classes=num_classes,
            global_pool=global_pool,  # type: ignore[arg-type]
            class_token=False,
            fc_norm=False,
            pos_embed="none" if turns else "learn",
            norm_layer=partial(nn.LayerNorm, eps=LAYER_NORM_EPS),
            embed_layer=partial(TubeletEmbed, frames=frames, tubelet=tubelet),
            **kwargs,
        )
        grid = self.patch_embed.grid
        if turns:
            factors = rotary_3d(grid, embed_dim // num_heads)
            for block in self.blocks:
                block.attn = RotaryAttention(embed_dim, num_heads, factors)
            return
        if position == "sincos_3d":
            table = sincos_3d(grid, embed_dim, uniform_power)
        else:
            table = sinusoid_1d(self.patch_embed.num_patches, embed_dim)
        self.pos_embed = nn.Parameter(table[None], requires_grad=False)

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        """Raises ValueError: a model is made for its clips."""
        raise ValueError("give frames= and img_size= to timm.create_model; the size of a model is fixed")

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """What the asked blocks give: [B, D, t, h, w], or [B, N, D] where output_fmt is NLC. There are no
        prefix tokens. See timm. Raises ValueError for an option that there is not here."""
        if output_dict or is_causal or attn_mask is not None:
            raise ValueError("output_dict, attn_mask and is_causal are not of the models of this project")
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt is {output_fmt!r}; it is NCHW or NLC")
        wanted, last = feature_take_indices(len(self.blocks), indices)
        x = self._pos_embed(self.patch_embed(x))
        found = []
        for number, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            x = block(x)
            if number in wanted:
                found.append(self.norm(x) if norm else x)
        if output_fmt == "NCHW":
            found = [each.transpose(1, 2).unflatten(2, self.patch_embed.grid) for each in found]
        return found if intermediates_only else (self.norm(x), found)


def normalised(frames: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [B, T, S, S, 3] as these models take clips: float32 [B, 3, T, S, S]."""
    means = torch.tensor(mean, dtype=torch.float32, device=frames.device)
    stds = torch.tensor(std, dtype=torch.float32, device=frames.device)
    return ((frames.float() / 255 - means) / stds).permute(0, 4, 1, 2, 3)
