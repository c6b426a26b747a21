"""From uint8 frames straight to the tokens that are asked for, and back to frames.

A token is a block of `tubelet` frames by `patch` by `patch` pixels. Its values are in the order (time, row,
column, channel). (A Conv3d of shape [D, channel, time, row, column] is the same linear map with its weight
permuted by (0, 2, 3, 4, 1) and flattened.)

On a GPU one Triton kernel reads the pixels of the asked tokens, normalises and casts them. Elsewhere PyTorch
does the same (`plain_patches`).
"""

# In Triton's kernels only the constants have types.
# mypy: allow-incomplete-defs

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from surgrec.kernels.masking import Grid
from surgrec.kernels.token_pixels import check_frames, colours, layout, of_channel, token_pixels
from surgrec.kernels.triton_mode import on_triton
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
    clips = torch.arange(len(frames), device=frames.device)[:, None].expand_as(tokens)
    return _patches(frames, clips, tokens, tubelet, patch, mean, std, dtype)


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
    return _patches(frames, clips, tokens, tubelet, patch, mean, std, dtype)


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


def _patches(
    frames: Tensor,
    clips: Tensor,
    tokens: Tensor,
    tubelet: int,
    patch: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    token_grid(frames.shape, tubelet, patch)
    if on_triton(frames.device):
        patches: Tensor = _triton_patches(frames, clips, tokens, tubelet, patch, list(mean), list(std), dtype)
        return patches
    return plain_patches(frames, clips, tokens, tubelet, patch, mean, std, dtype)


def plain_patches(
    frames: Tensor,
    clips: Tensor,
    tokens: Tensor,
    tubelet: int,
    patch: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`patchify` of tokens int64 of any shape, each of the clip that `clips` says, in plain PyTorch."""
    pixels = gather_tokens(frames, clips, tokens, tubelet, patch)
    means, stds = _colours(tuple(mean), tuple(std), pixels.device)
    return ((pixels.float() - means) / stds).flatten(-4).to(dtype)


@functools.lru_cache(maxsize=16)
def _colours(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """In units of 1/255; kept, since each copy to a GPU would wait for it."""
    means, stds = (torch.tensor(values, dtype=torch.float32) * 255 for values in (mean, std))
    return means.to(device), stds.to(device)


# An operator of its own: torch.compile calls it without looking into it.
@torch.library.custom_op("surgrec::patches", mutates_args=())
def _triton_patches(
    frames: Tensor,
    clips: Tensor,
    tokens: Tensor,
    tubelet: int,
    patch: int,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
) -> Tensor:
    """`plain_patches` by the kernel."""
    check_frames(frames, tokens)
    frames, clips, tokens = frames.contiguous(), clips.contiguous(), tokens.contiguous()
    out = frames.new_empty((*tokens.shape, tubelet * patch**2 * 3), dtype=dtype)
    if out.numel():
        with torch.cuda.device_of(out):
            _patch_kernel[(tokens.numel(),)](
                frames,
                clips,
                tokens,
                out,
                **colours(mean, "mean"),
                **colours(std, "std"),
                **layout(frames, tubelet, patch),
                num_warps=4,
            )
    return out


@_triton_patches.register_fake
def _(
    frames: Tensor,
    clips: Tensor,
    tokens: Tensor,
    tubelet: int,
    patch: int,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
) -> Tensor:
    return frames.new_empty((*tokens.shape, tubelet * patch**2 * 3), dtype=dtype)


@triton.jit
def _patch_kernel(
    frames,
    clips,
    tokens,
    out,
    mean_0,
    mean_1,
    mean_2,
    std_0,
    std_1,
    std_2,
    clip_bytes,
    frame_bytes,
    row_bytes,
    grid_rows,
    grid_columns,
    TUBELET: tl.constexpr,
    PATCH: tl.constexpr,
    LINES: tl.constexpr,
    LINE: tl.constexpr,
):
    """One program: one token."""
    number = tl.program_id(0).to(tl.int64)
    pixels, place, byte, inside = token_pixels(
        frames,
        tl.load(clips + number),
        tl.load(tokens + number),
        clip_bytes,
        frame_bytes,
        row_bytes,
        grid_rows,
        grid_columns,
        TUBELET,
        PATCH,
        LINES,
        LINE,
    )
    mean = of_channel(byte, mean_0, mean_1, mean_2)
    std = of_channel(byte, std_0, std_1, std_2)
    values = (pixels - mean) / std
    address = out + number * (TUBELET * PATCH * PATCH * 3) + place
    tl.store(address, values.to(out.dtype.element_ty), mask=inside)
