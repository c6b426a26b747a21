"""A layer norm's weight and bias put into the linear layer behind it.

    W (n * w + b) + c  =  (W diag(w)) n + (W b + c)

so that the norm's output n alone is what the matrix product reads, and the gradients of w and b come from the
matrix's gradient, not from another pass over all tokens. On a GPU Triton's kernels do it; elsewhere their
plain twins.
"""

# In Triton's kernels only the constants have types.
# mypy: allow-incomplete-defs

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from surgrec.kernels.column_sums import column_sums
from surgrec.kernels.triton_mode import on_triton, programs_at_once
from torch import Tensor
from torch.autograd.function import once_differentiable


def fold(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The matrix and the bias that do the same to what the norm gives before its own weight and bias.

    Args:
        weight: [O, I]; bias: [O] or None: of the linear layer.
        scale, shift: [I], the norm's weight and bias.
        dtype: of what is returned.

    Returns:
        (weight [O, I], bias [O]); differentiable.
    """
    folded: tuple[Tensor, Tensor] = _Fold.apply(weight, bias, scale, shift, dtype)
    return folded


class _Fold(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(weight, scale, shift)
        ctx.biased = bias is not None
        with torch.autocast(weight.device.type, enabled=False):
            return folded(weight, bias, scale, shift, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight_gradient: Tensor, bias_gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale, shift = ctx.saved_tensors
        found = folded_backward(weight_gradient, bias_gradient, weight, scale, shift)
        bias = bias_gradient.to(weight.dtype) if ctx.biased else None
        return found[0], bias, found[1], found[2], None


def folded(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """`fold` without gradients."""
    if not on_triton(weight.device):
        return plain_folded(weight, bias, scale, shift, dtype)
    rows, columns = weight.shape
    weight = weight.contiguous()
    out = torch.empty_like(weight, dtype=dtype)
    out_bias = torch.empty(rows, dtype=dtype, device=weight.device)
    with torch.cuda.device_of(weight):
        _fold_kernel[(rows,)](
            weight,
            weight if bias is None else bias,
            scale,
            shift,
            out,
            out_bias,
            columns,
            WIDTH=triton.next_power_of_2(columns),
            BIASED=bias is not None,
            num_warps=4,
        )
    return out, out_bias


def folded_backward(
    weight_gradient: Tensor, bias_gradient: Tensor, weight: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the linear layer's weight, and of the norm's weight and bias, in the dtype of `weight`."""
    if not on_triton(weight.device):
        return plain_folded_backward(weight_gradient, bias_gradient, weight, scale, shift)
    rows, columns = weight.shape
    out = torch.empty_like(weight, memory_format=torch.contiguous_format)
    programs = min(programs_at_once(weight.device), rows)
    sums = torch.empty(programs, 2, columns, dtype=torch.float32, device=weight.device)
    with torch.cuda.device_of(weight):
        _fold_backward_kernel[(programs,)](
            weight_gradient.contiguous(),
            bias_gradient.contiguous(),
            weight.contiguous(),
            scale,
            shift,
            out,
            sums,
            rows,
            columns,
            WIDTH=triton.next_power_of_2(columns),
            num_warps=4,
        )
    scale_gradient, shift_gradient = column_sums(sums.flatten(1)).to(weight.dtype).view(2, columns)
    return out, scale_gradient, shift_gradient


def plain_folded(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """`folded` in plain PyTorch."""
    moved = weight @ shift
    return (weight * scale).to(dtype), (moved if bias is None else moved + bias).to(dtype)


def plain_folded_backward(
    weight_gradient: Tensor, bias_gradient: Tensor, weight: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`folded_backward` in plain PyTorch."""
    gradient, of_bias = weight_gradient.to(weight.dtype), bias_gradient.to(weight.dtype)
    out = gradient * scale + of_bias[:, None] * shift
    return out, (gradient * weight).sum(0), of_bias @ weight


@triton.jit
def _fold_kernel(
    weight, bias, scale, shift, out, out_bias, columns, WIDTH: tl.constexpr, BIASED: tl.constexpr
):
    """One program: one row."""
    row = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    inside = column < columns
    at = row * columns + column
    value = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(scale + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, (value * factor).to(out.dtype.element_ty), mask=inside)
    moved = tl.sum(value * tl.load(shift + column, mask=inside, other=0.0).to(tl.float32))
    if BIASED:
        moved += tl.load(bias + row).to(tl.float32)
    tl.store(out_bias + row, moved.to(out_bias.dtype.element_ty))


@triton.jit
def _fold_backward_kernel(
    gradient,
    bias_gradient,
    weight,
    scale,
    shift,
    out,
    sums,
    rows,
    columns,
    WIDTH: tl.constexpr,
):
    """One program: every so many rows."""
    program = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    inside = column < columns
    factor = tl.load(scale + column, mask=inside, other=0.0).to(tl.float32)
    summand = tl.load(shift + column, mask=inside, other=0.0).to(tl.float32)
    of_scale = tl.zeros([WIDTH], tl.float32)
    of_shift = tl.zeros([WIDTH], tl.float32)
    for row in range(program, rows, tl.num_programs(0)):
        at = row * columns + column
        g = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(bias_gradient + row).to(tl.float32)
        value = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + at, (g * factor + b * summand).to(out.dtype.element_ty), mask=inside)
        of_scale += g * value
        of_shift += b * value
    mine = sums + program * 2 * columns + column
    tl.store(mine, of_scale, mask=inside)
    tl.store(mine + columns, of_shift, mask=inside)
