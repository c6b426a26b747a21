"""TimeSformer with divided attention (Bertasius et al. 2021, arXiv 2102.05095): first over time, then space.

Only what a frozen or fine-tuned encoder needs: no classifier, no dropout. Endo-FM is one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from surgrec.kernels.attention import attention
from surgrec.models.pixels import Normalise
from surgrec.models.vit import LAYER_NORM_EPS, Attention, Mlp


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

    def forward(self, x: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens x [B, T, n, D] and the class token `whole` [B, 1, D], which has no place in time."""
        clips, steps = x.shape[:2]
        over_time = x.transpose(1, 2).flatten(0, 1)
        attended = self.time_linear(_attend(self.time_attention, self.time_norm(over_time)))
        x = x + attended.unflatten(0, (clips, -1)).transpose(1, 2)

        frames = torch.cat([whole[:, None].expand(-1, steps, -1, -1), x], dim=2)
        attended = _attend(self.attention, self.norm1(frames.flatten(0, 1))).unflatten(0, (clips, steps))
        # Every frame has an answer for the one class token of the clip: it takes their mean.
        whole = whole + attended[:, :, :1].mean(1)
        x = x + attended[:, :, 1:]
        return x + self.mlp(self.norm2(x)), whole + self.mlp(self.norm2(whole))


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
    ) -> None:
        """hidden: width within the MLPs. frames, size: of a clip, which has a learned position for each frame
        and for each patch of a frame."""
        super().__init__()
        if size % patch:
            raise ValueError(f"frames of {size} pixels do not divide into patches of {patch}")
        self.width, self.frames, self.size, self.patch = width, frames, size, patch
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
        tokens: Tensor = self.norm(x)
        return tokens.flatten(1, 2)

    def pool(self, tokens: Tensor) -> Tensor:
        """float32 [B, D] of tokens [B, N, D]: their mean."""
        return tokens.float().mean(1)


def _attend(own: Attention, x: Tensor) -> Tensor:
    """Self-attention of sequences [B, N, D]."""
    attended: Tensor = own.proj(attention(*own.project(x, None), None, own.backend).flatten(-2))
    return attended
