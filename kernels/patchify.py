"""From uint8 frames straight to the tokens that are asked for, and back to frames.

A token is a block of `tubelet` frames by `patch` by `patch` pixels. Its values are in the order (time, row,
column, channel). (A Conv3d of shape [D, channel, time, row, column] is the same linear map with its weight
permuted by (0, 2, 3, 4, 1) and flattened.)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from surgrec.kernels.masking import Grid
from torch import Tensor


def token_grid(frames: Sequence[int], tubelet: int = 2, patch: int = 16) -> Grid:
    """Grid of tokens of clips of shape [..., T, H, W, 3].

    Raises:
        ValueError: a side is not a multiple of the token's.
    """
    time, height, width = frames[-4:-1]
    if time % tubelet or height % patch or width % patch or frames[-1] != 3:
        raise ValueError(
            f"clips of {time} frames of {height} x {width} pixels and {frames[-1]} channels do not divide "
            f"into tokens of {tubelet} frames of {patch} x {patch} pixels and 3 channels"
        )
    return time // tubelet, height // patch, width // patch


def gather_tokens(frames: Tensor, clips: Tensor, tokens: Tensor, tubelet: int = 2, patch: int = 16) -> Tensor:
    """Pixels of single tokens; no other pixel is read.

    Args:
        frames: [B, T, H, W, 3] of any dtype.
        clips: int64, row of `frames` of each token; broadcasts with `tokens`.
        tokens: int64 of any shape.

    Returns:
        [*tokens, tubelet, patch, patch, 3], dtype of `frames`.
    """
    steps, rows, columns = token_grid(frames.shape, tubelet, patch)
    blocks = frames.view(len(frames), steps, tubelet, rows, patch, columns, patch, 3)
    t, y, x = tokens // (rows * columns), tokens // columns % rows, tokens % columns
    return blocks[clips, t, :, y, :, x]


def patchify(
    frames: Tensor,
    tokens: Tensor,
    tubelet: int,
    patch: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Normalised values of the asked tokens.

    Args:
        frames: uint8 [B, T, H, W, 3].
        tokens: int64 [B, N], token numbers of each clip.
        mean, std: of each colour channel, for values in 0..1.
        dtype: of the result; the arithmetic is float32.

    Returns:
        [B, N, tubelet * patch * patch * 3]: (value / 255 - mean) / std.
    """
    clips = torch.arange(len(frames), device=frames.device)[:, None]
    return _normalise(gather_tokens(frames, clips, tokens, tubelet, patch), mean, std, dtype)


def patchify_packed(
    frames: Tensor,
    tokens: Tensor,
    lengths: Tensor,
    tubelet: int,
    patch: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`patchify` for a different number of tokens of each clip.

    Args:
        tokens: int64 [sum of lengths], clip after clip.
        lengths: int64 [B], or [n * B] for n packs of the same B clips one after the other.

    Returns:
        [sum of lengths, tubelet * patch * patch * 3].
    """
    clips = clip_of_token(lengths, len(frames), len(tokens))
    return _normalise(gather_tokens(frames, clips, tokens, tubelet, patch), mean, std, dtype)


def clip_of_token(lengths: Tensor, clips: int, total: int) -> Tensor:
    """Row of the clip that each packed token is of: int64 [total]; see `patchify_packed` for `lengths`."""
    rows = torch.arange(len(lengths), device=lengths.device) % clips
    # The total is known, which spares waiting for a GPU to sum the lengths.
    return rows.repeat_interleave(lengths, output_size=total)


def unpatchify(values: Tensor, tokens: Tensor, base: Tensor, tubelet: int = 2, patch: int = 16) -> Tensor:
    """A copy of `base` with some tokens replaced.

    Args:
        values: [B, N, tubelet * patch * patch * 3].
        tokens: int64 [B, N].
        base: [B, T, H, W, 3], dtype of `values`.

    Returns:
        [B, T, H, W, 3].
    """
    steps, rows, columns = token_grid(base.shape, tubelet, patch)
    blocks = base.clone().view(len(base), steps, tubelet, rows, patch, columns, patch, 3)
    t, y, x = tokens // (rows * columns), tokens // columns % rows, tokens % columns
    clips = torch.arange(len(base), device=base.device)[:, None]
    blocks[clips, t, :, y, :, x] = values.view(*tokens.shape, tubelet, patch, patch, 3)
    return blocks.view(base.shape)


def _normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """[..., tubelet, patch, patch, 3] uint8 -> [..., values]."""
    means, stds = _colours(tuple(mean), tuple(std), pixels.device)
    return ((pixels.float() - means) / stds).flatten(-4).to(dtype)


@functools.lru_cache(maxsize=16)
def _colours(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """In units of 1/255; kept, since each copy to a GPU would wait for it."""
    means, stds = (torch.tensor(values, dtype=torch.float32) * 255 for values in (mean, std))
    return means.to(device), stds.to(device)
