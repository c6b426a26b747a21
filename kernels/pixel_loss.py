"""The masked autoencoder's loss: squared error of the predicted pixels, whose targets are never kept.

On a GPU one Triton kernel makes the target of a token from its uint8 pixels and compares it with the
prediction at once; going back, another pass makes it again and writes the gradient. So no float32 video,
target or prediction of all masked tokens exists. Elsewhere PyTorch does the same from `pixel_target`
(`plain_errors`).
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
from surgrec.kernels.triton_mode import on_triton
from torch import Tensor


def pixel_loss(
    predicted: Tensor,
    frames: Tensor,
    tokens: Tensor,
    tubelet: int = 2,
    patch: int = 16,
    normalise: bool = True,
) -> Tensor:
    """Mean squared error of predicted pixels over all tokens given: float32 [].

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
    if on_triton(frames.device):
        errors: Tensor = _triton_errors(predicted, frames, tokens, tubelet, patch, normalise)
    else:
        errors = plain_errors(predicted, frames, tokens, tubelet, patch, normalise)
    return errors.mean() / values


def plain_errors(
    predicted: Tensor, frames: Tensor, tokens: Tensor, tubelet: int, patch: int, normalise: bool
) -> Tensor:
    """Sum of each token's squared errors, float32 [B, N], in plain PyTorch. Arguments as `pixel_loss`."""
    target = pixel_target(frames, tokens, tubelet, patch, normalise)
    return (predicted.float() - target).square().sum(-1)


# Operators of their own: torch.compile calls them without looking into them.
@torch.library.custom_op("surgrec::pixel_errors", mutates_args=())
def _triton_errors(
    predicted: Tensor, frames: Tensor, tokens: Tensor, tubelet: int, patch: int, normalise: bool
) -> Tensor:
    """`plain_errors` by the kernel."""
    errors = predicted.new_empty(tokens.shape, dtype=torch.float32)
    _launch(predicted, frames, tokens, errors, errors, tubelet, patch, normalise, backward=False)
    return errors


@_triton_errors.register_fake
def _(predicted: Tensor, frames: Tensor, tokens: Tensor, tubelet: int, patch: int, normalise: bool) -> Tensor:
    return predicted.new_empty(tokens.shape, dtype=torch.float32)


@torch.library.custom_op("surgrec::pixel_errors_backward", mutates_args=())
def _triton_gradients(
    gradient: Tensor,
    predicted: Tensor,
    frames: Tensor,
    tokens: Tensor,
    tubelet: int,
    patch: int,
    normalise: bool,
) -> Tensor:
    """Gradient of the predictions, of their shape and type. gradient: of the errors, float32 [B, N]."""
    out = torch.empty_like(predicted, memory_format=torch.contiguous_format)
    _launch(predicted, frames, tokens, gradient, out, tubelet, patch, normalise, backward=True)
    return out


@_triton_gradients.register_fake
def _(
    gradient: Tensor,
    predicted: Tensor,
    frames: Tensor,
    tokens: Tensor,
    tubelet: int,
    patch: int,
    normalise: bool,
) -> Tensor:
    return torch.empty_like(predicted, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    predicted, frames, tokens, *ctx.others = inputs
    ctx.save_for_backward(predicted, frames, tokens)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    gradients: Tensor = _triton_gradients(gradient.contiguous(), *ctx.saved_tensors, *ctx.others)
    return gradients, None, None, None, None, None


_triton_errors.register_autograd(_backward, setup_context=_setup_context)


def _launch(
    predicted: Tensor,
    frames: Tensor,
    tokens: Tensor,
    errors: Tensor,
    out: Tensor,
    tubelet: int,
    patch: int,
    normalise: bool,
    backward: bool,
) -> None:
    check_frames(frames, tokens)
    frames, tokens, predicted = frames.contiguous(), tokens.contiguous(), predicted.contiguous()
    if not tokens.numel():
        return
    with torch.cuda.device_of(frames):
        _error_kernel[(tokens.numel(),)](
            predicted,
            frames,
            tokens,
            errors,
            out,
            tokens.shape[1],
            255 * EPSILON,
            **layout(frames, tubelet, patch),
            NORMALISE=normalise,
            BACKWARD=backward,
            num_warps=1,  # the kernel is bound by instructions: 2,500 for a token, with four warps 6,400
        )


@triton.jit
def _statistic(values, byte, inside, count, CHANNEL: tl.constexpr):
    """Sum of the values of one channel over `count`."""
    return tl.sum(tl.where(inside & (byte % 3 == CHANNEL), values, 0.0)) / count


@triton.jit
def _error_kernel(
    predicted,
    frames,
    tokens,
    errors,
    out,
    per_clip,
    epsilon,
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
    BACKWARD: tl.constexpr,
):
    """One program: one token. Writes its error, or the gradient of its prediction given that of its error."""
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
    if NORMALISE:
        # In units of 1/255 the means are sums of whole numbers: a constant token gives exact zeros.
        target -= of_channel(
            byte,
            _statistic(target, byte, inside, COUNT, 0),
            _statistic(target, byte, inside, COUNT, 1),
            _statistic(target, byte, inside, COUNT, 2),
        )
        squares = target * target
        target /= of_channel(
            byte,
            tl.sqrt(_statistic(squares, byte, inside, COUNT - 1, 0)) + epsilon,
            tl.sqrt(_statistic(squares, byte, inside, COUNT - 1, 1)) + epsilon,
            tl.sqrt(_statistic(squares, byte, inside, COUNT - 1, 2)) + epsilon,
        )
    else:
        target /= 255.0
    values = number * (COUNT * 3)
    difference = tl.load(predicted + values + place, mask=inside, other=0.0).to(tl.float32) - target
    if BACKWARD:
        gradient = 2.0 * difference * tl.load(errors + number)
        tl.store(out + values + place, gradient.to(out.dtype.element_ty), mask=inside)
    else:
        tl.store(out + number, tl.sum(tl.where(inside, difference * difference, 0.0)))
