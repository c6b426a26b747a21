"""The tokens that a transformer starts from, in one pass: each with its position added.

For a masked autoencoder's decoder these are visible tokens and copies of the mask token, side by side. On a
GPU a Triton kernel does it; elsewhere its plain twin.
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

ELEMENTS = 2048
"""Values that a program has at a time."""


def place_tokens(visible: Tensor, mask_token: Tensor, table: Tensor, tokens: Tensor) -> Tensor:
    """Visible and mask tokens with their positions.

    Args:
        visible: [B, V, D] of any floating type.
        mask_token: [D].
        table: [positions, D]; it gets no gradient.
        tokens: int64 [B, N], positions of all tokens, N >= V: those of the visible ones first.

    Returns:
        [B, N, D] in the dtype of `table`.
    """
    placed: Tensor = _Place.apply(visible, mask_token, table, tokens)
    return placed


def add_positions(x: Tensor, table: Tensor, tokens: Tensor) -> Tensor:
    """x + table[tokens].

    Args:
        x: [..., D] of any floating type.
        table: [positions, D]; it gets no gradient.
        tokens: int64 [...], the shape of x without the last.

    Returns:
        The shape of x, in the dtype of `table`; in the plain twin in the wider of the two.
    """
    found: Tensor = _Add.apply(x, table, tokens)
    return found


def plain_place_tokens(visible: Tensor, mask_token: Tensor, table: Tensor, tokens: Tensor) -> Tensor:
    """`place_tokens` in plain PyTorch."""
    masked = mask_token.to(visible.dtype).expand(len(visible), tokens.shape[1] - visible.shape[1], -1)
    return torch.cat([visible, masked], 1) + table[tokens]


class _Place(torch.autograd.Function):
    @staticmethod
    def forward(visible: Tensor, mask_token: Tensor, table: Tensor, tokens: Tensor) -> Tensor:
        if on_triton(visible.device):
            return _placed(visible, mask_token, table, tokens)
        return plain_place_tokens(visible, mask_token, table, tokens)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: Tensor) -> None:
        visible, mask_token = inputs[:2]
        ctx.visible = visible.shape[1], visible.dtype
        ctx.mask_dtype = mask_token.dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        count, dtype = ctx.visible
        masked = gradient[:, count:].sum((0, 1)).to(ctx.mask_dtype)
        return gradient[:, :count].to(dtype), masked, None, None


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, table: Tensor, tokens: Tensor) -> Tensor:
        if not on_triton(x.device):
            return x + table[tokens]
        # All are visible; what is masked is not there.
        flat = x.reshape(1, -1, x.shape[-1])
        return _placed(flat, table[0], table, tokens.reshape(1, -1)).view(x.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.dtype = inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.to(ctx.dtype), None, None


def _placed(visible: Tensor, mask_token: Tensor, table: Tensor, tokens: Tensor) -> Tensor:
    clips, count = tokens.shape
    columns = visible.shape[-1]
    out = torch.empty(clips, count, columns, dtype=table.dtype, device=visible.device)
    width = triton.next_power_of_2(columns)
    lines = max(1, ELEMENTS // width)
    if out.numel():
        with torch.cuda.device_of(out):
            _place_kernel[(triton.cdiv(clips * count, lines),)](
                visible.contiguous(),
                mask_token,
                table.contiguous(),
                tokens.contiguous(),
                out,
                clips * count,
                count,
                visible.shape[1],
                columns,
                ROWS=lines,
                WIDTH=width,
                num_warps=4,
            )
    return out


@triton.jit
def _place_kernel(
    visible,
    mask_token,
    table,
    tokens,
    out,
    rows,
    per_clip,
    visible_per_clip,
    columns,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One program: ROWS tokens."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)[None, :]
    there = row < rows
    inside = there[:, None] & (column < columns)
    clip, place = row // per_clip, row % per_clip
    seen = (place < visible_per_clip)[:, None]
    source = (clip * visible_per_clip + place).to(tl.int64)[:, None] * columns + column
    value = tl.load(visible + source, mask=inside & seen, other=0.0).to(tl.float32)
    masked = tl.load(mask_token + column, mask=column < columns, other=0.0).to(visible.dtype.element_ty)
    value = tl.where(seen, value, masked.to(tl.float32))
    position = tl.load(tokens + row, mask=there, other=0)[:, None] * columns + column
    value += tl.load(table + position, mask=inside, other=0.0).to(tl.float32)
    at = row[:, None].to(tl.int64) * columns + column
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)
