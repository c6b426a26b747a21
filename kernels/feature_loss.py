"""JEPA's loss in one pass over predictions and targets, and one more for its gradient.

    loss = sum over rows of weight * mean |prediction - target|

The rows of the targets are picked while they are read, so that no copy of them is made, and no difference is
kept. On a GPU Triton's kernels do it; elsewhere their plain twin.
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
from torch.autograd.function import once_differentiable

ELEMENTS = 2048
"""Values that a program has at a time."""


def feature_loss(predicted: Tensor, targets: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of mean absolute errors, float32 [].

    Args:
        predicted: [M, D] of any floating type.
        targets: float32 [R, D]; they get no gradient.
        rows: int64 [M], the target of each prediction.
        weights: float32 [M]; they get no gradient.

    Raises ValueError for shapes that do not fit.
    """
    count, columns = predicted.shape
    if targets.shape[1] != columns or rows.shape != (count,) or weights.shape != (count,):
        raise ValueError(
            f"predictions {tuple(predicted.shape)} do not fit targets {tuple(targets.shape)}, rows "
            f"{tuple(rows.shape)} and weights {tuple(weights.shape)}"
        )
    if not on_triton(predicted.device):
        return plain_feature_loss(predicted, targets, rows, weights)
    loss: Tensor = _Loss.apply(predicted, targets, rows, weights)
    return loss


def plain_feature_loss(predicted: Tensor, targets: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """`feature_loss` in plain PyTorch."""
    return ((predicted.float() - targets[rows]).abs().mean(dim=-1) * weights).sum()


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, predicted: Tensor, targets: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        predicted, targets = predicted.contiguous(), targets.contiguous()
        errors = torch.empty(len(predicted), dtype=torch.float32, device=predicted.device)
        _launch(predicted, targets, rows, weights, errors, errors, backward=False)
        ctx.save_for_backward(predicted, targets, rows, weights)
        return errors.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        predicted, targets, rows, weights = ctx.saved_tensors
        out = torch.empty_like(predicted)
        _launch(predicted, targets, rows, weights, gradient.float(), out, backward=True)
        return out, None, None, None


def _launch(
    predicted: Tensor,
    targets: Tensor,
    rows: Tensor,
    weights: Tensor,
    gradient: Tensor,
    out: Tensor,
    backward: bool,
) -> None:
    count, columns = predicted.shape
    width = triton.next_power_of_2(columns)
    lines = max(1, ELEMENTS // width)
    if count:
        with torch.cuda.device_of(predicted):
            _loss_kernel[(triton.cdiv(count, lines),)](
                predicted,
                targets,
                rows.contiguous(),
                weights.contiguous(),
                gradient,
                out,
                count,
                columns,
                ROWS=lines,
                WIDTH=width,
                BACKWARD=backward,
                num_warps=4,
            )


@triton.jit
def _loss_kernel(
    predicted,
    targets,
    rows,
    weights,
    gradient,
    out,
    count,
    columns,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    """One program: ROWS predictions. Writes their weighted errors, or the gradient of the predictions."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)[None, :]
    there = row < count
    inside = there[:, None] & (column < columns)
    at = row[:, None].to(tl.int64) * columns + column
    target = tl.load(rows + row, mask=there, other=0)[:, None] * columns + column
    difference = tl.load(predicted + at, mask=inside, other=0.0).to(tl.float32)
    difference -= tl.load(targets + target, mask=inside, other=0.0)
    weight = tl.load(weights + row, mask=there, other=0.0) / columns
    if BACKWARD:
        slope = tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, 0.0))
        slope *= (weight * tl.load(gradient))[:, None]
        tl.store(out + at, slope.to(out.dtype.element_ty), mask=inside)
    else:
        tl.store(out + row, tl.sum(tl.abs(difference), 1) * weight, mask=there)
