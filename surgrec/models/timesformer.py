"""TimeSformer with divided attention (Bertasius et al. 2021, arXiv 2102.05095): first over time, then space.

Only what a frozen or fine-tuned encoder needs: no classifier, no dropout but drop path. Endo-FM is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from surgrec.kernels.attention import attention
from surgrec.models.pixels import Normalise
from surgrec.models.vit import LAYER_NORM_EPS, Attention, Mlp

ClassPooling = Literal["own", "all"]
"""What stands for a clip: its class token, as in TimeSformer's own code, or the mean of all patches."""


class DividedBlock(nn.Module):
    """Attention of each place over time, attention of each frame with the class token, and an MLP."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.time_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.time_attention = Attention(width, heads, "learned", "auto")
        self.time_linear = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attention = Attention(width, heads, "learned", "auto")
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(width, hidden)
        self.drop_path: nn.Module = nn.Identity()

    def forward(self, x: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens x [B, T, n, D] and the class token `whole` [B, 1, D], which has no place in time."""
        clips, steps = x.shape[:2]
        over_time = x.transpose(1, 2).flatten(0, 1)
        attended = self.time_linear(_attend(self.time_attention, self.time_norm(over_time)))
        x = x + self.drop_path(attended.unflatten(0, (clips, -1)).transpose(1, 2))

        frames = torch.cat([whole[:, None].expand(-1, steps, -1, -1), x], dim=2)
        attended = _attend(self.attention, self.norm1(frames.flatten(0, 1))).unflatten(0, (clips, steps))
        # Every frame has an answer for the one class token of the clip: it takes their mean.
        added = torch.cat([attended[:, :, :1].mean(1), attended[:, :, 1:].flatten(1, 2)], dim=1)
        tokens = torch.cat([whole, x.flatten(1, 2)], dim=1) + self.drop_path(added)
        tokens = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return tokens[:, 1:].unflatten(1, (steps, -1)), tokens[:, :1]


class TimeSformer(nn.Module):
    """Clips to tokens. The class token takes part in every layer, and is no token of the answer."""

    def __init__(
        self,
        depth: int,
        width: int,
        heads: int,
        hidden: int,
        frames: int,
        size: int,
        patch: int,
        mean: Sequence[float],
        std: Sequence[float],
        pooling: ClassPooling = "own",
    ) -> None:
        """hidden: width within the MLPs. frames, size: of a clip, which has a learned position for each frame
        and for each patch of a frame."""
        super().__init__()
        if size % patch:
            raise ValueError(f"frames of {size} pixels do not divide into patches of {patch}")
        self.width, self.frames, self.size, self.patch = width, frames, size, patch
        self.pooled_width, self.pooling = width, pooling
        self.normalise = Normalise(mean, std)
        self.patch_embedding = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.place = nn.Parameter(torch.zeros(1, 1 + (size // patch) ** 2, width))
        self.time = nn.Parameter(torch.zeros(1, frames, width))
        self.blocks = nn.ModuleList(DividedBlock(width, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, clips: Tensor) -> Tensor:
        """Clips [B, T, S, S, 3], uint8 or floating in 0..1, to [B, T * n, D]; token = t * n + place, n places
        of a frame row by row.

        Raises:
            ValueError: clips of another shape than the network's.
        """
        return self._tokens(clips)[0]

    def encode(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled, float32 [B, D], and tokens, as forward. Raises as forward."""
        tokens, whole = self._tokens(clips)
        return whole.float() if self.pooling == "own" else tokens.float().mean(1), tokens

    def _tokens(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Those of patches, and the class token [B, D]."""
        if clips.shape[1:] != (self.frames, self.size, self.size, 3):
            raise ValueError(
                f"the model sees clips of {self.frames} frames of {self.size} x {self.size} pixels; these"
                f" have shape {tuple(clips.shape)}"
            )
        patches = self.patch_embedding(self.normalise(clips)).flatten(2).transpose(1, 2)
        x = patches.unflatten(0, (len(clips), self.frames)) + self.place[:, None, 1:] + self.time[:, :, None]
        whole = (self.class_token + self.place[:, :1]).expand(len(clips), -1, -1)
        for block in self.blocks:
            x, whole = block(x, whole)
        return self.norm(x).flatten(1, 2), self.norm(whole)[:, 0]


def set_clip_drop_path(network: TimeSformer, last: float) -> None:
    """While training, the branches of block i of L are left out for a clip with probability last * i / (L -
    1), and divided by the probability of staying."""
    # Only where it is used: timm takes seconds to import.
    from timm.layers.drop import DropPath

    for number, block in enumerate(network.blocks):
        block.drop_path = DropPath(last * number / max(len(network.blocks) - 1, 1))


def _attend(own: Attention, x: Tensor) -> Tensor:
    """Self-attention of sequences [B, N, D]."""
    attended: Tensor = own.proj(attention(*own.project(x, None), None, own.backend).flatten(-2))
    return attended
