"""The exact GELU, x * Phi(x), and its gradient with the sum over rows that is the bias's, in one pass each.

Going back, the activations are made again from the values before them, which the gradient needs in any case:
so they are not kept. On a GPU Triton's kernels do it; elsewhere their plain twins.
"""

# In Triton's kernels only the constants have types.
# mypy: allow-incomplete-defs

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from surgrec.kernels.column_sums import column_sums
from surgrec.kernels.triton_mode import on_triton, programs_at_once
from torch import Tensor
from torch.nn import functional

BLOCK = 2048
ROWS, COLUMNS = 32, 64
"""Of the tile that a program has at a time going back."""
WAVES = 8
"""How many times more programs there are going back than run at once: some wait, and none is left over."""


def gelu(x: Tensor) -> Tensor:
    """x * Phi(x), of the shape and dtype of x; the arithmetic is float32."""
    if not on_triton(x.device):
        return functional.gelu(x)
    x = x.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        with torch.cuda.device_of(x):
            _gelu_kernel[(triton.cdiv(x.numel(), BLOCK),)](x, out, x.numel(), BLOCK=BLOCK, num_warps=4)
    return out


def gelu_backward(gradient: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient of x, gelu(x), gradient summed over rows: float32 [F]) for x and gradient [T, F].

    The memory of `gradient` is used again for the gradient of x: it must not be read afterwards.
    """
    if not on_triton(x.device):
        return plain_gelu_backward(gradient, x)
    rows, columns = x.shape
    gradient = gradient.contiguous()
    activated = torch.empty_like(x)
    across = triton.cdiv(columns, COLUMNS)
    programs = max(1, min(WAVES * programs_at_once(x.device) // across, triton.cdiv(rows, ROWS)))
    sums = torch.empty(programs, columns, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _gelu_backward_kernel[(across, programs)](
            gradient,
            x,
            gradient,
            activated,
            sums,
            rows,
            columns,
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            num_warps=4,
        )
    return gradient, activated, column_sums(sums)


def plain_gelu_backward(gradient: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`gelu_backward` in plain PyTorch."""
    wide = torch.promote_types(x.dtype, torch.float32)
    value = x.to(wide)
    below = 0.5 * (1 + torch.erf(value * math.sqrt(0.5)))
    density = torch.exp(-0.5 * value * value) / math.sqrt(2 * math.pi)
    out = gradient.to(wide) * (below + value * density)
    return out.to(gradient.dtype), (value * below).to(x.dtype), out.sum(0)


@triton.jit
def _normal(value):
    """(Phi, the share of a standard normal distribution below each value; its density times sqrt(2 pi)).

    Abramowitz and Stegun 7.1.26, within 1.5e-7; the exponential is that of the density. A library's erf takes
    twice the instructions, and the kernels would wait for these and not for memory.
    """
    power = tl.exp2(value * value * -0.7213475204444817)
    t = 1.0 / (1.0 + 0.23164190 * tl.abs(value))
    polynomial = 1.421413741 + t * (-1.453152027 + t * 1.061405429)
    tail = 0.5 * power * t * (0.254829592 + t * (-0.284496736 + t * polynomial))
    return tl.where(value < 0, tail, 1.0 - tail), power


@triton.jit
def _gelu_kernel(x, out, count, BLOCK: tl.constexpr):
    """One program: BLOCK values."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    below, _ = _normal(value)
    tl.store(out + at, (value * below).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gelu_backward_kernel(
    gradient, x, out, activated, sums, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """One program: every so many tiles of a strip of COLUMNS columns, which it sums up."""
    program = tl.program_id(1)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], tl.float32)
    for start in range(program * ROWS, rows, tl.num_programs(1) * ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row[:, None] < rows) & (column[None, :] < columns)
        at = row[:, None].to(tl.int64) * columns + column[None, :]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
        below, power = _normal(value)
        g *= below + value * power * 0.3989422804014327
        tl.store(out + at, g.to(out.dtype.element_ty), mask=inside)
        tl.store(activated + at, (value * below).to(activated.dtype.element_ty), mask=inside)
        total += tl.sum(tl.where(inside, g, 0.0), 0)
    tl.store(sums + program * columns + column, total, mask=column < columns)
