"""What lies between two layers of a transformer, in one pass: residual sum, layer norm, and their gradient.

    stream --+--> stream + rest + bias --+--> next stream
             |                           +--> (. - mean) / deviation --> next matrix product

The norm's weight and bias are not applied here: `fold` puts them into the matrix product behind it. So
nothing but the normalised values, in the precision of matrix products, is kept for the backward pass. On a
GPU Triton's kernels do it; elsewhere their plain twins.
"""

# In Triton's kernels only the constants have types.
# mypy: allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from surgrec.kernels.column_sums import column_sums
from surgrec.kernels.triton_mode import on_triton, programs_at_once, warps_across
from torch import Tensor

ELEMENTS = 2048
"""Values that a program has at a time."""
BACKWARD_ELEMENTS = 1024
"""Going back, for each of its warps."""


def add_norm(
    stream: Tensor, rest: Tensor | None, bias: Tensor | None, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Adds what a layer gave to the stream, and normalises the sum.

    Args:
        stream: [..., D].
        rest: [..., D] of any floating type, and bias [D], which are added; or both None.
        epsilon: added to the variance.
        dtype: of the normalised values.

    Returns:
        (the sum [..., D] in the stream's dtype, or the stream itself where nothing is added; the normalised
        values [T, D]; one over the deviation of each row, [T]); T is the product of the leading dimensions.
        Inside, all is float32; in the plain twin float64 for a stream of float64.
    """
    if not on_triton(stream.device):
        return plain_add_norm(stream, rest, bias, epsilon, dtype)
    stream = stream.contiguous()
    total = stream if rest is None else torch.empty_like(stream)
    normalised, scale = _forward(stream, rest, bias, total, epsilon, dtype, None)
    return total, normalised, scale


def norm_of_sum(
    stream: Tensor, rest: Tensor, bias: Tensor, epsilon: float, dtype: torch.dtype, picked: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What `add_norm` normalises, where the sum itself is not wanted.

    Args:
        stream, rest, bias, epsilon, dtype: as there.
        picked: int64 [K], the rows of which it is wanted, no two the same; None for all T.

    Returns:
        (normalised values [K, D], one over the deviation [K]).
    """
    if not on_triton(stream.device):
        return plain_norm_of_sum(stream, rest, bias, epsilon, dtype, picked)
    return _forward(stream.contiguous(), rest, bias, None, epsilon, dtype, picked)


def _forward(
    stream: Tensor,
    rest: Tensor | None,
    bias: Tensor | None,
    total: Tensor | None,
    epsilon: float,
    dtype: torch.dtype,
    picked: Tensor | None,
) -> tuple[Tensor, Tensor]:
    columns = stream.shape[-1]
    rows = stream.numel() // columns if picked is None else len(picked)
    normalised = torch.empty(rows, columns, dtype=dtype, device=stream.device)
    scale = torch.empty(rows, dtype=torch.float32, device=stream.device)
    width = triton.next_power_of_2(columns)
    lines = max(1, ELEMENTS // width)
    if rows:
        with torch.cuda.device_of(stream):
            _add_norm_kernel[(triton.cdiv(rows, lines),)](
                stream,
                stream if rest is None else rest.contiguous(),
                stream if bias is None else bias.contiguous(),
                stream if picked is None else picked.contiguous(),
                stream if total is None else total,
                normalised,
                scale,
                rows,
                columns,
                epsilon,
                ROWS=lines,
                WIDTH=width,
                ADD=rest is not None,
                KEPT=rest is not None and total is not None,
                PICKED=picked is not None,
                num_warps=4,
            )
    return normalised, scale


def add_norm_backward(
    gradient: Tensor,
    normalised: Tensor,
    scale: Tensor,
    sum_gradient: Tensor | None,
    dtype: torch.dtype,
    summed: bool,
) -> tuple[Tensor, Tensor | None]:
    """Gradient of the sum that `add_norm` makes, and so of each of its summands.

    Args:
        gradient: [T, D], of the normalised values.
        normalised, scale: what `add_norm` gave.
        sum_gradient: [T, D], of the sum, from all else that uses it; None where nothing does.
        dtype: of the result.
        summed: whether it is wanted summed over rows, too, as it is for the bias.

    Returns:
        (gradient [T, D] in the dtype; float32 [D], its sum over rows before it is rounded, or None).
    """
    if not on_triton(gradient.device):
        return plain_add_norm_backward(gradient, normalised, scale, sum_gradient, dtype, summed)
    out = torch.empty_like(gradient, dtype=dtype, memory_format=torch.contiguous_format)
    return out, _backward(gradient, normalised, scale, sum_gradient, out, summed, None)


def norm_of_sum_backward(
    gradient: Tensor,
    normalised: Tensor,
    scale: Tensor,
    dtype: torch.dtype,
    picked: Tensor | None,
    count: int,
) -> tuple[Tensor, Tensor]:
    """Gradient of each of the summands of `norm_of_sum`.

    Args:
        gradient: [K, D], of the normalised values.
        normalised, scale: what `norm_of_sum` gave for the rows `picked` of `count`.
        dtype: of the result.

    Returns:
        (gradient [count, D] in the dtype, zero in rows that were not picked; float32 [D], its sum over rows
        before it is rounded).
    """
    if not on_triton(gradient.device):
        return plain_norm_of_sum_backward(gradient, normalised, scale, dtype, picked, count)
    make = torch.empty if picked is None or len(picked) == count else torch.zeros
    out = make(count, gradient.shape[1], dtype=dtype, device=gradient.device)
    sums = _backward(gradient, normalised, scale, None, out, True, picked)
    assert sums is not None
    return out, sums


def _backward(
    gradient: Tensor,
    normalised: Tensor,
    scale: Tensor,
    sum_gradient: Tensor | None,
    out: Tensor,
    summed: bool,
    picked: Tensor | None,
) -> Tensor | None:
    """Writes gradients to `out`, those of picked rows to their places; their sum over rows."""
    rows, columns = gradient.shape
    device = out.device
    width = triton.next_power_of_2(columns)
    warps = warps_across(width)
    programs = min(programs_at_once(device, warps), max(1, rows))
    sums = torch.empty(programs, columns, dtype=torch.float32, device=device) if summed else None
    if rows:
        with torch.cuda.device_of(out):
            _add_norm_backward_kernel[(programs,)](
                gradient.contiguous(),
                normalised,
                scale,
                out if sum_gradient is None else sum_gradient.contiguous(),
                out if picked is None else picked.contiguous(),
                out,
                out if sums is None else sums,
                rows,
                columns,
                ROWS=max(1, BACKWARD_ELEMENTS * warps // width),
                WIDTH=width,
                USED=sum_gradient is not None,
                SUMMED=summed,
                PICKED=picked is not None,
                num_warps=warps,
            )
    elif sums is not None:
        sums.zero_()
    return None if sums is None else column_sums(sums)


def plain_add_norm(
    stream: Tensor, rest: Tensor | None, bias: Tensor | None, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """`add_norm` in plain PyTorch."""
    wide = torch.promote_types(stream.dtype, torch.float32)
    total = stream.to(wide)
    if rest is not None and bias is not None:
        total = total + rest.to(wide) + bias.to(wide)
    rows = total.flatten(0, -2)
    centred = rows - rows.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(-1) + epsilon)
    normalised = (centred * scale[:, None]).to(dtype)
    return stream if rest is None else total.to(stream.dtype), normalised, scale


def plain_norm_of_sum(
    stream: Tensor, rest: Tensor, bias: Tensor, epsilon: float, dtype: torch.dtype, picked: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`norm_of_sum` in plain PyTorch."""
    stream, rest = stream.flatten(0, -2), rest.flatten(0, -2)
    if picked is not None:
        stream, rest = stream[picked], rest[picked]
    _, normalised, scale = plain_add_norm(stream, rest, bias, epsilon, dtype)
    return normalised, scale


def plain_norm_of_sum_backward(
    gradient: Tensor,
    normalised: Tensor,
    scale: Tensor,
    dtype: torch.dtype,
    picked: Tensor | None,
    count: int,
) -> tuple[Tensor, Tensor]:
    """`norm_of_sum_backward` in plain PyTorch."""
    found, sums = plain_add_norm_backward(gradient, normalised, scale, None, dtype, True)
    assert sums is not None
    if picked is None:
        return found, sums
    return found.new_zeros(count, found.shape[1]).index_copy_(0, picked, found), sums


def plain_add_norm_backward(
    gradient: Tensor,
    normalised: Tensor,
    scale: Tensor,
    sum_gradient: Tensor | None,
    dtype: torch.dtype,
    summed: bool,
) -> tuple[Tensor, Tensor | None]:
    """`add_norm_backward` in plain PyTorch."""
    g, n = gradient.to(scale.dtype), normalised.to(scale.dtype)
    inner = g - g.mean(-1, keepdim=True) - n * (g * n).mean(-1, keepdim=True)
    out = scale[:, None] * inner
    if sum_gradient is not None:
        out = out + sum_gradient.to(scale.dtype)
    return out.to(dtype), out.sum(0) if summed else None


@triton.jit
def _add_norm_kernel(
    stream,
    rest,
    bias,
    picked,
    total,
    normalised,
    scale,
    rows,
    columns,
    epsilon,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    ADD: tl.constexpr,
    KEPT: tl.constexpr,
    PICKED: tl.constexpr,
):
    """One program: ROWS rows."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)[None, :]
    inside = (row[:, None] < rows) & (column < columns)
    at = row[:, None].to(tl.int64) * columns + column
    source = at
    if PICKED:
        source = tl.load(picked + row, mask=row < rows, other=0)[:, None] * columns + column
    value = tl.load(stream + source, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(rest + source, mask=inside, other=0.0).to(tl.float32)
        value += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)
    if KEPT:
        tl.store(total + at, value.to(total.dtype.element_ty), mask=inside)
    mean = tl.sum(value, 1) / columns
    centred = tl.where(inside, value - mean[:, None], 0.0)
    factor = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / columns + epsilon)
    tl.store(normalised + at, (centred * factor[:, None]).to(normalised.dtype.element_ty), mask=inside)
    tl.store(scale + row, factor, mask=row < rows)


@triton.jit
def _add_norm_backward_kernel(
    gradient,
    normalised,
    scale,
    sum_gradient,
    picked,
    out,
    sums,
    rows,
    columns,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    USED: tl.constexpr,
    SUMMED: tl.constexpr,
    PICKED: tl.constexpr,
):
    """One program: every so many rows, whose columns it sums up."""
    program = tl.program_id(0)
    column = tl.arange(0, WIDTH)[None, :]
    total = tl.zeros([WIDTH], tl.float32)
    for start in range(program * ROWS, rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row[:, None] < rows) & (column < columns)
        at = row[:, None].to(tl.int64) * columns + column
        g = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
        n = tl.load(normalised + at, mask=inside, other=0.0).to(tl.float32)
        factor = tl.load(scale + row, mask=row < rows, other=0.0)
        mean = tl.sum(g, 1) / columns
        along = tl.sum(g * n, 1) / columns
        d = factor[:, None] * (g - mean[:, None] - n * along[:, None])
        if USED:
            d += tl.load(sum_gradient + at, mask=inside, other=0.0).to(tl.float32)
        place = at
        if PICKED:
            place = tl.load(picked + row, mask=row < rows, other=0)[:, None] * columns + column
        tl.store(out + place, d.to(out.dtype.element_ty), mask=inside)
        if SUMMED:
            total += tl.sum(tl.where(inside, d, 0.0), 0)
    if SUMMED:
        there = tl.arange(0, WIDTH)
        tl.store(sums + program * columns + there, total, mask=there < columns)
