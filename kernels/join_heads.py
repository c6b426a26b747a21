"""Between attention and the matrix products around it: heads side by side, turned by their positions.

Forward, queries and keys are turned where they lie, in the matrix product's output. Going back, attention's
three gradients are turned back, laid side by side where they are not, and summed over tokens for the bias, in
one pass. On a GPU a Triton kernel does it; elsewhere its plain twin.
"""

# In Triton's kernels only the constants have types.
# mypy: allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from surgrec.kernels.column_sums import column_sums
from surgrec.kernels.rotary import plain_rotate, turn
from surgrec.kernels.triton_mode import on_triton, programs_at_once, warps_across
from torch import Tensor

ELEMENTS = 1024
"""Values that each warp of a program has at a time."""


def turn_(qkv: Tensor, factors: Tensor) -> None:
    """Turns queries and keys of qkv [T, 3, heads, d] by factors [T, 2, d] (kernels/rotary.py), in place.

    Raises ValueError for factors of another shape.
    """
    if factors.shape != (len(qkv), 2, qkv.shape[-1]):
        raise ValueError(f"factors {tuple(factors.shape)} do not fit tokens {tuple(qkv.shape)}")
    if not on_triton(qkv.device):
        for part in (0, 1):
            qkv[:, part] = plain_rotate(qkv[:, part], factors)
        return
    assert qkv.is_contiguous()
    _launch(qkv[:, 0], qkv[:, 1], qkv[:, 2], factors, qkv, None, 2, False, backward=False)


def join(q: Tensor, k: Tensor, v: Tensor, factors: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of queries, keys and values side by side, queries and keys turned back, and sums of them.

    Where they lie side by side already they are turned in place, and stay where they are.

    Args:
        q, k, v: [..., heads, d] with at most two leading dimensions, in any layout whose last is dense.
        factors: [T, 2, d] by which `turn_` turned them, or None.

    Returns:
        ([T, 3, heads, d]; float32 [heads * d], queries summed over tokens, or, where they are turned,
        [2 * heads * d], queries and keys); T is the product of the leading dimensions.
    """
    if not on_triton(q.device):
        return plain_join(q, k, v, factors)
    summed = summed_parts(factors)
    joined = side_by_side(q, k, v)
    if joined is not None:
        parts = list(joined.unbind(1))
    else:
        parts = [x if x.dim() == 4 else x[None] for x in (q, k, v)]
        if any(part.stride(-1) != 1 for part in parts) or len({part.stride() for part in parts}) > 1:
            parts = [part.contiguous() for part in parts]
    rows, (heads, width) = q.shape[:-2].numel(), q.shape[-2:]
    out = joined
    if out is None:
        out = torch.empty(rows, 3, heads, width, dtype=q.dtype, device=q.device)
    programs = programs_at_once(q.device, warps_across(triton.next_power_of_2(heads * width)))
    sums = torch.empty(programs, summed * heads * width, dtype=torch.float32, device=q.device)
    count = 3 if joined is None else summed
    _launch(parts[0], parts[1], parts[2], factors, out, sums, count, joined is None, backward=True)
    return out, column_sums(sums)


def summed_parts(factors: Tensor | None) -> int:
    """How many of queries, keys and values have a bias that counts before attention: the first so many.

    A key's bias adds the same to all logits of a query, and so changes nothing, unless keys are turned; a
    value's passes through attention, and can be added behind it.
    """
    return 1 if factors is None else 2


def plain_join(q: Tensor, k: Tensor, v: Tensor, factors: Tensor | None) -> tuple[Tensor, Tensor]:
    """`join` in plain PyTorch."""
    parts = [x.flatten(0, -3) for x in (q, k, v)]
    if factors is not None:
        # The other way round: the gradient of a turn is the turn of the gradient by what its pair was turned.
        with torch.enable_grad():
            for place in (0, 1):
                start = torch.zeros_like(parts[place], requires_grad=True)
                turned = plain_rotate(start, factors)
                (parts[place],) = torch.autograd.grad(turned, start, parts[place])
    joined = torch.stack(parts, 1)
    wide = torch.promote_types(joined.dtype, torch.float32)
    return joined, joined[:, : summed_parts(factors)].to(wide).sum(0).flatten()


def side_by_side(q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
    """[T, 3, heads, d] whose parts these tensors are, one behind the other in one memory; else None."""
    heads, width = q.shape[-2:]
    row = 3 * heads * width
    strides = [row, width, 1] if q.dim() == 3 else [q.shape[1] * row, row, width, 1]
    start = q.storage_offset()
    for place, part in enumerate((q, k, v)):
        lies = part.storage_offset() == start + place * heads * width and list(part.stride()) == strides
        if not lies or part.untyped_storage().data_ptr() != q.untyped_storage().data_ptr():
            return None
    return q.as_strided((q.shape[:-2].numel(), 3, heads, width), (row, heads * width, width, 1))


def _launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    factors: Tensor | None,
    out: Tensor,
    sums: Tensor | None,
    count: int,
    moved: bool,
    backward: bool,
) -> None:
    """count: how many parts are gone through. moved: whether those that are not turned are written, too."""
    parts = [x if x.dim() == 4 else x[None] for x in (q, k, v)]
    batch, tokens, heads, width = parts[0].shape
    padded = triton.next_power_of_2(heads * width)
    warps = warps_across(padded)
    lines = max(1, ELEMENTS * warps // padded)
    programs = len(sums) if sums is not None else max(1, triton.cdiv(batch * tokens, lines))
    with torch.cuda.device_of(out):
        _join_kernel[(programs, count)](
            parts[0],
            parts[1],
            parts[2],
            out if factors is None else factors.contiguous(),
            out,
            out if sums is None else sums,
            batch * tokens,
            tokens,
            parts[0].stride(0),
            parts[0].stride(1),
            parts[0].stride(2),
            heads * width,
            HEAD=width,
            ROWS=lines,
            WIDTH=padded,
            TURN=factors is not None,
            MOVED=moved,
            SUMMED=0 if sums is None else summed_parts(factors),
            BACKWARD=backward,
            num_warps=warps,
        )


@triton.jit
def _join_kernel(
    q,
    k,
    v,
    factors,
    out,
    sums,
    rows,
    tokens,
    batch_stride,
    token_stride,
    head_stride,
    columns,
    HEAD: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    TURN: tl.constexpr,
    MOVED: tl.constexpr,
    SUMMED: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    """One program: every so many tokens of queries, of keys or of values; the first SUMMED are summed up."""
    program = tl.program_id(0)
    part = tl.program_id(1)
    column = tl.arange(0, WIDTH)[None, :]
    total = tl.zeros([WIDTH], tl.float32)
    for start in range(program * ROWS, rows, tl.num_programs(0) * ROWS):
        row = (start + tl.arange(0, ROWS))[:, None]
        inside = (row < rows) & (column < columns)
        at = (row // tokens).to(tl.int64) * batch_stride + (row % tokens).to(tl.int64) * token_stride
        at += (column // HEAD).to(tl.int64) * head_stride + column % HEAD
        if part == 0:
            value = tl.load(q + at, mask=inside, other=0.0).to(tl.float32)
        elif part == 1:
            value = tl.load(k + at, mask=inside, other=0.0).to(tl.float32)
        else:
            value = tl.load(v + at, mask=inside, other=0.0).to(tl.float32)
        if TURN:
            table = factors + row.to(tl.int64) * (2 * HEAD) + column % HEAD
            cosines = tl.load(table, mask=inside, other=0.0)
            sines = tl.load(table + HEAD, mask=inside, other=0.0)
            turned = turn(value, cosines, sines, ROWS, ROWS, WIDTH, BACKWARD)
            value = tl.where(part < 2, turned, value)
        if TURN or MOVED:
            place = (row.to(tl.int64) * 3 + part) * columns + column
            tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)
        if SUMMED:
            total += tl.sum(tl.where(inside, value, 0.0), 0)
    if part < SUMMED:
        there = tl.arange(0, WIDTH)
        tl.store(sums + (program * SUMMED + part) * columns + there, total, mask=there < columns)
