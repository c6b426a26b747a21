"""Rotary positions: queries and keys turned by where their tokens are, however tokens are packed.

On a GPU a Triton kernel turns them in one pass, going back in another; elsewhere PyTorch (`plain_rotate`).
"""

# In Triton's kernels only the constants have types.
# mypy: allow-incomplete-defs

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from surgrec.kernels.triton_mode import on_triton
from torch import Tensor


def rotate(x: Tensor, factors: Tensor) -> Tensor:
    """Turns queries or keys by their positions.

    Column i of a head becomes x[i] cos[i] - x[i + 1] sin[i] where i is even, x[i] cos[i] + x[i - 1] sin[i]
    where it is odd. (The two columns of a pair may have different angles; see `position.rotary_3d`.)

    Args:
        x: [..., heads, d], d even.
        factors: float32 [..., 2, d], cosines and sines, with the leading shape of x. They get no gradient.

    Returns:
        The shape and dtype of x; the arithmetic is in the dtype of `factors`.

    Raises:
        ValueError: shapes that do not fit.
    """
    if x.shape[-1] % 2 or factors.shape != (*x.shape[:-2], 2, x.shape[-1]):
        raise ValueError(
            f"x has shape {tuple(x.shape)} and factors {tuple(factors.shape)}; [..., heads, d] with an even "
            f"d and [..., 2, d] are needed"
        )
    if on_triton(x.device):
        turned: Tensor = _triton_rotate(x, factors, False)
        return turned
    return plain_rotate(x, factors)


def plain_rotate(x: Tensor, factors: Tensor) -> Tensor:
    """`rotate` in plain PyTorch."""
    cosines, sines = factors[..., :1, :], factors[..., 1:, :]
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return (x * cosines + turned * sines).to(x.dtype)


# An operator of its own: torch.compile calls it without looking into it.
@torch.library.custom_op("surgrec::rotate", mutates_args=())
def _triton_rotate(x: Tensor, factors: Tensor, transposed: bool) -> Tensor:
    """`plain_rotate` by the kernel; transposed: the gradient of x from that of what it became."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    heads, width = x.shape[-2:]
    # A view of one row for each token: queries and keys lie side by side in one tensor.
    rows = x.flatten(0, -3) if x.dim() > 2 else x[None]
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    if out.numel():
        with torch.cuda.device_of(out):
            _rotate_kernel[(len(rows),)](
                rows,
                factors.contiguous(),
                out,
                rows.stride(0),
                rows.stride(1),
                heads,
                width,
                HEADS=triton.next_power_of_2(heads),
                WIDTH=triton.next_power_of_2(width),
                TRANSPOSED=transposed,
                num_warps=4,
            )
    return out


@_triton_rotate.register_fake
def _(x: Tensor, factors: Tensor, transposed: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.transposed = inputs[2]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    turned: Tensor = _triton_rotate(gradient, ctx.saved_tensors[0], not ctx.transposed)
    return turned, None, None


_triton_rotate.register_autograd(_backward, setup_context=_setup_context)


@triton.jit
def _rotate_kernel(
    x,
    factors,
    out,
    token_stride,
    head_stride,
    heads,
    width,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """One program: all heads of one token."""
    number = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    inside = (head < heads) & (column < width)
    there = column < width
    values = tl.load(x + number * token_stride + head * head_stride + column, mask=inside, other=0.0)
    table = factors + number * (2 * width) + column
    cosines = tl.load(table, mask=there, other=0.0)
    sines = tl.load(table + width, mask=there, other=0.0)
    turned = turn(values.to(tl.float32), cosines, sines, HEADS, 1, WIDTH, TRANSPOSED)
    place = out + number * heads * width + head * width + column
    tl.store(place, turned.to(out.dtype.element_ty), mask=inside)


@triton.jit
def turn(
    values,
    cosines,
    sines,
    ROWS: tl.constexpr,
    TABLE_ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """[ROWS, WIDTH] turned by cosines and sines [TABLE_ROWS, WIDTH], one row for all or one for each."""
    even, odd = _pairs(values, ROWS, WIDTH)
    even_cosine, odd_cosine = _pairs(cosines, TABLE_ROWS, WIDTH)
    even_sine, odd_sine = _pairs(sines, TABLE_ROWS, WIDTH)
    if TRANSPOSED:
        turned = tl.join(even * even_cosine + odd * odd_sine, odd * odd_cosine - even * even_sine)
    else:
        turned = tl.join(even * even_cosine - odd * even_sine, odd * odd_cosine + even * odd_sine)
    return tl.reshape(turned, (ROWS, WIDTH))


@triton.jit
def _pairs(values, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Even and odd columns of [ROWS, WIDTH], each [ROWS, WIDTH / 2]."""
    return tl.split(tl.reshape(values, (ROWS, WIDTH // 2, 2)))
