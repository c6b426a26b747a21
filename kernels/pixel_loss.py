"""The masked autoencoder's loss: squared error of the predicted pixels, whose targets are never kept.

On a GPU one Triton kernel makes the target of a token from its uint8 pixels, compares it with the
prediction, and writes the prediction's gradient at once, as it is for a loss whose own gradient is one. So
no float32 video, target or prediction of all masked tokens exists, and going back there is something to do
only where the loss was scaled. Elsewhere PyTorch does the same from `pixel_target` (`plain_errors`).
"""

# In Triton's kernels only the constants have types.
# mypy: allow-incomplete-defs

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from surgrec.kernels.patchify import token_grid
from surgrec.kernels.pixel_target import EPSILON, pixel_target
from surgrec.kernels.token_pixels import check_frames, layout, of_channel, token_pixels
from surgrec.kernels.triton_mode import on_triton, programs_at_once
from torch import Tensor
from torch.autograd.function import once_differentiable

ELEMENTS = 4096
"""Values that a program has at a time where a gradient is scaled."""


def pixel_loss(
    predicted: Tensor,
    frames: Tensor,
    tokens: Tensor,
    tubelet: int = 2,
    patch: int = 16,
    normalise: bool = True,
) -> Tensor:
    """Mean squared error of predicted pixels over all tokens given: float32 [].

    Its gradient can be taken once. On a GPU it is rounded to the type of the predictions before it is scaled,
    where the loss is: by another number than a power of two, twice.

    Args:
        predicted: [B, N, tubelet * patch * patch * 3] of any floating type; the arithmetic is float32.
        frames: uint8 [B, T, H, W, 3].
        tokens: int64 [B, N].
        normalise: see `pixel_target`.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    token_grid(frames.shape, tubelet, patch)
    values = tubelet * patch**2 * 3
    if predicted.shape != (*tokens.shape, values) or len(tokens) != len(frames):
        raise ValueError(
            f"predictions {tuple(predicted.shape)} of tokens {tuple(tokens.shape)} in {len(frames)} clips; "
            f"[B, N, {values}] of [B, N] are needed"
        )
    if not on_triton(frames.device):
        return plain_errors(predicted, frames, tokens, tubelet, patch, normalise).mean() / values
    differentiated = torch.is_grad_enabled() and predicted.requires_grad
    loss: Tensor = _Loss.apply(predicted, frames, tokens, tubelet, patch, normalise, differentiated)
    return loss


def plain_errors(
    predicted: Tensor, frames: Tensor, tokens: Tensor, tubelet: int, patch: int, normalise: bool
) -> Tensor:
    """Sum of each token's squared errors, float32 [B, N], in plain PyTorch. Arguments as `pixel_loss`."""
    target = pixel_target(frames, tokens, tubelet, patch, normalise)
    return (predicted.float() - target).square().sum(-1)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        predicted: Tensor,
        frames: Tensor,
        tokens: Tensor,
        tubelet: int,
        patch: int,
        normalise: bool,
        differentiated: bool,
    ) -> Tensor:
        check_frames(frames, tokens)
        predicted, frames, tokens = predicted.contiguous(), frames.contiguous(), tokens.contiguous()
        errors = predicted.new_empty(tokens.shape, dtype=torch.float32)
        gradient = torch.empty_like(predicted) if differentiated else None
        share = 1.0 / max(1, predicted.numel())
        # In float16 the share of one value in the mean may be too small a number: it comes in at the end.
        ctx.kept = 0.5 if predicted.dtype == torch.float16 else share
        if tokens.numel():
            with torch.cuda.device_of(frames):
                _error_kernel[(tokens.numel(),)](
                    predicted,
                    frames,
                    tokens,
                    errors,
                    errors if gradient is None else gradient,
                    tokens.shape[1],
                    255 * EPSILON,
                    2.0 * ctx.kept,
                    **layout(frames, tubelet, patch),
                    NORMALISE=normalise,
                    DIFFERENTIATED=differentiated,
                    num_warps=1,  # it is bound by instructions, of which more warps need more for their sums
                )
        ctx.share, ctx.gradient = share, gradient
        return errors.mean() / predicted.shape[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # It is scaled where it lies, and so there only once.
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("the gradient of this pixel loss has been taken; compute the loss again")
        _scale(gradient, upstream, ctx.share / ctx.kept)
        return gradient, None, None, None, None, None, None


def _scale(values: Tensor, by: Tensor, factor: float) -> None:
    """values *= by * factor, in place; where that is one, nothing is read. by: [], on the same device."""
    with torch.cuda.device_of(values):
        _scale_kernel[(programs_at_once(values.device),)](
            values, by.float(), factor, values.numel(), BLOCK=ELEMENTS, num_warps=4
        )


@triton.jit
def _scale_kernel(values, by, factor, count, BLOCK: tl.constexpr):
    """One program: every so many blocks."""
    scale = tl.load(by) * factor
    if scale != 1.0:
        first = tl.program_id(0).to(tl.int64) * BLOCK
        for start in range(first, count, tl.num_programs(0) * BLOCK):
            at = start + tl.arange(0, BLOCK)
            value = tl.load(values + at, mask=at < count).to(tl.float32)
            tl.store(values + at, (value * scale).to(values.dtype.element_ty), mask=at < count)


@triton.jit
def _of_channels(lines, byte, width, count, CHANNEL: tl.constexpr):
    """Sum of the values of one channel over `count`, of sums over lines, [1, LINE]."""
    return tl.sum(tl.where((byte < width) & (byte % 3 == CHANNEL), lines, 0.0)) / count


@triton.jit
def _error_kernel(
    predicted,
    frames,
    tokens,
    errors,
    gradient,
    per_clip,
    epsilon,
    share,
    clip_bytes,
    frame_bytes,
    row_bytes,
    grid_rows,
    grid_columns,
    TUBELET: tl.constexpr,
    PATCH: tl.constexpr,
    LINES: tl.constexpr,
    LINE: tl.constexpr,
    NORMALISE: tl.constexpr,
    DIFFERENTIATED: tl.constexpr,
):
    """One program: one token. Writes its error, and `share` times the difference to its target."""
    number = tl.program_id(0).to(tl.int64)
    target, place, byte, inside = token_pixels(
        frames,
        number // per_clip,
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
    COUNT: tl.constexpr = TUBELET * PATCH * PATCH
    WIDTH: tl.constexpr = 3 * PATCH
    if NORMALISE:
        # Over lines first: then there is one number for each byte of a line to tell channels apart by.
        # In units of 1/255 the means are sums of whole numbers: a constant token gives exact zeros.
        lines = tl.sum(target, 0)[None, :]
        target -= of_channel(
            byte,
            _of_channels(lines, byte, WIDTH, COUNT, 0),
            _of_channels(lines, byte, WIDTH, COUNT, 1),
            _of_channels(lines, byte, WIDTH, COUNT, 2),
        )
        squares = target * target
        if LINES != TUBELET * PATCH:
            squares = tl.where(inside, squares, 0.0)
        lines = tl.sum(squares, 0)[None, :]
        target *= of_channel(
            byte,
            1.0 / (tl.sqrt(_of_channels(lines, byte, WIDTH, COUNT - 1, 0)) + epsilon),
            1.0 / (tl.sqrt(_of_channels(lines, byte, WIDTH, COUNT - 1, 1)) + epsilon),
            1.0 / (tl.sqrt(_of_channels(lines, byte, WIDTH, COUNT - 1, 2)) + epsilon),
        )
    else:
        target *= 1.0 / 255.0
    values = number * (COUNT * 3)
    difference = tl.load(predicted + values + place, mask=inside, other=0.0).to(tl.float32) - target
    if DIFFERENTIATED:
        out = (difference * share).to(gradient.dtype.element_ty)
        tl.store(gradient + values + place, out, mask=inside)
    if LINES != TUBELET * PATCH:
        difference = tl.where(inside, difference, 0.0)
    lines = tl.sum(difference * difference, 0)[None, :]
    tl.store(errors + number, tl.sum(tl.where(byte < WIDTH, lines, 0.0)))
