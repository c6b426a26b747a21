"""Attention of sequences of one length, where libraries are slow: short sequences, and narrow heads.

Libraries divide a sequence's keys among programs, and add up the gradients of queries in a float32 memory
of their own; heads of 32 columns they multiply as if they had 64. Here what the backward pass adds up, for a
tile of queries or for one of keys, stays in registers: one kernel each, for which the weights are computed
twice. Of up to 256 keys a query sees all at once, without a running softmax.
"""

# In Triton's kernels only the constants have types.
# mypy: allow-incomplete-defs

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
import triton
import triton.language as tl
from surgrec.kernels.join_heads import side_by_side
from surgrec.kernels.triton_mode import on_triton
from torch import Tensor
from torch.autograd.function import once_differentiable

LOG2_E: Final = 1.4426950408889634
AT_ONCE: Final = 256
"""Keys that a query may see all at once."""
LEAST: Final = 16
"""Tokens of the smallest tile that tensor cores take."""
WIDTHS: Final = (16, 32, 64, 128)
DTYPES: Final = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Tiling:
    """rows: of the output, of one program. others: tokens of the other side that it has at a time."""

    rows: int = 64
    others: int = 32
    warps: int = 4
    stages: int = 2


@dataclass(frozen=True, slots=True)
class Tilings:
    """Of the forward kernel, where it has all keys at once, and where not; and of the two on the way back.

    Tried on an H100 with 128 x 12 heads of 64 columns and 160 tokens, seven to ten of each.
    """

    whole: Tiling = Tiling(stages=1)
    running: Tiling = Tiling(others=64)
    queries: Tiling = Tiling(stages=3)
    keys: Tiling = Tiling(stages=3)


def triton_attention(q: Tensor, k: Tensor, v: Tensor, tilings: Tilings | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, each head and each sequence by itself: [B, N, heads, d].

    Args:
        q, k, v: [B, N, heads, d] on a GPU, bfloat16 or float16. Where they lie side by side,
            [B, N, 3, heads, d], so do their gradients.
        tilings: of the kernels; None takes those that were measured to be fast.

    Raises:
        NotImplementedError: for heads whose width is no power of two from 16 to 128, and for what is not in
            half precision.
    """
    if q.shape[-1] not in WIDTHS:
        raise NotImplementedError("it takes heads of 16, 32, 64 or 128 columns")
    if not on_triton(q.device) or (q.is_cuda and q.dtype not in DTYPES):
        raise NotImplementedError("it takes bfloat16 or float16 on a GPU")
    joined = side_by_side(q, k, v) is not None
    if not joined:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    found: Tensor = _Attention.apply(q, k, v, joined, tilings or Tilings())
    return found


def parts_of(tokens: int) -> tuple[int, int]:
    """Two powers of two, the second maybe 0, that have room for so many tokens, and little more."""
    first = max(LEAST, 1 << (tokens.bit_length() - 1))
    rest = tokens - first
    return first, max(LEAST, triton.next_power_of_2(rest)) if rest > 0 else 0


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, joined: bool, tilings: Tilings) -> Tensor:
        batch, tokens, heads, _ = q.shape
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        sums = torch.empty(batch, heads, tokens, dtype=torch.float32, device=q.device)
        if out.numel():
            _forward(q, k, v, out, sums, tilings)
        ctx.save_for_backward(q, k, v, out, sums)
        ctx.joined, ctx.tilings = joined, tilings
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, sums = ctx.saved_tensors
        batch, tokens, heads, width = q.shape
        gradient = gradient.contiguous()
        if ctx.joined:
            parts = torch.empty(batch, tokens, 3, heads, width, dtype=q.dtype, device=q.device).unbind(2)
        else:
            parts = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        along = torch.empty_like(sums)
        if out.numel():
            sizes = tokens, heads, q.stride(1), width**-0.5
            with torch.cuda.device_of(q):
                one = ctx.tilings.queries
                _queries_kernel[(triton.cdiv(tokens, one.rows), batch * heads)](
                    q,
                    k,
                    v,
                    out,
                    gradient,
                    sums,
                    along,
                    parts[0],
                    *sizes,
                    ROWS=one.rows,
                    KEYS=one.others,
                    WIDTH=width,
                    num_warps=one.warps,
                    num_stages=one.stages,
                )
                other = ctx.tilings.keys
                _keys_kernel[(triton.cdiv(tokens, other.rows), batch * heads)](
                    q,
                    k,
                    v,
                    gradient,
                    sums,
                    along,
                    parts[1],
                    parts[2],
                    *sizes,
                    ROWS=other.others,
                    KEYS=other.rows,
                    WIDTH=width,
                    num_warps=other.warps,
                    num_stages=other.stages,
                )
        return *parts, None, None


def _forward(q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, tilings: Tilings) -> None:
    batch, tokens, heads, width = q.shape
    sizes = tokens, heads, q.stride(1), LOG2_E * width**-0.5
    whole = tokens <= AT_ONCE
    tiling = tilings.whole if whole else tilings.running
    grid = triton.cdiv(tokens, tiling.rows), batch * heads
    options = {"ROWS": tiling.rows, "WIDTH": width, "num_warps": tiling.warps, "num_stages": tiling.stages}
    with torch.cuda.device_of(q):
        if whole:
            first, second = parts_of(tokens)
            options |= {"FIRST": first, "SECOND": second, "MASKED": first > tokens}
            _whole_kernel[grid](q, k, v, out, sums, *sizes, **options)
        else:
            _running_kernel[grid](q, k, v, out, sums, *sizes, KEYS=tiling.others, **options)


@triton.jit
def _tile(base, first, tokens, stride, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """ROWS tokens of one head from the `first` on; zeros behind the last."""
    row = first + tl.arange(0, ROWS)
    at = row[:, None] * stride + tl.arange(0, WIDTH)[None, :]
    return tl.load(base + at, mask=row[:, None] < tokens, other=0.0)


@triton.jit
def _store(base, first, tokens, stride, values, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    row = first + tl.arange(0, ROWS)
    at = row[:, None] * stride + tl.arange(0, WIDTH)[None, :]
    tl.store(base + at, values.to(base.dtype.element_ty), mask=row[:, None] < tokens)


@triton.jit
def _whole_kernel(
    q,
    k,
    v,
    out,
    sums,
    tokens,
    heads,
    token_stride,
    scale,
    ROWS: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    MASKED: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One program: ROWS queries of one head. sums: the logarithm, to base 2, of the softmax's denominator."""
    first = tl.program_id(0) * ROWS
    pair = tl.program_id(1)
    sequence, head = (pair // heads).to(tl.int64), pair % heads
    start = sequence * tokens * token_stride + head * WIDTH
    queries = _tile(q + start, first, tokens, token_stride, ROWS, WIDTH)
    keys = _tile(k + start, 0, tokens, token_stride, FIRST, WIDTH)
    values = _tile(v + start, 0, tokens, token_stride, FIRST, WIDTH)
    # Scaled where they are used: one multiplication and addition, instead of two steps.
    logits = tl.dot(queries, tl.trans(keys))
    if MASKED:
        logits = tl.where((tl.arange(0, FIRST) < tokens)[None, :], logits, float("-inf"))
    largest = tl.max(logits, 1)
    if SECOND > 0:
        more_keys = _tile(k + start, FIRST, tokens, token_stride, SECOND, WIDTH)
        more_values = _tile(v + start, FIRST, tokens, token_stride, SECOND, WIDTH)
        there = (FIRST + tl.arange(0, SECOND) < tokens)[None, :]
        more_logits = tl.where(there, tl.dot(queries, tl.trans(more_keys)), float("-inf"))
        largest = tl.maximum(largest, tl.max(more_logits, 1))
    largest *= scale
    weights = tl.exp2(logits * scale - largest[:, None])
    total = tl.sum(weights, 1)
    found = tl.dot(weights.to(values.dtype), values)
    if SECOND > 0:
        more_weights = tl.exp2(more_logits * scale - largest[:, None])
        total += tl.sum(more_weights, 1)
        found = tl.dot(more_weights.to(more_values.dtype), more_values, found)
    row = first + tl.arange(0, ROWS)
    tl.store(sums + pair * tokens + row, largest + tl.log2(total), mask=row < tokens)
    own = heads * WIDTH
    place = out + sequence * tokens * own + head * WIDTH
    _store(place, first, tokens, own, found / total[:, None], ROWS, WIDTH)


@triton.jit
def _running_kernel(
    q,
    k,
    v,
    out,
    sums,
    tokens,
    heads,
    token_stride,
    scale,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The same, KEYS at a time."""
    first = tl.program_id(0) * ROWS
    pair = tl.program_id(1)
    sequence, head = (pair // heads).to(tl.int64), pair % heads
    start = sequence * tokens * token_stride + head * WIDTH
    queries = _tile(q + start, first, tokens, token_stride, ROWS, WIDTH)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    found = tl.zeros([ROWS, WIDTH], tl.float32)
    # Whole tiles first: only in the last one keys may be missing.
    full = tokens // KEYS * KEYS
    for block in range(0, full, KEYS):
        at = (block + tl.arange(0, KEYS))[:, None] * token_stride + tl.arange(0, WIDTH)[None, :]
        logits = tl.dot(queries, tl.trans(tl.load(k + start + at)))
        before, largest = largest, tl.maximum(largest, tl.max(logits, 1))
        weights = tl.exp2(logits * scale - (largest * scale)[:, None])
        shrunk = tl.exp2((before - largest) * scale)
        total = total * shrunk + tl.sum(weights, 1)
        values = tl.load(v + start + at)
        found = tl.dot(weights.to(values.dtype), values, found * shrunk[:, None])
    if full < tokens:
        keys = _tile(k + start, full, tokens, token_stride, KEYS, WIDTH)
        values = _tile(v + start, full, tokens, token_stride, KEYS, WIDTH)
        there = (full + tl.arange(0, KEYS) < tokens)[None, :]
        logits = tl.where(there, tl.dot(queries, tl.trans(keys)), float("-inf"))
        before, largest = largest, tl.maximum(largest, tl.max(logits, 1))
        weights = tl.exp2(logits * scale - (largest * scale)[:, None])
        shrunk = tl.exp2((before - largest) * scale)
        total = total * shrunk + tl.sum(weights, 1)
        found = tl.dot(weights.to(values.dtype), values, found * shrunk[:, None])
    row = first + tl.arange(0, ROWS)
    tl.store(sums + pair * tokens + row, largest * scale + tl.log2(total), mask=row < tokens)
    own = heads * WIDTH
    place = out + sequence * tokens * own + head * WIDTH
    _store(place, first, tokens, own, found / total[:, None], ROWS, WIDTH)


@triton.jit
def _queries_kernel(
    q,
    k,
    v,
    out,
    gradient,
    sums,
    along,
    q_gradient,
    tokens,
    heads,
    token_stride,
    scale,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One program: the gradients of ROWS queries of one head. along: sums of outputs times gradients."""
    first = tl.program_id(0) * ROWS
    pair = tl.program_id(1)
    sequence, head = (pair // heads).to(tl.int64), pair % heads
    start = sequence * tokens * token_stride + head * WIDTH
    own = heads * WIDTH
    dense = sequence * tokens * own + head * WIDTH
    queries = _tile(q + start, first, tokens, token_stride, ROWS, WIDTH)
    of_out = _tile(gradient + dense, first, tokens, own, ROWS, WIDTH)
    outs = _tile(out + dense, first, tokens, own, ROWS, WIDTH)
    beside = tl.sum(outs.to(tl.float32) * of_out.to(tl.float32), 1)
    row = first + tl.arange(0, ROWS)
    tl.store(along + pair * tokens + row, beside, mask=row < tokens)
    # Behind the last token all weights are zero; keys there are zeros, and add none.
    below = tl.load(sums + pair * tokens + row, mask=row < tokens, other=float("inf"))
    found = tl.zeros([ROWS, WIDTH], tl.float32)
    for block in range(0, tokens, KEYS):
        keys = _tile(k + start, block, tokens, token_stride, KEYS, WIDTH)
        values = _tile(v + start, block, tokens, token_stride, KEYS, WIDTH)
        logits = tl.dot(queries, tl.trans(keys)) * (scale * 1.4426950408889634)
        weights = tl.exp2(logits - below[:, None])
        of_weights = tl.dot(of_out, tl.trans(values))
        of_logits = (weights * (of_weights - beside[:, None])).to(queries.dtype)
        found = tl.dot(of_logits, keys, found)
    _store(q_gradient + start, first, tokens, token_stride, found * scale, ROWS, WIDTH)


@triton.jit
def _keys_kernel(
    q,
    k,
    v,
    gradient,
    sums,
    along,
    k_gradient,
    v_gradient,
    tokens,
    heads,
    token_stride,
    scale,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One program: the gradients of KEYS keys of one head, and of their values."""
    first = tl.program_id(0) * KEYS
    pair = tl.program_id(1)
    sequence, head = (pair // heads).to(tl.int64), pair % heads
    start = sequence * tokens * token_stride + head * WIDTH
    own = heads * WIDTH
    dense = sequence * tokens * own + head * WIDTH
    keys = _tile(k + start, first, tokens, token_stride, KEYS, WIDTH)
    values = _tile(v + start, first, tokens, token_stride, KEYS, WIDTH)
    of_keys = tl.zeros([KEYS, WIDTH], tl.float32)
    of_values = tl.zeros([KEYS, WIDTH], tl.float32)
    for block in range(0, tokens, ROWS):
        queries = _tile(q + start, block, tokens, token_stride, ROWS, WIDTH)
        of_out = _tile(gradient + dense, block, tokens, own, ROWS, WIDTH)
        row = block + tl.arange(0, ROWS)
        below = tl.load(sums + pair * tokens + row, mask=row < tokens, other=float("inf"))
        beside = tl.load(along + pair * tokens + row, mask=row < tokens, other=0.0)
        # Turned: weights, and their gradients, are the left factor of what follows, straight from registers.
        logits = tl.dot(keys, tl.trans(queries)) * (scale * 1.4426950408889634)
        weights = tl.exp2(logits - below[None, :])
        of_values = tl.dot(weights.to(of_out.dtype), of_out, of_values)
        of_weights = tl.dot(values, tl.trans(of_out))
        of_logits = (weights * (of_weights - beside[None, :])).to(queries.dtype)
        of_keys = tl.dot(of_logits, queries, of_keys)
    _store(k_gradient + start, first, tokens, token_stride, of_keys * scale, KEYS, WIDTH)
    _store(v_gradient + start, first, tokens, token_stride, of_values, KEYS, WIDTH)
