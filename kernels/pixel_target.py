"""What the masked autoencoder is to predict: the pixels of a token, normalised within the token."""

from __future__ import annotations

from typing import Final

import torch
from surgrec.kernels.patchify import gather_tokens
from torch import Tensor

EPSILON: Final = 1e-6
"""Added to the standard deviation that a target is divided by, for pixels in 0..1."""


def pixel_target(
    frames: Tensor, tokens: Tensor, tubelet: int = 2, patch: int = 16, normalise: bool = True
) -> Tensor:
    """VideoMAE's target.

    With pixels in 0..1, the n = tubelet * patch * patch values of each colour channel of a token are
    normalised as (x - mean) / (s + 1e-6), where s is the unbiased standard deviation (variance over n - 1).

    Args:
        frames: uint8 [B, T, H, W, 3].
        tokens: int64 [B, N].
        normalise: False gives the pixels in 0..1.

    Returns:
        float32 [B, N, tubelet * patch * patch * 3], values in the order (time, row, column, channel).
    """
    clips = torch.arange(len(frames), device=frames.device)[:, None]
    pixels = gather_tokens(frames, clips, tokens, tubelet, patch).float().flatten(-4, -2)
    if not normalise:
        return (pixels / 255).flatten(-2)
    # In units of 1/255 the mean of 512 pixels is exact in float32: a constant token gives exact zeros.
    centred = pixels - pixels.mean(dim=-2, keepdim=True)
    variance = centred.square().sum(dim=-2, keepdim=True) / (pixels.shape[-2] - 1)
    return (centred / (variance.sqrt() + 255 * EPSILON)).flatten(-2)


def token_statistics(
    frames: Tensor, tokens: Tensor, tubelet: int = 2, patch: int = 16
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (1e-6 added) that `pixel_target` normalises with, to undo it for pictures.

    Returns:
        Two float32 [B, N, 3], for pixels in 0..1.
    """
    clips = torch.arange(len(frames), device=frames.device)[:, None]
    pixels = gather_tokens(frames, clips, tokens, tubelet, patch).float().flatten(-4, -2) / 255
    return pixels.mean(dim=-2), pixels.std(dim=-2) + EPSILON
