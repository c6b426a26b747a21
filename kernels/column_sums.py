"""The last step of a sum over rows: what many programs summed up, each for itself, is added.

The rows are few, and their number is known: one pass by one program for each strip of columns, always in the
same order. PyTorch's own sum takes five times as long for such shapes.
"""

# In Triton's kernels only the constants have types.
# mypy: allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from surgrec.kernels.triton_mode import on_triton
from torch import Tensor

COLUMNS = 8
"""Of a program: 32 bytes of each row, the least that memory gives, so that there are many programs."""
ROWS = 512
"""That a program has at a time."""


def column_sums(parts: Tensor) -> Tensor:
    """float32 [C], the sum over the rows of float32 [P, C]."""
    if not on_triton(parts.device):
        return parts.sum(0)
    assert parts.is_contiguous()
    rows, columns = parts.shape
    out = torch.empty(columns, dtype=torch.float32, device=parts.device)
    with torch.cuda.device_of(parts):
        _sum_kernel[(triton.cdiv(columns, COLUMNS),)](
            parts, out, rows, columns, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4
        )
    return out


@triton.jit
def _sum_kernel(parts, out, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """One program: COLUMNS columns."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row[:, None] < rows) & (column[None, :] < columns)
        total += tl.load(parts + row[:, None] * columns + column[None, :], mask=inside, other=0.0)
    tl.store(out + column, tl.sum(total, 0), mask=column < columns)
